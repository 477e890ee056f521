"""The Features page: a table, scatter plot or map of all features, with search by label, text or prompt."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

import streamlit as st

from analysis.export import cards
from analysis.index.types import Hit
from analysis.render import feature as card
from analysis.render import tokens
from analysis.render.figures import scatter
from analysis.render.tables import features as feature_table
from analysis.render.text import count, shown
from dashboard import escaping
from dashboard.components import save
from dashboard.components.navigation import navigation
from dashboard.heading import choose
from dashboard.state import address, order
from dashboard.state.feature_statistics import statistics
from dashboard.state.order import Order
from dashboard.state.search import BY, Found
from dashboard.state.selection import Selection, names, provenance

N_SHOWN = 8
"""Matches shown for a text search."""
CLEARS = ("p", "sort", "asc")
NEVER = ("Here: on no token of this index. Dead in training: no fire in the last dead window of training rows, so a rare "
         "feature can be dead there and still fire here.")
AXES = ("density", "max", "mean", "kurtosis", "skew", "decoder_norm", "decoder_cos", "coact_jaccard", "entropy",
        "first_token_share", "n_contexts")


def page() -> None:
    """Draw the page."""
    chosen = choose("Features")
    _search()
    view = _controls(chosen)
    now = order.of(chosen)
    to = _to()
    walk = [to(feature) for feature in now.features[:order.N_PAGE]]
    navigation(keys={"r": address.link("feature", f="random")}, walk=walk, at=-1, point=to("") + "&f=")
    if now.problem:
        st.error(escaping.plain(now.problem), icon=":material/filter_alt_off:")
    if now.found is not None:
        _told(chosen, now, now.found)
    if view != "table":
        _drawing(chosen, view)
    _table(chosen, now)
    st.html(f'<div class="sx">{card.provenance(provenance(chosen))}</div>')


def _controls(chosen: Selection) -> str:
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        view: str = st.segmented_control(
            "View", ["table", "scatter", "map"], required=True, format_func=str.capitalize, width="content",
            **address.choice("view", ["table", "scatter", "map"], default="table", clears=("box",)))
        st.text_input(
            "Filter", **address.text("filter", clears=("p",)), placeholder="density > 0.1%, kurtosis >= 5, dead = false",
            help="Comparisons of a column with a number, separated by commas; quote text: "
            "`top_token = \" the\"`. Columns: " + ", ".join(statistics(chosen).table.column_names), width=380)
        lists = list(chosen.labels.lists())
        if lists:
            st.selectbox("List", ["", *lists], **address.choice("list", ["", *lists], default="", clears=("p",)), width=200,
                         format_func=lambda name: escaping.visible(name) if name else "all features")
    return view or "table"


def _search() -> None:
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        st.text_input("Search", **address.text("q", clears=CLEARS), icon=":material/search:", width=480,
                      placeholder="labels, or text that features fire on  ( / )")
        st.segmented_control("in", list(BY), required=True, format_func=BY.__getitem__, width="content",
                             **address.choice("by", list(BY), default="label", clears=CLEARS))


def _told(chosen: Selection, now: Order, found: Found) -> None:
    """Draw what was searched for, and matches in the texts."""
    links = []
    if found.features and now.sort:
        links.append(f'<a href="{_escaped(address.link(sort=None, asc=None, p=None))}">best first</a>')
    if st.query_params.get("by") == "prompt":
        links.append(f'<a href="{_escaped(address.link("prompt", text=st.query_params.get("q")))}">by token</a>')
    if found.said:
        st.html(f'<div class="sx">Found: {shown(found.said, limit=400)} {" · ".join(links)}</div>')
    if not names(chosen).labels and st.query_params.get("by", "label") == "label":
        command, texts = escape(f"sae label {escaping.shell(chosen.run.folder)}"), _escaped(address.link(by="text", p=None))
        st.html(f'<div class="sx">No labels yet: run <code>{command}</code>, '
                f'or <a href="{texts}">search the texts instead</a>.</div>')
    if found.hits:
        rows = [_place(chosen, hit) for hit in found.hits[:: max(1, len(found.hits) // N_SHOWN)][:N_SHOWN]]
        with st.expander(f"{len(rows)} of these occurrences", expanded=False):
            st.html(f'<div class="sx">{"".join(rows)}</div>')


def _place(chosen: Selection, hit: Hit) -> str:
    """One match in its context."""
    start, stop = max(0, hit.position - 12), min(chosen.index.n_ctx, hit.position + hit.length + 12)
    values = [float(hit.position <= i < hit.position + hit.length) for i in range(start, stop)]
    heat = tokens.heat(chosen.index.pieces(hit.seq, start, stop), values, scale=2.0)
    return f'<div class="sx-ex"><span class="sx-val sx-quiet">{hit.seq}</span>{heat}</div>'


def _table(chosen: Selection, now: Order) -> None:
    _summary(chosen, now.features)
    if not now.features:
        st.text("No features match. Remove a condition or change the search.")
        return
    n_pages = math.ceil(len(now.features) / order.N_PAGE)
    page_no = _page(now, n_pages)
    if n_pages > 1:
        st.html(_pages(page_no, n_pages))
    part = now.features[(page_no - 1) * order.N_PAGE : page_no * order.N_PAGE]
    found = now.found
    known = statistics(chosen)
    st.html(feature_table.table(
        order.rows(chosen, part), sort=now.sort, descending=now.descending, names=names(chosen), link=_to(),
        sort_link=order.sort_link(now, known.texts), measured=feature_table.columns_of(known.measured),
        extra=found.why if found and found.why else None,
        extra_title=found.why_title if found else "", without=order.constant(chosen), selected=_integer("f")))


def _page(now: Order, n_pages: int) -> int:
    """The table page in the URL; `p=f` is the page of the selected feature."""
    asked = st.query_params.get("p", "1")
    if asked == "f":
        return now.page_of(_integer("f"))
    return int(asked) if asked.isdecimal() and 1 <= int(asked) <= n_pages else 1


def _integer(key: str) -> int | None:
    text = st.query_params.get(key, "")
    return int(text) if text.isdecimal() and text.isascii() else None


def _pages(now: int, n_pages: int) -> str:
    """Links to the first, last and nearby pages of the table."""
    near = sorted({1, n_pages, *range(max(1, now - 2), min(n_pages, now + 2) + 1)})
    links = []
    for before, number_ in zip([0, *near], near, strict=False):
        links += ["…"] if number_ > before + 1 else []
        href = _escaped(address.link(p=number_ if number_ > 1 else None))
        links.append(f"<strong>{number_}</strong>" if number_ == now else f'<a href="{href}">{number_}</a>')
    return f'<nav class="sx sx-walk" aria-label="Pages of the table">{" ".join(links)}</nav>'


def _summary(chosen: Selection, features: Sequence[int]) -> None:
    index = chosen.index
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        part = f"{len(features):,} of " if len(features) < index.d_sae else ""
        whole = f"{count(index.d_sae, 'feature')} · {count(index.n_rows, 'token')}, index {index.name}"
        st.text(f"{part}{whole} · {_never(chosen)}", width="stretch", help=NEVER)
        labels = names(chosen).labels
        save.button("CSV", "features.csv", lambda: feature_table.as_csv(order.rows(chosen, features), labels),
                    help="These features with all statistics. Texts are JSON strings, so that no spreadsheet takes one for "
                    "a formula; docs/index-format.md shows how to read them with pandas")
        save.button("JSON", "features.json", lambda: feature_table.as_json(order.rows(chosen, features), labels))
        most = cards.EXPORTABLE
        some = features[:most]
        save.button("Pages" if len(features) <= most else f"Pages (first {most})", "features.html",
                    lambda: exported(chosen, some),
                    help=f"The features' pages in a single file that opens without Python or network access, up to {most}")


def _never(chosen: Selection) -> str:
    """Number of features that never fire here, and the share that was dead in training."""
    n_dead = sum(chosen.index.stats["dead"].to_pylist()) if chosen.index.d_sae < 1e6 else 0
    in_training = chosen.run.latest("dead")
    beside = "" if in_training is None else f" ({card.percent(in_training)} dead in training)"
    return f"{n_dead:,} never fire here{beside}"


def exported(chosen: Selection, features: Sequence[int]) -> str:
    """The features' cards as a single HTML file."""
    from analysis.render.export import page as whole

    listed = st.query_params.get("list")
    return whole(cards.cards(chosen.index, features, chosen.labels), listed or f"Features of {chosen.run.name}")


