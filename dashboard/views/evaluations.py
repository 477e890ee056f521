"""The Evaluations page: metrics of all runs with intervals and controls, as a table, a scatter plot and differences."""

import shlex
from collections.abc import Sequence
from html import escape
from typing import Any

import streamlit as st

from analysis.evals import overview
from analysis.evals.overview import SUMMARY, Column, Evaluated, Row
from analysis.render.figures import evaluations as scatter
from analysis.render.figures.scatter import png_options
from analysis.render.tables import evaluations as tables
from analysis.runs import Run
from dashboard import escaping, frame, heading
from dashboard.components import save
from dashboard.components.navigation import navigation
from dashboard.state import address
from dashboard.state.watched_runs import all_runs, follow

FIRST = ("core.reconstruction.fve", "core.sparsity.l0", "core.model.ce_recovered_mean", "core.model.kl")
"""Default metrics of runs that have been evaluated."""
ENDED = tuple(f"{SUMMARY}.heldout.{name}" for name in ("fve", "l0", "ce_recovered_mean", "kl"))
"""Default metrics of runs that have not."""


def page() -> None:
    """Draw the page."""
    chosen, _ = heading.head("Evaluations")
    found = all_runs()
    every = [_evaluated(str(run.folder), _stamp(run), run) for run in found]
    for one in every:
        for problem in one.problems:
            st.error(escaping.plain(problem), icon=":material/error:")
    if not any(one.results or one.summary for one in every):
        _nothing(chosen)
    to = address.linker("features", **dict.fromkeys((*address.OF_RUN, "run")))
    navigation(title=chosen.name, point=to() + "&run=")
    shown = _filtered(every)
    rows = [row for one in shown for row in one.rows()]
    columns = overview.columns(rows)
    wanted, with_controls = _controls(columns)
    measured = {column.key for column in wanted}
    # a control of one evaluation has no figures for the others
    drawn = [row for row in rows if not row.control or (with_controls and measured & row.figures.keys())]
    _table(drawn, wanted, chosen)
    _hint(chosen, every)
    _opened(every, columns)
    _scatter(drawn, columns, chosen)
    _differences(shown, wanted)
    follow(found)


def _nothing(chosen: Run) -> None:
    command = f"sae eval {escaping.shell(chosen.folder)}"
    frame.unfinished(chosen, command)
    frame.nothing(f"No run has evaluations or held-out figures yet. Evaluate {chosen.name} with:", command)


def _hint(chosen: Run, every: Sequence[Evaluated]) -> None:
    """Suggest `sae eval` for a run that has only held-out figures."""
    if not next(one for one in every if one.name == chosen.name).results:
        name = escaping.plain(chosen.name)
        st.caption(f"{name} has only the held-out figures from the end of training. Run more evaluations with:")
        st.code(f"sae eval {escaping.shell(chosen.folder)}", language=None, wrap_lines=True)


def _stamp(run: Run) -> tuple[float | int, ...]:
    files = (run.folder / "evals").glob("*.json") if (run.folder / "evals").is_dir() else ()
    return (run.updated, *(stat for path in sorted(files) for stat in (path.stat().st_mtime_ns, path.stat().st_size)))


@st.cache_resource(max_entries=512, show_spinner=False)
def _evaluated(folder: str, stamp: tuple[float | int, ...], _run: Run) -> Evaluated:  # noqa: ARG001
    return overview.of_run(_run)


def _filtered(every: Sequence[Evaluated]) -> list[Evaluated]:
    """Runs whose names contain all words of the filter."""
    words = st.query_params.get("find", "").casefold().split()
    return [one for one in every if all(word in one.name.casefold() for word in words)]


def _controls(columns: Sequence[Column]) -> tuple[list[Column], bool]:
    by_key = {column.key: column for column in columns}
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        st.text_input("Runs", **address.text("find"), placeholder="part of a name", width=200)
        keys = st.multiselect("Figures", list(by_key), **address.several("m", list(by_key)), width=520,
                              format_func=lambda key: tables.title(by_key[key]), placeholder="FVE, L0, CE recovered, KL")
        with_controls = st.toggle("controls", **address.flag("controls", default=True),
                                  help="The same figures for a random SAE, PCA and so on")
    keys = keys or [key for key in (*FIRST, *ENDED) if key in by_key] or list(by_key)[:4]
    return [by_key[key] for key in keys], with_controls


def _table(rows: Sequence[Row], columns: Sequence[Column], chosen: Run) -> None:
    sort = st.query_params.get("order")
    sort = sort if sort == "run" or sort in {column.key for column in columns} else None
    descending = (sort == "run") == (st.query_params.get("turned") == "true")
    to, here = address.linker("features"), address.linker(cell=None)

    def led(run: str) -> str:
        return to(**({} if run == chosen.name else address.of_run(run)))

    def sorted_by(key: str) -> str:
        return here(order=key, turned="true" if key == sort and st.query_params.get("turned") != "true" else None)

    def cell(run: str, key: str) -> str:
        return here(cell=f"{key}~{run}")

    if not rows:
        st.text("No run matches the filter.")
        return
    ordered = tables.ordered(rows, sort, descending=descending)
    st.html(tables.table(ordered, columns, sort=sort, descending=descending, link=led, sort_link=sorted_by, cell_link=cell,
                         selected=chosen.name))
    with st.container(horizontal=True):
        save.button("CSV", "evaluations.csv", lambda: tables.as_csv(ordered), help="All figures of these runs")
        save.button("JSON", "evaluations.json", lambda: tables.as_json(ordered))


