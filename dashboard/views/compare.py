"""The page Compare: two features of a run side by side, what they share, and where both fire."""

import streamlit as st

from analysis.index.queries.feature_pair import compare
from analysis.render import cofire
from analysis.render import feature_pair as drawn
from analysis.render.feature import header
from analysis.render.figures import histogram
from dashboard.components.drawing import drawing
from dashboard.components.navigation import navigation
from dashboard.heading import choose
from dashboard.state import address
from dashboard.state.selection import Selection, names

N_EXAMPLES = 8


def page() -> None:
    """Draw the page."""
    chosen = choose("Compare")
    a, b = _which(chosen)
    _walk(chosen, a, b)
    labels = names(chosen)
    found = compare(chosen.index, a, b)
    to = address.linker("feature")

    def opened(feature: int) -> str:
        return to(f=feature)

    st.html(drawn.summary(found, labels, opened))
    features = [chosen.index.feature(feature) for feature in (a, b)]
    for column, feature in zip(st.columns(2, gap="large"), features, strict=True):
        one = feature.feature
        head = header(feature, chosen.labels.get(one), chosen.labels.tags(one), chosen.labels.note(one), brief=True)
        column.html(f'<div class="sx" data-compared="{one}">{head}</div>')
    for side, column, feature in zip("ab", st.columns(2, gap="large"), features, strict=True):
        with column:
            if not feature.dead:
                drawing(f"<h3>Values when active</h3>{histogram.svg(feature)}", key=f"histogram {side}")
    st.html(drawn.facts(*features) + drawn.promoted(*features))
    for column, feature in zip(st.columns(2, gap="large"), features, strict=True):
        side = "-" if feature.max <= 0 < feature.n_negative else "+"
        top = chosen.index.examples(feature.feature, "top", side, N_EXAMPLES)
        column.html(drawn.examples(top, feature, labels, opened))
    st.subheader("Where both fire")
    st.html(f'<div class="sx">{cofire.both(found.both, a, b, labels, opened)}</div>')


def _which(chosen: Selection) -> tuple[int, int]:
    """Both features, from the URL; by default the first, and the nearest to the one that is given."""
    last = chosen.index.d_sae - 1
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        a = int(st.number_input("Feature", 0, last, width=150, **address.integer("f", 0, last, default=0)))
        near = chosen.index.neighbours(a, "decoder")
        nearest = near[0].feature if near else min(a + 1, last)
        b = int(st.number_input("with", 0, last, width=150, **address.integer("with", 0, last, default=nearest)))
        swapped = address.link(f=b, **{"with": a})
        st.html(f'<div class="sx sx-walk sx-low"><a href="{_escaped(swapped)}">⇄ swap</a> '
                '<button data-copy="link">copy link</button></div>')
    return a, b


def _walk(chosen: Selection, a: int, b: int) -> None:
    """j and k take the first feature's neighbours in turn."""
    near = [one.feature for one in chosen.index.neighbours(a, "decoder")]
    here, every = address.linker(), address.link("features")
    navigation(walk=[here(**{"with": feature}) for feature in near], at=near.index(b) if b in near else -1,
          keys={"b": every, "/": every})


def _escaped(href: str) -> str:
    from html import escape

    return escape(href, quote=True)
