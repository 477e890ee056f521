"""The Label tab: the automatic label and the examples it was scored on. Your own label is edited in the bar."""

import streamlit as st

from analysis.render import feature as drawn
from analysis.render.text import shown
from dashboard import escaping
from dashboard.state.current_feature import CurrentFeature


def label(place: CurrentFeature) -> None:
    """Draw the automatic label and its score, or the command that creates labels."""
    automatic = next((one for one in place.labels.every(place.feature) if one.author == "auto"), None)
    if automatic is None:
        st.caption("No automatic label yet. Label all features with:")
        st.code(f"sae label {escaping.shell(place.chosen.run.folder)}", language=None)
        return
    st.html(f'<div class="sx"><h3>Automatic label</h3>{shown(automatic.text, limit=300)}{drawn.verdict(automatic)}'
            f"{drawn.judged(automatic).replace('<details>', '<details open>')}</div>")
