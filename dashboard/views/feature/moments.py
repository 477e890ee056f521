"""The Statistics tab: how often a feature is active, and the moments of its values."""

import streamlit as st

from analysis.render import feature as drawn
from dashboard.state.current_feature import CurrentFeature


def statistics(place: CurrentFeature) -> None:
    """Draw density with its interval, moments and contexts."""
    st.html(f'<div class="sx">{drawn.facts(place.index.feature(place.feature))}</div>')
