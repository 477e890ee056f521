"""Evaluations of several runs as a table with intervals, controls below their runs, and paired differences."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from analysis.render.text import attribute, cell, inner, number, shown

if TYPE_CHECKING:
    from analysis.evals.common.result import EvalResult, Metric
    from analysis.evals.compare import Compared
    from analysis.evals.overview import Column, Row

ARROWS = {"higher": "↑", "lower": "↓", "none": ""}
ABBREVIATIONS = ("ce", "fve", "kl", "l0")
BETTER = {"higher": "higher is better", "lower": "lower is better", "none": "neither way is better"}


def title(column: "Column") -> str:
    """Short title of a metric, such as `core FVE`."""
    words = " ".join(word.upper() if word in ABBREVIATIONS else word for word in column.name.split("_"))
    return f"{column.eval} {words}"


def told(column: "Column") -> str:
    """Description of a metric: formula, unit and direction."""
    return f"{column.formula} ({column.unit}; {BETTER[column.direction]})"


def table(
    rows: "Sequence[Row]", columns: "Sequence[Column]", *, sort: str | None, descending: bool, link: Callable[[str], str],
    sort_link: Callable[[str], str], cell_link: Callable[[str, str], str], selected: str | None = None,
) -> str:
    """Render the table.

    Args:
        rows: runs and their controls, in order.
        columns: the metrics.
        sort: key of the sort column; `run` for names.
        descending: largest first.
        link: URL of a run.
        sort_link: URL that sorts by a column.
        cell_link: URL of a run's metric.
        selected: the run to highlight.
    """
    heads = _head("run", "Run", "Links to its features", sort, descending, sort_link)
    heads += "".join(
        _head(c.key, f"{title(c)} {ARROWS[c.direction]}".strip(), told(c), sort, descending, sort_link) for c in columns)
    body = "".join(_row(row, columns, link, cell_link, selected) for row in rows)
    return (
        '<div class="sx sx-scroll" tabindex="0" role="region" aria-label="Evaluations"><table class="sx-list sx-features">'
        f'<caption class="sx-hidden">Figures of runs, with 95 % intervals</caption><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def ordered(rows: "Sequence[Row]", sort: str | None, *, descending: bool) -> "list[Row]":
    """Sort runs by a metric, those without it last; controls stay below their run."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.run, []).append(row)
    if sort is None:
        return [row for group in groups.values() for row in group]

    def own(run: str) -> float | None:
        metric = groups[run][0].figures.get(sort)
        return None if metric is None else metric.value

    known = [run for run in groups if own(run) is not None]
    names = sorted(groups, reverse=descending) if sort == "run" else [
        *sorted(known, key=lambda run: own(run) or 0.0, reverse=descending), *(run for run in groups if run not in known)]
    return [row for run in names for row in groups[run]]


def _head(key: str, text: str, means: str, sort: str | None, descending: bool, sort_link: Callable[[str], str]) -> str:
    mark = (" ▾" if descending else " ▴") if key == sort else ""
    said = f' aria-sort="{"descending" if descending else "ascending"}"' if mark else ""
    kind = "" if key == "run" else ' class="sx-num"'
    href = escape(sort_link(key), quote=True)
    return (f'<th scope="col" title="{attribute(means, spaces=False, limit=None)}"{kind}{said}>'
            f'<a href="{href}">{inner(text)}{mark}</a></th>')


def _row(
    row: "Row", columns: "Sequence[Column]", link: Callable[[str], str], cell_link: Callable[[str, str], str],
    selected: str | None,
) -> str:
    cells = "".join(_cell(row, column, cell_link) for column in columns)
    if row.control:
        return f'<tr class="sx-control"><th scope="row" class="sx-name">· {shown(row.control)}</th>{cells}</tr>'
    here = " aria-current=true" if row.run == selected else ""
    name = f'<a href="{escape(link(row.run), quote=True)}">{shown(row.run, limit=120)}</a>'
    return f'<tr{here}><th scope="row" class="sx-name">{name}</th>{cells}</tr>'


def _cell(row: "Row", column: "Column", cell_link: Callable[[str, str], str]) -> str:
    metric = row.figures.get(column.key)
    if metric is None or metric.value is None:
        return '<td class="sx-num">–</td>'
    text = f"{number(metric.value)}{interval(metric)}"
    if row.control:
        return f'<td class="sx-num">{text}</td>'
    href = escape(cell_link(row.run, column.key), quote=True)
    said = f"{attribute(title(column), spaces=False)} of {attribute(row.run)}"
    return f'<td class="sx-num"><a href="{href}" aria-label="{said}">{text}</a></td>'


def interval(metric: "Metric") -> str:
    """A metric's interval in small print; empty if it has none."""
    if metric.low is None or metric.high is None:
        return ""
    return f"<small>{number(metric.low)} … {number(metric.high)}</small>"


