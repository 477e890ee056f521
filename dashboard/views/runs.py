"""The Runs page: all runs with their metrics, training curves and config differences."""

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from analysis import runs
from analysis.render.figures import curves
from analysis.render.figures.curves import Curve
from analysis.render.palette import places
from analysis.render.tables import plain as tables
from analysis.render.tables import runs as run_table
from analysis.render.text import cell
from analysis.runs import Run
from dashboard import escaping
from dashboard.components import save
from dashboard.components.navigation import navigation
from dashboard.settings import runs_folder
from dashboard.state import address
from dashboard.state.watched_runs import all_runs, follow

N_DEFAULT = 6
"""Number of newest runs drawn by default."""
FIRST = ("loss/reconstruction", "fve", "l0", "dead")
"""Metrics drawn by default."""
TEXTS = ("run", "status", "variant", "site")
"""Text columns: sorted ascending first."""
GLYPHS = {"training": "● training", "finished": "✓ finished", "interrupted": "■ interrupted", "imported": "⇥ imported"}


def page() -> None:
    """Draw the page."""
    found = all_runs()
    navigation()
    following = True
    if found:
        following = _header(found)
        _table(found)
        chosen = _choice(found)
        _curves(chosen)
        _configs(chosen)
        _downloads(chosen)
    else:
        _empty()
    if following:
        follow(found)


def _empty() -> None:
    st.title("Runs")
    st.markdown("No runs yet. Train one on this machine, and this page will follow it:")
    st.code("sae train configs/quickstart.yaml", language=None)
    st.caption("Runs folder (change it with --runs):")
    st.code(str(runs_folder()), language=None)


def _header(found: Sequence[Run]) -> bool:
    """Draw the title, run count and problems; return whether to follow the runs."""
    now = time.time()
    n_training = sum(run.status(now) == "training" for run in found)
    st.title("Runs")
    going = f", {n_training} training" if n_training else ""
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        n_runs = f"{len(found)} run{'s' if len(found) > 1 else ''}"
        st.text(f"{n_runs}{going} in {escaping.shell(runs_folder())}", width="content")
        # figures are rebuilt when data changes, which resets a zoom; the toggle pauses this
        following = not n_training or st.toggle(
            "follow", **address.flag("follow", default=True), help="Turn off to pause updates, for example while zooming.")
    for run in found:
        if run.problems:
            st.warning(escaping.plain(f"{run.name}: {' '.join(run.problems)}"), icon=":material/warning:")
    return following


def _table(found: Sequence[Run]) -> None:
    now = time.time()
    sort = st.query_params.get("order")
    sort = sort if sort in run_table.COLUMNS else None
    # text ascending, numbers descending
    descending = (sort in TEXTS) == (st.query_params.get("turned") == "true")
    to, here = address.linker("features"), address.linker()

    def shown(name: str) -> str:
        return to(**({} if name == address.get("run") else address.of_run(name)))

    def turned(column: str) -> str | None:
        return "true" if column == sort and st.query_params.get("turned") != "true" else None

    rows = run_table.ordered([_row(run, now) for run in found], sort, descending=descending)
    st.html(run_table.table(
        rows, sort=sort, descending=descending, link=shown,
        sort_link=lambda column: here(order=column, turned=turned(column))))
    st.caption("Dead: no fire in the last dead window of training rows. Silent: never fires on the held-out rows. The "
               "Features page counts those that never fire on an index's text. The three differ for rare features.")


def _row(run: Run, now: float) -> dict[str, Any]:
    sae, d_sae = runs.section(run.config, "sae"), runs.number(runs.section(run.config, "sae").get("d_sae"))
    l0, dead = run.latest("heldout/l0"), run.latest("dead")
    return {
        "run": run.name, "status": GLYPHS[run.status(now)], "through": run.through,
        "variant": str(sae["variant"]) if "variant" in sae else None, "d_sae": None if d_sae is None else int(d_sae),
        "l0": run.latest("l0") if l0 is None else l0,
        "fve": run.latest("heldout/fve"), "fve_interval": run.interval("heldout/fve"), "dead": dead,
        "silent": run.latest("heldout/silent"),
        "ce": run.latest("heldout/ce_recovered_mean"), "ce_interval": run.interval("heldout/ce_recovered_mean"),
        "tokens": None if run.imported else run.n_rows, "site": site_text(runs.section(run.config, "site")),
        "updated": run.updated,
    }


def site_text(site: Mapping[str, Any]) -> str:
    """`input → target` hooks; just one if they are the same."""
    before, after, update = site.get("input"), site.get("target"), site.get("update")
    target = f"{after} − {before}" if update else after
    return " → ".join(str(part) for part in (None if update == "both" else before, target) if part)


