"""The page Features: all of them as a table, a scatter or a map; found by label, by text or by prompt."""

import math
from collections.abc import Callable, Sequence

import streamlit as st

from analysis.export import cards
from analysis.index.queries import firing
from analysis.render import tokens
from analysis.render.figures import scatter
from analysis.render.tables import features as feature_table
from analysis.render.text import count, number
from dashboard import escaping
from dashboard.components import save
from dashboard.components.navigation import navigation
from dashboard.heading import choose
from dashboard.state import address, order
from dashboard.state.model_results import encoded
from dashboard.state.order import Order
from dashboard.state.selection import Selection, names, provenance
from sae.errors import SaescopeError

N_ROWS = 50
"""Features on one page of the table: real HTML, so a few at a time."""
N_FOUND = 100
"""Features that a search in texts, or a prompt, finds at most."""
BY = {"label": "labels, notes, tags", "text": "text", "regex": "regular expression", "prompt": "prompt"}
N_HITS = 50
AXES = ("density", "max", "mean", "kurtosis", "skew", "decoder_norm", "decoder_cos", "coact_jaccard", "entropy",
        "first_token_share", "n_contexts")


def page() -> None:
    """Draw the page."""
    chosen = choose("Features")
    found, extra = _search(chosen)
    view = _controls(chosen)
    now = order.of(chosen, found)
    if now.problem:
        st.error(escaping.plain(now.problem), icon=":material/filter_alt_off:")
    to = _to()
    walk = [to(feature) for feature in now.features[:N_ROWS]]
    navigation(keys={"r": address.link("feature", f="random")}, walk=walk, at=-1)
    if view != "table":
        _drawing(chosen, now, view)
    _table(chosen, now, extra)
    with st.expander("Provenance", icon=":material/fingerprint:"):
        from analysis.render.feature import provenance as drawn

        st.html(f'<div class="sx sx-open">{drawn(provenance(chosen))}</div>')


def _controls(chosen: Selection) -> str:
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        view: str = st.segmented_control(
            "View", ["table", "scatter", "map"], required=True, format_func=str.capitalize, width="content",
            **address.choice("view", ["table", "scatter", "map"], default="table", clears=("box",)))
        st.text_input(
            "Filter", **address.text("filter", clears=("p",)), placeholder="density > 0.1%, kurtosis >= 5, dead = false",
            help="Columns: " + ", ".join(chosen.index.stats.column_names), width=380)
        lists = list(chosen.labels.lists())
        if lists:
            st.selectbox("List", ["", *lists], **address.choice("list", ["", *lists], default="", clears=("p",)), width=200,
                         format_func=lambda name: escaping.visible(name) if name else "all features")
    return view or "table"


def _search(chosen: Selection) -> tuple[list[int] | None, dict[int, str] | None]:
    """The fields of the search; the features that it finds and why, None where nothing is searched for."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        text = st.text_input("Search", **address.text("q", clears=("p",)), icon=":material/search:", width=480,
                             placeholder="what features mean, or what they fire on  ( / )")
        by = st.segmented_control("in", list(BY), required=True, format_func=BY.__getitem__, width="content",
                                  **address.choice("by", list(BY), default="label", clears=("p",)))
    if not text.strip():
        return None, None
    try:
        if by == "label":
            matches = chosen.labels.search(text)
            return list(dict.fromkeys(match.feature for match in matches)), None
        if by == "prompt":
            top = encoded(chosen.run.folder, text).top(N_FOUND)
            st.html(f'<div class="sx">The {len(top)} strongest features of this prompt. '
                    f'<a href="{_escaped(address.link("prompt", text=text))}">By token</a></div>')
            return [one.feature for one in top], {one.feature: number(one.value) for one in top}
        return _in_contexts(chosen, text, regex=by == "regex")
    except SaescopeError as error:
        st.error(escaping.plain(str(error)), icon=":material/error:")
        return [], None


def _in_contexts(chosen: Selection, text: str, *, regex: bool) -> tuple[list[int], dict[int, str]]:
    """Features that fire where the text stands in the corpus; the places are shown above them."""
    hits = chosen.index.search(text, regex=regex, n=N_HITS)
    fires = firing.at_hits(chosen.index, hits, N_FOUND)
    first = "the first " if len(hits) == N_HITS else ""
    st.text(f"Found at {first}{count(len(hits), 'place')}; below, the features that fire there and seldom elsewhere first.")
    rows = []
    for hit in hits[:8]:
        start, stop = max(0, hit.position - 12), min(chosen.index.n_ctx, hit.position + hit.length + 12)
        values = [float(hit.position <= i < hit.position + hit.length) for i in range(start, stop)]
        heat = tokens.heat(chosen.index.pieces(hit.seq, start, stop), values, scale=2.0)
        rows.append(f'<div class="sx-ex"><span class="sx-val sx-quiet">{hit.seq}</span>{heat}</div>')
    if rows:
        with st.expander(f"{len(rows)} of these places", expanded=False):
            st.html(f'<div class="sx">{"".join(rows)}</div>')
    return [one.feature for one in fires], {
        one.feature: f"{one.n_hits} of {len(hits)}, to {number(one.value)}" for one in fires}


def _table(chosen: Selection, now: Order, extra: dict[int, str] | None) -> None:
    features: Sequence[int] = now.features
    ranked = extra is not None and "sort" not in st.query_params
    if extra is not None and ranked:
        place = {feature: i for i, feature in enumerate(extra)}
        features = sorted(features, key=lambda f: place[f])
    n_pages = max(1, math.ceil(len(features) / N_ROWS))
    _summary(chosen, features)
    if not features:
        st.text("No feature fits. Take a condition away, or search for something else.")
        return
    asked = st.query_params.get("p", "1")
    page_no = int(asked) if asked.isdecimal() and 1 <= int(asked) <= n_pages else 1
    if n_pages > 1:
        st.html(_pages(page_no, n_pages))
    part = features[(page_no - 1) * N_ROWS : page_no * N_ROWS]
    st.html(feature_table.table(
        order.rows(chosen, part), sort="" if ranked else now.sort, descending=now.descending, names=names(chosen),
        link=_to(), sort_link=order.sort_link(now), extra=extra,
        extra_title="In the prompt" if st.query_params.get("by") == "prompt" else "There", without=order.constant(chosen)))


def _pages(now: int, n_pages: int) -> str:
    """Links to the first, the last and the nearest pages of the table."""
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
        n_dead = sum(index.stats["dead"].to_pylist()) if index.d_sae < 1e6 else 0
        whole = f"{count(index.d_sae, 'feature')} · {count(index.n_rows, 'token')}, index {index.name}"
        st.text(f"{part}{whole} · {n_dead:,} never fire", width="stretch")
        labels = names(chosen).labels
        save.button("CSV", "features.csv", lambda: feature_table.as_csv(order.rows(chosen, features), labels),
                    help="These features with all their statistics")
        save.button("JSON", "features.json", lambda: feature_table.as_json(order.rows(chosen, features), labels))
        save.button("Pages", "features.html", lambda: exported(chosen, features),
                    help=f"At most {cards.EXPORTABLE} features in one file that opens without Python and without a network")


def exported(chosen: Selection, features: Sequence[int]) -> str:
    """The features' cards as one file."""
    from analysis.render.export import page as whole

    listed = st.query_params.get("list")
    return whole(cards.cards(chosen.index, features, chosen.labels), listed or f"Features of {chosen.run.name}")


