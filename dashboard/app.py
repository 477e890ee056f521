"""Streamlit entry point: title, navigation and the requested page. Streamlit reruns this file on every interaction."""

import importlib
from urllib.parse import quote

import streamlit as st

from dashboard import frame
from dashboard.state import address

# a data URL, because the browser would fetch Streamlit's named icons from the network
ICON = "data:image/svg+xml," + quote(
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><g fill="#0072B2">'
    + "".join(
        f'<circle cx="{3 + 5 * x}" cy="{3 + 5 * y}" r="{2 if (x, y) in ((1, 0), (2, 2), (0, 1)) else 0.9}"/>'
        for x in range(3) for y in range(3)
    )
    + "</g></svg>"
)


def main() -> None:
    """Draw the page named in the URL."""
    address.begin()
    name = address.page(frame.TITLES)
    st.set_page_config(page_title=f"{frame.TITLES[name]} · Saescope", page_icon=ICON, layout="wide")
    frame.bar(name)
    frame.tried(importlib.import_module(f"dashboard.views.{name}").page)


if __name__ == "__main__":
    main()
