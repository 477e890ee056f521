"""A drawing from analysis.render on the page: `st.html` lets no SVG through."""

import streamlit as st

_JS = """
export default function ({ data, parentElement }) {
  let place = parentElement.querySelector(".sx-drawing");
  if (!place) { place = document.createElement("div"); place.className = "sx sx-drawing"; parentElement.append(place); }
  if (place.drawn !== data.svg) { place.drawn = data.svg; place.innerHTML = data.svg; }
}
"""
_drawing = st.components.v2.component("saescope_drawing", js=_JS, isolate_styles=False)


def drawing(svg: str, *, key: str) -> None:
    """Show a drawing; it is trusted, as renderers escape every text in it.

    Args:
        svg: what a renderer has drawn.
        key: of the element.
    """
    _drawing(key=key, data={"svg": svg})