def _choice(found: Sequence[Run]) -> list[Run]:
    """The runs to draw, in order of selection, so that adding one keeps the others' colours."""
    by_name = {run.name: run for run in found}
    names = st.multiselect(
        "Runs to draw", list(by_name), **address.several("runs", list(by_name)), format_func=escaping.visible,
        placeholder=f"the {min(N_DEFAULT, len(found))} newest" if len(found) > 1 else found[0].name,
    )
    return [by_name[name] for name in names] or list(found[:N_DEFAULT])


def _curves(chosen: Sequence[Run]) -> None:
    st.header("Curves")
    names = runs.metrics(chosen)
    if all(run.imported for run in chosen):
        st.info("Imported runs have no training curves.", icon=":material/input:")
        return
    wanted, smoothing, log_x, log_y = _controls(names)
    if not names:
        st.info("No metrics yet; they are logged every `train.log_every`.", icon=":material/hourglass_top:")
        return
    styles = places(st.session_state.get("_styles", {}), [run.name for run in chosen])
    st.session_state["_styles"] = styles
    st.html(tables.legend(list(styles), list(styles.values())))
    columns = st.columns(min(2, len(wanted)))
    with_points = False
    for i, metric in enumerate(wanted):
        lines = [_curve(run, metric, styles[run.name]) for run in chosen]
        with_points |= any(line.points for line in lines)
        drawn = curves.figure(metric, lines, smoothing=smoothing, log_x=log_x, log_y=log_y)
        columns[i % 2].plotly_chart(
            drawn, key=f"curve {metric}", alt=curves.alt(metric, lines), config={"displaylogo": False})
    if with_points:
        st.caption("Lines: training batches. Points with bars: held-out figures with 95 % intervals.")


def _controls(names: Sequence[str]) -> tuple[list[str], float, bool, bool]:
    metrics, smoothing, log_x, log_y = st.columns([5, 2, 1, 1], vertical_alignment="bottom")
    first = [name for name in FIRST if name in names] or list(names[:4])
    wanted = metrics.multiselect(
        "Metrics", names, **address.several("metrics", names),
        placeholder="loss, FVE, L0 and dead features",
    )
    return (
        wanted or first,
        smoothing.slider("Smoothing", 0.0, 0.98, step=0.02, **address.number("smooth", 0.0, 0.98, default=0.0),
                         help="Weight of an exponential moving average; raw values stay faintly visible."),
        log_x.toggle("log x", **address.flag("logx")),
        log_y.toggle("log y", **address.flag("logy")),
    )


def _curve(run: Run, metric: str, style: int) -> Curve:
    """A metric as a line, with its held-out counterpart, if any, as points."""
    rows, values = runs.series(run.lines, metric)
    twin = metric if metric.startswith("heldout/") else f"heldout/{metric}"
    points = list(zip(*runs.series(run.lines, twin), strict=True))
    return Curve(run.name, rows, values, points, runs.intervals(run.lines, twin), style)


def _configs(chosen: Sequence[Run]) -> None:
    st.header("Configs")
    different = st.toggle("only differences", **address.flag("diff", default=True), disabled=len(chosen) < 2)
    rows = runs.compare([run.config for run in chosen], only_differences=different and len(chosen) > 1)
    if rows:
        header = ["key", *(run.name for run in chosen)]
        st.html(tables.table(header, [[key, *values] for key, values in rows], caption="Configs side by side"))
    else:
        st.text("These runs have the same config." if len(chosen) > 1 else "The config cannot be read.")


def _downloads(chosen: Sequence[Run]) -> None:
    with st.container(horizontal=True):
        save.button("Curves (CSV)", "curves.csv", lambda: as_csv(chosen), help="One row per run, step and metric")
        save.button("Runs (JSON)", "runs.json", lambda: as_json(chosen),
                    help="Config, summary and all metrics of the selected runs")


def as_csv(chosen: Sequence[Run]) -> str:
    """All metrics in long form: run (a JSON string), step, rows, metric, value."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("run", "step", "rows", "metric", "value"))
    for run in chosen:
        for line in run.lines:
            for key, value in line.items():
                if key not in ("step", "rows") and runs.number(value) is not None:
                    writer.writerow((cell(run.name), line.get("step"), line["rows"], key, repr(value)))
    return out.getvalue()


def as_json(chosen: Sequence[Run]) -> str:
    """Complete runs: name, config, summary, metrics."""
    return json.dumps(
        [{"name": r.name, "config": r.config, "summary": r.summary, "metrics": list(r.lines)} for r in chosen],
        indent=1, ensure_ascii=False, default=str,
    )
