"""Trace a prompt from the page: a job of the model worker; its graph is saved in circuits/ and opened."""

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from analysis.runs import Run
from dashboard import escaping
from dashboard.settings import runs_folder
from dashboard.state import address
from dashboard.state.model_results import traces, tracing, waiting, worker
from dashboard.state.model_worker import Job
from dashboard.state.watched_runs import all_runs
from sae.errors import SaescopeError

if TYPE_CHECKING:
    from analysis.circuits.attribution.run import Progress

POLL_S = 0.6
OPENS = "tracing"
"""URL key: name of the graph to open when its trace finishes; removed if the user does something else meanwhile."""
N_FEATURES = 500
MAX_TOKENS = 128
"""Longer prompts need `sae circuit trace`, which doesn't block the shared model worker."""


def trace(root: Path) -> None:
    """Draw the form and the progress of current traces.

    Args:
        root: the folder that contains runs/ and circuits/.
    """
    saes = _choices()
    with st.expander("Trace a prompt", icon=":material/timeline:"):
        if not saes:
            st.text("There is no finished run on a language model yet; `make circuit-demo` trains five small ones.")
        else:
            _form(root, saes)
    for job in traces(root):
        if job.ended.is_set():
            _ended(job)
        else:
            _going(job)


def opened(root: Path) -> None:
    """Open the graph that the URL waits for, once, when its trace has finished."""
    name = st.query_params.get(OPENS)
    job = next((one for one in traces(root) if one.state == "done" and _name(one) == name), None)
    if job is not None:
        worker().again(job.key)
        address.update(circuit=name, view=None, **{OPENS: None})


def _choices() -> dict[str, str]:
    """Options and their titles: whole sweeps, then single runs."""
    runs = [run for run in all_runs() if run.finished and _model(run)]
    found = {run.name: f"{run.name} · {_site(run)}" for run in sorted(runs, key=lambda run: run.name)}
    sweeps = Counter(name.partition("/")[0] for name in found if "/" in name)
    return {**{f"{sweep}/*": f"{sweep}: all {n}" for sweep, n in sweeps.items() if n > 1}, **found}


def _model(run: Run) -> bool:
    model = run.config.get("model")
    return isinstance(model, dict) and bool(model.get("name")) and (run.folder / "final").is_dir()


def _site(run: Run) -> str:
    site = run.config.get("site")
    return str(site.get("target") or site.get("input")) if isinstance(site, dict) else str(site)


def _form(root: Path, saes: dict[str, str]) -> None:
    form = address.Form(OPENS)
    with st.form("trace", border=False):
        st.text_area("Prompt", **form.text("prompt"), height=70, max_chars=address.N_CHARS,
                     placeholder="The keys near the cabinet", help="The graph explains the next token")
        st.multiselect("SAEs or transcoders", list(saes), **form.several("saes", list(saes)),
                       format_func=lambda name: escaping.visible(saes[name]), help="At most one per hook, all on one model")
        left, middle, right = st.columns([1, 2, 1], vertical_alignment="bottom")
        left.number_input("Features", 1, 5000, **form.integer("features", 1, 5000, default=N_FEATURES),
                          help="Number of feature nodes before pruning, most influential first")
        middle.text_input("Name", **form.text("name"), placeholder="from the prompt", max_chars=60)
        right.form_submit_button("Trace", icon=":material/play_arrow:", on_click=lambda: _begin(root, form))
    if refused := st.session_state.get("_trace refused", ""):
        st.error(escaping.plain(refused), icon=":material/error:")


def _begin(root: Path, form: address.Form) -> None:
    """Start tracing, or say what is missing."""
    from analysis.circuits.attribution.attribute import Limits
    from analysis.circuits.attribution.run import TraceOptions

    asked = st.session_state
    prompt, name = asked["prompt"], asked["name"].strip() or _named(asked["prompt"])
    refused = asked["_trace refused"] = _refused(root, prompt, asked["saes"], name)
    if not refused:
        runs = [(Path(runs_folder().name) / one).as_posix() for one in asked["saes"]]
        limits = Limits(int(asked["features"]))
        tracing(prompt, TraceOptions(runs, name=name, root=root, limits=limits, max_tokens=MAX_TOKENS))
    form.submit(**({} if refused else {OPENS: name}))


def _refused(root: Path, prompt: str, saes: list[str], name: str) -> str:
    if not prompt.strip():
        return "The prompt is empty; enter some text."
    if not saes:
        return "No SAE is selected; choose at least one run."
    if not re.fullmatch(r"[\w][\w .-]*", name):
        return f"{name!r} can't be used as a folder name: use letters, digits, spaces, dots and dashes."
    if (root / "circuits" / name).exists() or any(_name(job) == name and not job.ended.is_set() for job in traces(root)):
        return f"There is already a circuit called {name}; choose another name."
    return ""


def _named(prompt: str) -> str:
    """Derive a folder name from a prompt."""
    return re.sub(r"\W+", "-", prompt.lower()).strip("-_")[:40].strip("-_") or "trace"


def _name(job: Job) -> str:
    assert isinstance(job.key, tuple)
    return str(job.key[2])


@st.fragment(run_every=POLL_S)
def _going(job: Job) -> None:
    """A job's progress and a stop button."""
    if job.ended.is_set():
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        st.button("Stop", icon=":material/stop:", key=f"stop {_name(job)}", on_click=job.stop)
        now: Progress | None = job.result
        if job.stopping or now is None:
            st.text(f"Tracing {_name(job)}: {'stopping' if job.stopping else waiting(job, 'loading the model')}")
        else:
            said = f"{now.doing}, {now.done:,} of {now.total:,} {now.unit}"
            st.progress(min(1.0, now.done / max(now.total, 1)), f"Tracing {escaping.plain(_name(job))}: {said}")


def _ended(job: Job) -> None:
    """A job's outcome, shown until it is opened or dismissed."""
    if job.error is not None and not isinstance(job.error, SaescopeError):
        worker().again(job.key)
        raise job.error
    name = escaping.plain(_name(job))
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        if job.state == "done":
            st.button(f"Open {name}", icon=":material/open_in_new:", key=f"open {_name(job)}", on_click=_open, args=(job,))
        elif job.state == "stopped":
            st.text(f"Tracing {_name(job)} was stopped; nothing was saved.")
        else:
            st.error(f"{name}: {escaping.plain(str(job.error))}", icon=":material/error:")
        st.button("Dismiss", key=f"dismiss {_name(job)}", on_click=worker().again, args=(job.key,))


def _open(job: Job) -> None:
    worker().again(job.key)
    address.update(circuit=_name(job), view=None)