def _drawing(chosen: Selection, view: str) -> None:
    measured, stats = statistics(chosen).measured, statistics(chosen).table
    known = [name for name in (*AXES, *measured) if name in stats.column_names and stats[name].null_count < len(stats)
             and name not in (*order.constant(chosen), *statistics(chosen).texts)]
    titles = feature_table.TITLES | {column.name: column.title for column in feature_table.columns_of(measured)}
    if view == "scatter":
        x, y, log_x, log_y = _axes(known, titles)
    else:
        x, y, log_x, log_y = *order.MAPPED, False, False
    features = list(order.of(chosen, boxed=False).features)
    part = stats.take(features)
    xs, ys = (part[name].to_numpy().astype(float).tolist() for name in (x, y))
    brief = names(chosen).brief()
    texts = [brief[feature] for feature in features]
    if view == "scatter":
        drawn = scatter.figure(features, xs, ys, x_title=titles.get(x, x), y_title=titles.get(y, y), log_x=log_x,
                               log_y=log_y, names=texts, selected=_integer("f"), box=order.box())
        alt = scatter.alt(xs, ys, x, y)
    else:
        depth = [math.log10(value) if value else math.nan for value in part["density"].to_pylist()]
        drawn = scatter.layout_map(features, xs, ys, names=texts, depth=depth, depth_title="log₁₀ density",
                                   selected=_integer("f"), box=order.box())
        alt = f"Map of {len(features)} decoder directions: nearby points have similar directions; colour is density."
    st.plotly_chart(
        drawn, key="points", alt=alt, on_select=lambda: _selected(chosen, x, y), selection_mode="box",
        config=scatter.png_options(f"{chosen.run.name}-{view}"))
    if order.box():
        st.html(f'<div class="sx">Showing only features in the box. <a href="{_escaped(address.link(box=None, p=None))}">'
                "Show all again</a></div>")
    else:
        st.caption("Draw a box to list the features in it; click a point to open it.")


