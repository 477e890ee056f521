"""A table of features in plain HTML, so that it can be searched, copied, read by screen readers and used by keyboard."""

import csv
import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from analysis.render import names as named
from analysis.render.feature import Link, percent
from analysis.render.tables.evaluations import ARROWS, BETTER
from analysis.render.text import cell, count, number, shown

if TYPE_CHECKING:
    from analysis.evals.common.result import PerFeature
    from analysis.labels.names import Name


@dataclass(frozen=True)
class Column:
    """A column of the table."""

    name: str
    """Name in the statistics."""
    title: str
    help: str
    kind: str = "number"
    """`number`, `share`, `count`, `text` of tokens, or `name`."""


COLUMNS = (
    Column("density", "Density", "Share of tokens it fires on", "share"),
    Column("n_active", "Fires", "Tokens it fires on", "count"),
    Column("max", "Max", "Its largest value, a length in the model's units"),
    Column("mean", "Mean", "Mean of its active values"),
    Column("kurtosis", "Kurtosis", "Excess kurtosis of its active values"),
    Column("decoder_norm", "Norm", "Norm of its decoder row before normalisation"),
    Column("decoder_cos", "Cosine", "Cosine with the nearest other decoder row"),
    Column("coact_jaccard", "Together", "Jaccard index with the feature it fires with most"),
    Column("first_token_share", "At start", "Share of its fires on the first token of a context", "share"),
    Column("entropy", "Entropy", "Entropy of the tokens it fires on, weighted by value, in bits"),
    Column("top_token", "Top token", "The token it fires on most", "text"),
    Column("promoted_token", "Promotes", "The token whose direct logit is largest", "text"),
)
TITLES = {"feature": "Feature", "label": "Name"} | {column.name: column.title for column in COLUMNS}


def columns_of(measured: "Mapping[str, PerFeature]") -> list[Column]:
    """Columns for per-feature evaluation results, with an arrow for the better direction."""
    return [
        Column(name, f"{one.title} {ARROWS[one.direction]}".strip(),
               f"{one.formula} ({one.unit}; {BETTER[one.direction]}); in filters: {name}",
               "name" if isinstance(one.values, tuple) else "share" if one.unit == "share" else "number")
        for name, one in measured.items()]


def table(
    rows: Sequence[Mapping[str, Any]], *, sort: str, descending: bool, names: "Mapping[int, Name]", link: Link,
    sort_link: Callable[[str], str] | None = None, measured: Sequence[Column] = (),
    extra: Mapping[int, str] | None = None, extra_title: str = "", without: Collection[str] = (),
    selected: int | None = None,
) -> str:
    """Render the table, without columns that are empty in all rows.

    Args:
        rows: features with their statistics, in order.
        sort: the sort column; "" for another order.
        descending: largest first.
        names: feature names.
        link: URL of a feature.
        sort_link: URL that sorts by a column; None for no links.
        measured: columns of evaluation results.
        extra: texts for an extra column.
        extra_title: its title.
        without: columns to omit.
        selected: the feature to highlight.
    """
    columns = [column for column in (*COLUMNS, *measured)
               if column.name not in without and any(row.get(column.name) is not None for row in rows)]
    heads = [_head("feature", "Feature", "Its number", False, sort, descending, sort_link),
             _head("label", "Name", "Its label, else the tokens that it fires on", False, sort, descending, sort_link)]
    if extra is not None:
        heads.append(f'<th scope="col" class="sx-num">{escape(extra_title)}</th>')
    heads += [_head(c.name, c.title, c.help, c.kind not in ("text", "name"), sort, descending, sort_link) for c in columns]
    body = "".join(_row(row, columns, names, link, extra, selected) for row in rows)
    return (
        '<div class="sx sx-scroll" tabindex="0" role="region" aria-label="Features"><table class="sx-list sx-features">'
        f'<caption class="sx-hidden">{count(len(rows), "feature")}, with statistics</caption>'
        f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _head(
    name: str, title: str, means: str, is_number: bool, sort: str, descending: bool, sort_link: Callable[[str], str] | None
) -> str:
    mark = (" ▾" if descending else " ▴") if name == sort else ""
    said = f' aria-sort="{"descending" if descending else "ascending"}"' if mark else ""
    text = f"{escape(title)}{mark}"
    inside = text if sort_link is None else f'<a href="{escape(sort_link(name), quote=True)}">{text}</a>'
    kind = ' class="sx-num"' if is_number else ""
    return f'<th scope="col" title="{escape(means, quote=True)}"{kind}{said}>{inside}</th>'


def _row(
    row: Mapping[str, Any], columns: Sequence[Column], names: "Mapping[int, Name]", link: Link,
    extra: Mapping[int, str] | None, selected: int | None,
) -> str:
    feature = int(row["feature"])
    href = link(feature)
    name = f"#{feature}" if href is None else f'<a href="{escape(href, quote=True)}">#{feature}</a>'
    label = named.name(names[feature]) if feature in names else ""
    why = shown(extra[feature], limit=40) if extra and feature in extra else ""
    more = "" if extra is None else f'<td class="sx-num">{why}</td>'
    cells = "".join(_cell(column, row.get(column.name)) for column in columns)
    here = " aria-current=true" if feature == selected else ""
    return f'<tr{here}><th scope="row">{name}</th><td class="sx-name">{label}</td>{more}{cells}</tr>'


def _cell(column: Column, value: Any) -> str:
    if column.kind == "text":
        return f"<td class=\"sx-word\">{shown(value, spaces=True, limit=20) if value is not None else ''}</td>"
    if column.kind == "name":
        return f'<td class="sx-name">{shown(value, limit=30) if value is not None else ""}</td>'
    if value is None:
        return '<td class="sx-num">–</td>'
    text = percent(value) if column.kind == "share" else f"{value:,}" if column.kind == "count" else number(value)
    return f'<td class="sx-num">{text}</td>'


def as_csv(rows: Sequence[Mapping[str, Any]], labels: Mapping[int, str]) -> str:
    """Statistics and labels, one line per feature; texts are JSON strings (docs/index-format.md, CSV files)."""
    columns = [name for name in (rows[0] if rows else {}) if name != "feature"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["feature", "label", *columns])
    for row in rows:
        cells = (row[name] for name in columns)
        label = cell(labels[row["feature"]]) if row["feature"] in labels else ""
        writer.writerow([row["feature"], label, *(cell(one) if isinstance(one, str) else one for one in cells)])
    return out.getvalue()


def as_json(rows: Sequence[Mapping[str, Any]], labels: Mapping[int, str]) -> str:
    """The same as a list of objects."""
    return json.dumps([{**row, "label": labels.get(row["feature"])} for row in rows], indent=1, ensure_ascii=False)