def _drawing(chosen: Selection, now: Order, view: str) -> None:
    stats = chosen.index.stats
    known = [name for name in AXES if name in stats.column_names and stats[name].null_count < len(stats)
             and name not in order.constant(chosen)]
    if view == "scatter":
        x, y, log_x, log_y = _axes(known)
    else:
        x, y, log_x, log_y = *order.MAPPED, False, False
    features = list(stats["feature"].to_pylist()) if order.box() else list(now.features)
    part = stats.take(features)
    xs, ys = (part[name].to_numpy().astype(float).tolist() for name in (x, y))
    brief = names(chosen).brief()
    texts = [brief[feature] for feature in features]
    if view == "scatter":
        titles = feature_table.TITLES
        drawn = scatter.figure(features, xs, ys, x_title=titles.get(x, x), y_title=titles.get(y, y), log_x=log_x,
                               log_y=log_y, names=texts)
        alt = scatter.alt(xs, ys, x, y)
    else:
        depth = [math.log10(value) if value else math.nan for value in part["density"].to_pylist()]
        drawn = scatter.layout_map(features, xs, ys, names=texts, depth=depth, depth_title="log₁₀ density")
        alt = f"Map of {len(features)} decoder directions: near points are near directions; colour is the density."
    st.plotly_chart(
        drawn, key="points", alt=alt, on_select=lambda: _selected(chosen, x, y), selection_mode=("points", "box"),
        config=scatter.png_options(f"{chosen.run.name}-{view}"))
    if order.box():
        st.html(f'<div class="sx">Only the features in the box. <a href="{_escaped(address.link(box=None, p=None))}">'
                "Show all again</a></div>")
    else:
        st.caption("Draw a box to list the features in it; click a point to open it.")
    leaving = st.session_state.pop("_open", None)
    if leaving is not None:
        address.follow(_to()(leaving))
        st.rerun()


def _axes(known: Sequence[str]) -> tuple[str, str, bool, bool]:
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        x = st.selectbox("x", known, **address.choice("x", known, default="density", clears=("box",)), width=200,
                         format_func=lambda name: feature_table.TITLES.get(name, name))
        log_x = st.toggle("log x", **address.flag("logx", default=True))
        y = st.selectbox("y", known, **address.choice("y", known, default="max", clears=("box",)), width=200,
                         format_func=lambda name: feature_table.TITLES.get(name, name))
        log_y = st.toggle("log y", **address.flag("logy", default=True))
    return x, y, log_x, log_y


def _selected(chosen: Selection, x: str, y: str) -> None:
    """A box goes into the URL as the bounds of the features in it; a single point opens its feature."""
    selection = st.session_state["points"]["selection"]
    ids = [int(point["customdata"][0] if isinstance(point["customdata"], list) else point["customdata"])
           for point in selection["points"] if point.get("customdata") is not None]
    if not ids:
        return
    if len(ids) == 1 and not selection.get("box"):
        st.session_state["_open"] = ids[0]
        return
    part = chosen.index.stats.take(ids)
    bounds = [f(part[name].to_pylist()) for name in (x, y) for f in (min, max)]
    address.update(box="~".join([x, y, *(repr(float(bound)) for bound in bounds)]), p=None)


def _to() -> Callable[[int], str]:
    """What spells a feature's address, which keeps the table's order."""
    to = address.linker("feature", **order.state())
    return lambda feature: to(f=feature)


def _escaped(href: str) -> str:
    from html import escape

    return escape(href, quote=True)
