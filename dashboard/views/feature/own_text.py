"""The tab Own text: one feature over a text that the user types."""

import streamlit as st

from analysis.render import tokens
from analysis.render.text import number
from dashboard.frame import tried
from dashboard.state import address
from dashboard.state.current_feature import CurrentFeature
from dashboard.state.model_results import encoded


def own_text(place: CurrentFeature) -> None:
    """This feature over a text of one's own."""
    form = address.Form()
    with st.form("try", border=False):
        st.text_area("Text", **form.text("text"), height=90, max_chars=address.N_CHARS)
        st.form_submit_button("Does it fire?", icon=":material/play_arrow:", on_click=form.submit)
    text = st.query_params.get("text", "")
    if not text.strip():
        st.caption("The run's language model reads the text on this machine; the first time it has to be loaded.")
        return
    tried(lambda: _fired(place, text))


def _fired(place: CurrentFeature, text: str) -> None:
    code = encoded(place.chosen.run.folder, text)
    values = code.values(place.feature)
    about = place.index.feature(place.feature)
    scale = max(abs(about.max), abs(about.min), float(abs(values).max()), 1e-9)
    strongest = float(values[abs(values).argmax()])
    said = f"It fires on {int((values != 0).sum())} of {len(values)} tokens" + (
        f", up to {number(strongest)}." if strongest else ".")
    st.html(f'<div class="sx sx-numbers" data-tried="true"><p>{said}</p>'
            f"{tokens.heat(code.pieces, values.tolist(), scale=scale, focus_all=True)}</div>")