def _opened(every: Sequence[Evaluated], columns: Sequence[Column]) -> None:
    """Details of the clicked figure: its definition, how it was measured, and its values for other seeds and controls."""
    key, _, name = st.query_params.get("cell", "").partition("~")
    column = next((column for column in columns if column.key == key), None)
    one = next((one for one in every if one.name == name), None)
    metric = None if one is None else one.rows()[0].figures.get(key)
    if column is None or one is None or metric is None:
        return
    with st.container(border=True, key="figure"):
        closed = escape(address.link(cell=None), quote=True)
        st.header(escaping.plain(f"{tables.title(column)} of {name}"))
        st.html(f'<div class="sx"><a href="{closed}">Close</a> · <button data-copy="link">copy link</button></div>')
        found = one.results.get(column.eval)
        same = [other for other in overview.same_training(one, every) if column.eval in other.results] if found else [one]
        seeds = [(other.name, other.rows()[0].figures.get(key)) for other in same]
        st.html(tables.details(column, found, metric, seeds))
        if found is not None:
            command = f"sae eval {escaping.shell(one.folder)} {shlex.join(overview.arguments(found))}"
            st.code(command, language=None, wrap_lines=True)
            path = one.folder / "evals" / f"{column.eval}.json"
            save.button("This evaluation (JSON)", f"{column.eval}.json", lambda: path.read_text(encoding="utf-8"))


def _scatter(rows: Sequence[Row], columns: Sequence[Column], chosen: Run) -> None:
    keys = [column.key for column in columns]
    if len(keys) < 2:
        return
    by_key = {column.key: column for column in columns}
    titles = {key: f"{tables.title(column)} ({column.unit})" for key, column in by_key.items()}
    first = "core.sparsity.l0" if "core.sparsity.l0" in keys else ENDED[1] if ENDED[1] in keys else keys[0]
    second = "core.reconstruction.fve" if "core.reconstruction.fve" in keys else ENDED[0] if ENDED[0] in keys else keys[1]
    st.header("One figure against another")
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        x = st.selectbox("x", keys, **address.choice("x", keys, default=first), width=260, format_func=titles.__getitem__)
        log_x = st.toggle("log x", **address.flag("logx"))
        y = st.selectbox("y", keys, **address.choice("y", keys, default=second), width=260, format_func=titles.__getitem__)
        log_y = st.toggle("log y", **address.flag("logy"))
    assert x is not None and y is not None
    ways = " · ".join(f"{tables.title(by_key[key])}: {tables.BETTER[by_key[key].direction]}" for key in (x, y))
    st.plotly_chart(
        scatter.figure(rows, x, y, x_title=titles[x], y_title=titles[y], log_x=log_x, log_y=log_y, selected=chosen.name),
        key="runs against each other", alt=scatter.alt(rows, x, y, titles), config=png_options("evaluations"))
    st.caption(f"Click a point to open its run. {ways}.")


def _differences(shown: Sequence[Evaluated], columns: Sequence[Column]) -> None:
    """Paired differences of each run to a base run, on the same rows."""
    able = [one for one in shown if one.results]
    if len(able) < 2:
        return
    names = [one.name for one in able]
    st.header("Paired differences")
    base_name = st.selectbox("Compared with", names, **address.choice("base", names, default=names[0]), width=320,
                             format_func=escaping.visible)
    base = next(one for one in able if one.name == base_name)
    found = {}
    for one in able:
        if one is not base:
            sides = [overview.same_training(side, able) for side in (base, one)]
            # two seeds of the same training are compared directly
            sides = [[base], [one]] if base in sides[1] else sides
            found[one.name] = _compared(tuple(map(_key, sides[0])), tuple(map(_key, sides[1])), sides)
    st.html(tables.differences(found, base.name, [column for column in columns if column.eval != SUMMARY]))
    st.caption("Both sides are measured on the same rows; intervals are for the difference. Runs that differ only in their "
               "seeds form one side; with a single seed per side, another seed may give another result.")


def _key(one: Evaluated) -> tuple[str, ...]:
    return (one.name, *(str(result.inputs.get("id")) for result in one.results.values()))


@st.cache_data(max_entries=512, show_spinner=False)
def _compared(
    a: tuple[tuple[str, ...], ...], b: tuple[tuple[str, ...], ...], _sides: Sequence[Sequence[Evaluated]]  # noqa: ARG001
) -> Any:
    from analysis.evals.compare import compared

    every = [one for side in _sides for one in side]
    first = every[0].results
    same = {name for name in first if all(
        name in one.results and one.results[name].inputs.get("rows") == first[name].inputs.get("rows") for one in every)}
    if not same:
        return "measured on different rows, so nothing can be paired"
    return compared(*([{name: one.results[name] for name in same} for one in side] for side in _sides))