def _axes(known: Sequence[str], titles: Mapping[str, str]) -> tuple[str, str, bool, bool]:
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        x = st.selectbox("x", known, **address.choice("x", known, default="density", clears=("box",)), width=200,
                         format_func=lambda name: titles.get(name, name))
        log_x = st.toggle("log x", **address.flag("logx", default=True))
        y = st.selectbox("y", known, **address.choice("y", known, default="max", clears=("box",)), width=200,
                         format_func=lambda name: titles.get(name, name))
        log_y = st.toggle("log y", **address.flag("logy", default=True))
    return x, y, log_x, log_y


def _selected(chosen: Selection, x: str, y: str) -> None:
    """Write a box selection to the URL as the bounds of the features in it."""
    points = st.session_state["points"]["selection"]["points"]
    ids = [int(point["customdata"][0] if isinstance(point["customdata"], list) else point["customdata"])
           for point in points if point.get("customdata") is not None]
    if not ids:
        return
    part = statistics(chosen).table.take(ids)
    bounds = [f(part[name].to_pylist()) for name in (x, y) for f in (min, max)]
    address.update(box="~".join([x, y, *(repr(float(bound)) for bound in bounds)]), p=None)


def _to() -> Callable[[int | str], str]:
    """A function that returns a feature's URL with the table's order kept."""
    to = address.linker("feature")
    return lambda feature: to(f=feature)


def _escaped(href: str) -> str:
    return escape(href, quote=True)
