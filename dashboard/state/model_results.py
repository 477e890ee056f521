"""Run a run's model on texts through the shared worker, cache the results and show the queue while waiting."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from analysis.render.text import count
from dashboard.state.model_worker import Job, Worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analysis.circuits.attribution.run import Progress, TraceOptions
    from analysis.circuits.graph import Circuit
    from analysis.circuits.interventions.on_prompt import Steered as SteeredPrompt
    from analysis.prompt import PromptCode
    from analysis.steering.generate import Edit, Settings
    from analysis.steering.inputs import Positions, SteeredInput

SOON_S = 0.3
"""A wait longer than this is shown on the page."""


@st.cache_resource(show_spinner=False)
def worker() -> Worker:
    """This server's worker."""
    return Worker()


def encoding(run: Path, text: str, refine: int) -> Job:
    """Start encoding a text with the run's SAE, token by token; the job's result is a `PromptCode`.

    `refine` is that of the index it is shown with (`Index.refine`).
    """

    def steps() -> "Iterator[PromptCode]":
        from analysis.prompt import encode_text

        yield encode_text(run, text, refine=refine)

    return worker().job(("read", run, _stamp(run), text, refine), steps, short=True)


def encoded(run: Path, text: str, refine: int) -> "PromptCode":
    """Run `encoding` and wait for its result, with a message on the page.

    Raises:
        SaescopeError: the run has no model, or the text is empty or too long.
    """
    code: PromptCode = _waited_for(encoding(run, text, refine), "The model is reading the text")
    return code


def intervened(
    circuit: "Circuit", stamp: float, pins: tuple[str, ...], times: float, maxima: "Sequence[float] | None", root: Path
) -> "SteeredPrompt":
    """Run an intervention on a circuit's nodes and wait for its effect on the prompt, with a message on the page.

    Args:
        circuit: the graph.
        stamp: cache key; changes if a graph of the same name was rewritten.
        pins: names of the nodes.
        times, maxima, root: as for `steer_prompt`.

    Raises:
        SaescopeError: as `steer_prompt`.
    """

    def steps() -> "Iterator[SteeredPrompt]":
        from analysis.circuits.interventions.on_prompt import steer_prompt

        yield steer_prompt(circuit, circuit.select(*pins), times, maxima=maxima, root=root)

    key = ("intervene", circuit.name, stamp, pins, times, maxima and tuple(maxima), root)
    found: SteeredPrompt = _waited_for(worker().job(key, steps, short=True), "The model runs")
    return found


def _waited_for(job: Job, said: str) -> Any:
    """Wait for a job's result, with a message on the page."""
    if not job.ended.wait(SOON_S):
        place = st.empty()
        while not job.ended.wait(0.2):
            place.text(waiting(job, said))
        place.empty()
    if job.error is not None:
        raise job.error
    return job.result


def steering(run: Path, prompt: str, edits: "Sequence[Edit]", settings: "Settings") -> Job:
    """Start generating a prompt's continuation with and without edits; results are growing `Steered` objects."""

    def steps() -> Iterator[Any]:
        from analysis.steering.generate import stream

        return stream(run, prompt, edits, settings)

    return worker().job(("write", run, _stamp(run), prompt, repr((edits, settings))), steps)


def steered_input(run: Path, number: int, edits: "Sequence[Edit]", positions: "Positions") -> "SteeredInput":
    """Run one input of the user's module with and without edits and wait for it, with a message on the page.

    Raises:
        SaescopeError: as `analysis.steering.inputs.steer_input`.
    """

    def steps() -> "Iterator[SteeredInput]":
        from analysis.steering.inputs import steer_input

        yield steer_input(run, number, edits, positions)

    key = ("input", run, _stamp(run), number, repr(edits), positions)
    found: SteeredInput = _waited_for(worker().job(key, steps, short=True), "The module runs")
    return found


TRACE = "trace"
"""First part of the keys of tracing jobs."""


def tracing(prompt: str, options: "TraceOptions") -> Job:
    """Start tracing a prompt's attribution graph, which is saved; results are `Progress`. One job per name."""

    def steps() -> "Iterator[Progress]":
        from analysis.circuits.attribution.run import trace_steps
        from analysis.trained import LOCK

        made = trace_steps(prompt, options)
        while True:
            with LOCK:  # held for one step at a time
                now = next(made, None)
            if now is None:
                return
            yield now

    key = (TRACE, options.root, options.name)
    worker().again(key)
    return worker().job(key, steps, patient=True)


def traces(root: Path) -> list[Job]:
    """Tracing jobs in a folder that are running, or that have ended and not been dismissed."""
    return [job for job in worker().known_of(TRACE) if isinstance(job.key, tuple) and job.key[1] == root]


def waiting(job: Job, what: str) -> str:
    """A job's progress as text."""
    before = worker().ahead(job)
    return f"The model is busy: {count(before, 'request')} before this one." if before else f"{what} …"


def _stamp(run: Path) -> int:
    manifest = run / "final" / "sae.json"
    return manifest.stat().st_mtime_ns if manifest.exists() else 0
