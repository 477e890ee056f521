"""The tab Statistics: how often a feature is active, and the moments of its values."""

import streamlit as st

from analysis.render import feature as drawn
from dashboard.state.current_feature import CurrentFeature


def statistics(place: CurrentFeature) -> None:
    """Density with its interval, moments, contexts."""
    st.html(f'<div class="sx">{drawn.facts(place.index.feature(place.feature))}</div>')