def differences(found: "Mapping[str, Sequence[Compared] | str]", base: str, columns: "Sequence[Column]") -> str:
    """Paired differences of runs to a base run, on the same rows.

    Args:
        found: comparisons by run, or the reason why there are none.
        base: the run to compare with.
        columns: metrics to show.
    """
    heads = "".join(f'<th scope="col" class="sx-num">{inner(title(c))} {ARROWS[c.direction]}</th>' for c in columns)
    body = "".join(_difference_row(run, one, columns) for run, one in found.items())
    return (
        '<div class="sx sx-scroll" tabindex="0" role="region" aria-label="Differences"><table class="sx-list sx-features">'
        f'<caption class="sx-hidden">Differences to {inner(base)}</caption><thead><tr><th scope="col">minus '
        f"{shown(base)}</th>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _difference_row(run: str, found: "Sequence[Compared] | str", columns: "Sequence[Column]") -> str:
    head = f'<th scope="row" class="sx-name">{shown(run, limit=120)}</th>'
    if isinstance(found, str):
        return f'<tr>{head}<td colspan="{max(1, len(columns))}">{inner(found, limit=None)}</td></tr>'
    by_key = {f"{one.eval}.{one.group}.{one.name}": one for one in found}
    return f"<tr>{head}{''.join(_gap(by_key.get(column.key)) for column in columns)}</tr>"


def _gap(one: "Compared | None") -> str:
    if one is None:
        return '<td class="sx-num">–</td>'
    gap = one.difference
    bounds = "" if gap.low is None or gap.high is None else f"<small>{signed(gap.low)} … {signed(gap.high)}</small>"
    verdict = {"B better": "better", "A better": "worse"}.get(one.verdict, one.verdict)
    return f'<td class="sx-num">{signed(gap.value)}{bounds}<small>{inner(verdict, limit=None)}</small></td>'


def signed(value: float) -> str:
    """A number with an explicit sign."""
    return f"+{number(value)}" if value > 0 else number(value)


def details(
    column: "Column", found: "EvalResult | None", metric: "Metric", seeds: "Sequence[tuple[str, Metric | None]]"
) -> str:
    """Details of one metric of one run: definition, controls, and other seeds of the same training.

    Args:
        column: the metric.
        found: its evaluation; None if it is from a summary.
        metric: its value.
        seeds: name and value for all runs that differ only in their seeds, including this one.
    """
    units = None if found is None else found.found.units.get(metric.of)
    kind = "units" if units is None else f"{units.kind}s"
    items = [
        ("value", f"{number(metric.value)} {column.unit}"),
        ("95 % interval", f"{number(metric.low)} to {number(metric.high)}" if metric.low is not None else "none"),
        ("over", f"{metric.n:,} {kind}" if metric.n else "–"), ("direction", BETTER[column.direction]),
        ("formula", column.formula),
    ]
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{inner(value, limit=None)}</dd></div>" for name, value in items)
    parts = [f'<dl class="sx-facts">{cells}</dl>']
    if found is not None:
        parts.append(_controls(column, found))
        parts += [f'<p class="sx-quiet">{inner(note, limit=None)}</p>' for note in found.found.notes]
    if len(seeds) > 1:
        rows = "".join(
            f'<tr><th scope="row">{shown(name)}</th><td class="sx-num">'
            f"{number(one.value) if one is not None else '–'}</td></tr>" for name, one in seeds)
        parts.append(f'<h3>Seeds of this training</h3><table class="sx-list"><tbody>{rows}</tbody></table>')
    else:
        parts.append('<p class="sx-quiet">One seed: variation between seeds is unknown.</p>')
    return f'<div class="sx" data-figure="{attribute(column.key)}">{"".join(parts)}</div>'


def _controls(column: "Column", found: "EvalResult") -> str:
    from analysis.evals.compare import against_controls, better_than_nothing

    gaps = against_controls(found, column.group, column.name)
    rows = "".join(
        f'<tr><th scope="row">{shown(name)}</th><td class="sx-num">{signed(gap.value)}</td><td class="sx-num">'
        f"{'' if gap.low is None or gap.high is None else f'{signed(gap.low)} … {signed(gap.high)}'}</td></tr>"
        for name, gap in gaps.items())
    better = better_than_nothing(found, column.group, column.name)
    beyond = ("Whether it beats its controls is unknown." if better is None else
              f"It {'beats' if better else 'does not beat'} every control.")
    lacking = ""
    if found.lacking:
        lacking = f" Missing: {', '.join(map(inner, found.lacking))}; add them with <code>sae eval --controls</code>."
    head = '<h3>Minus its controls</h3><table class="sx-list" style="max-width:34rem"><tbody>'
    return f"{f'{head}{rows}</tbody></table>' if rows else ''}<p>{beyond}{lacking}</p>"


def as_csv(rows: "Sequence[Row]") -> str:
    """One line per metric and row; names are JSON strings (docs/index-format.md, CSV files)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", "control", "figure", "value", "low", "high", "unit", "direction", "formula", "n"])
    for row in rows:
        for key, metric in row.figures.items():
            writer.writerow([
                cell(row.run), cell(row.control), cell(key), metric.value, metric.low, metric.high, cell(metric.unit),
                metric.direction, cell(metric.formula), metric.n,
            ])
    return out.getvalue()


def as_json(rows: "Sequence[Row]") -> str:
    """The same as a list of objects."""
    return json.dumps([
        {"run": row.run, "control": row.control, "figures": {
            key: {k: v for k, v in metric.plain().items() if k != "pseudo"} for key, metric in row.figures.items()}}
        for row in rows], indent=1, ensure_ascii=False)
