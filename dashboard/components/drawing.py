"""Show an SVG from analysis.render: `st.html` strips SVG."""

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
    """Show an SVG. It is trusted: renderers escape all text in it.

    Args:
        svg: output of a renderer.
        key: Streamlit key of the element.
    """
    _drawing(key=key, data={"svg": svg})
