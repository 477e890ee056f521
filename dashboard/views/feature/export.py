"""The Export tab: download a feature, and its provenance."""

import streamlit as st

from analysis.export import cards
from analysis.render import feature as drawn
from analysis.render.feature import Card
from dashboard.components import save
from dashboard.state.current_feature import CurrentFeature
from dashboard.state.selection import provenance


def export(place: CurrentFeature) -> None:
    """Draw download buttons and the provenance of the numbers."""
    feature = place.feature
    with st.container(horizontal=True):
        save.button("JSON", f"feature-{feature}.json", lambda: cards.as_json([whole(place)]))
        save.button("Examples (CSV)", f"feature-{feature}.csv", lambda: cards.as_csv([whole(place)]))
        save.button("Page (HTML)", f"feature-{feature}.html", lambda: exported(place),
                    help="A single file that opens without Python or network access")
    st.html(f'<div class="sx">{drawn.provenance(provenance(place.chosen), folded=False)}</div>')


def whole(place: CurrentFeature) -> Card:
    """The feature's full card, with all examples in the index."""
    return cards.card(place.index, place.feature, place.labels, n_top=50, n_each=50, groups=cards.EVERY_GROUP)


def exported(place: CurrentFeature) -> str:
    """The feature as a single HTML file."""
    from analysis.render.export import page

    return page(cards.cards(place.index, [place.feature], place.labels), f"A feature of {place.chosen.run.name}")
