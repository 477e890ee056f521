"""The Fires with tab: contexts in which two features are both active."""

from html import escape

import streamlit as st

from analysis.render import cofire
from analysis.render.feature import reference
from dashboard.state import address
from dashboard.state.current_feature import CurrentFeature
from dashboard.state.selection import names


def fires_with(place: CurrentFeature) -> None:
    """Draw contexts in which this feature and a chosen one fire."""
    near = place.index.neighbours(place.feature, "coactivation")
    first = near[0].feature if near else (place.feature + 1) % place.index.d_sae
    other = st.number_input(
        "Other feature", 0, place.index.d_sae - 1, width=180,
        **address.integer("with", 0, place.index.d_sae - 1, default=first))
    found = place.index.where(place.feature, int(other), n=20)
    beside = escape(address.link("compare", f=place.feature, **{"with": int(other)}), quote=True)
    a, b = (reference(feature, names(place.chosen), place.go) for feature in (place.feature, int(other)))
    st.html(f'<div class="sx"><p><a href="{beside}">⇄ Compare the two side by side</a></p>'
            f"{cofire.both(found, a, b, (f'#{place.feature}', f'#{int(other)}'))}</div>")
