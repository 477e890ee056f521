"""A table of all runs in plain HTML, sorted through links, with progress bars."""

import time
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from analysis.render.feature import percent
from analysis.render.text import number, shown

COLUMNS = {
    "run": ("Run", "Links to its features", "text"),
    "status": ("Status", "Interrupted: no summary, and no log line for much longer than its usual interval", "text"),
    "through": ("Done", "Share of the training budget", "done"),
    "variant": ("Variant", "SAE variant", "text"),
    "d_sae": ("d_sae", "Number of features", "count"),
    "l0": ("L0", "Active features per row, held out (the training value until there is one)", "number"),
    "fve": ("FVE", "Fraction of variance explained on held-out rows", "share"),
    "fve_interval": ("95 % interval", "Of held-out FVE, over documents; none for fewer than 10", "range"),
    "dead": ("Dead", "Features that did not fire in the last dead window of training; – if it was shorter", "percent"),
    "silent": ("Silent", "Features that never fire on held-out rows", "percent"),
    "ce": ("CE recovered", "Against mean ablation; measured at the end of training", "share"),
    "ce_interval": ("95 % interval", "Of CE recovered, over documents; none for fewer than 10", "range"),
    "tokens": ("Tokens", "Training rows so far", "count"),
    "site": ("Site", "The hook that is read → the hook that is reconstructed", "text"),
    "updated": ("Last change", "In this machine's time zone", "time"),
}
"""Title, description and kind of each column."""
_LEFT = ("text", "done")


def table(
    rows: Sequence[Mapping[str, Any]], *, sort: str | None, descending: bool, link: Callable[[str], str],
    sort_link: Callable[[str], str],
) -> str:
    """Render the table.

    Args:
        rows: a value per column, None if unknown; `updated` in seconds since the epoch.
        sort: the sort column; None keeps the order of `rows`.
        descending: largest first.
        link: URL of a run.
        sort_link: URL that sorts by a column.
    """
    heads = "".join(_head(name, sort, descending, sort_link) for name in COLUMNS)
    body = "".join(_row(row, link) for row in rows)
    return (
        '<div class="sx sx-scroll sx-tall" tabindex="0" role="region" aria-label="Runs"><table class="sx-list sx-features">'
        f'<caption class="sx-hidden">{len(rows)} runs with their figures</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def ordered(rows: Sequence[Mapping[str, Any]], sort: str | None, *, descending: bool) -> list[Mapping[str, Any]]:
    """Sort rows by a column, those without a value last."""
    if sort is None:
        return list(rows)
    known = sorted((row for row in rows if row[sort] is not None), key=lambda row: row[sort], reverse=descending)
    return known + [row for row in rows if row[sort] is None]


def _head(name: str, sort: str | None, descending: bool, sort_link: Callable[[str], str]) -> str:
    title, means, kind = COLUMNS[name]
    mark = (" ↓" if descending else " ↑") if name == sort else ""
    said = f' aria-sort="{"descending" if descending else "ascending"}"' if mark else ""
    align = "" if kind in _LEFT else ' class="sx-num"'
    link = escape(sort_link(name), quote=True)
    return f'<th scope="col" title="{escape(means, quote=True)}"{align}{said}><a href="{link}">{title}{mark}</a></th>'


def _row(row: Mapping[str, Any], link: Callable[[str], str]) -> str:
    name = f'<a href="{escape(link(row["run"]), quote=True)}">{shown(row["run"], limit=120)}</a>'
    cells = "".join(_cell(COLUMNS[column][2], row[column]) for column in COLUMNS if column != "run")
    return f'<tr><th scope="row" class="sx-name">{name}</th>{cells}</tr>'


def _cell(kind: str, value: Any) -> str:
    if kind in _LEFT:
        return f"<td>{_done(value) if kind == 'done' else shown(value) if value else '–'}</td>"
    return f'<td class="sx-num">{"–" if value is None else _text(kind, value)}</td>'


def _done(through: float | None) -> str:
    if through is None:
        return "–"
    return f'{through:.0%}<span class="sx-bar sx-bar-p" style="width:{100 * through:.0f}%"></span>'


def _text(kind: str, value: Any) -> str:
    if kind == "range":
        return f"{value[0]:.3f} … {value[1]:.3f}"
    if kind == "time":
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(value))
    formats: dict[str, Callable[[Any], str]] = {
        "count": lambda n: f"{n:,}", "share": lambda x: f"{x:.3f}", "percent": percent, "number": number}
    return formats[kind](value)
