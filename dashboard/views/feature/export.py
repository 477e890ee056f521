"""The tab Export and provenance: files of this feature, and what its numbers were made from."""

import streamlit as st

from analysis.export import cards
from analysis.render import feature as drawn
from analysis.render.feature import Card
from dashboard.components import save
from dashboard.state.current_feature import CurrentFeature
from dashboard.state.selection import provenance


def export(place: CurrentFeature) -> None:
    """Files of this feature, and what its numbers were made from."""
    feature = place.feature
    with st.container(horizontal=True):
        save.button("JSON", f"feature-{feature}.json", lambda: cards.as_json([whole(place)]))
        save.button("Examples (CSV)", f"feature-{feature}.csv", lambda: cards.as_csv([whole(place)]))
        save.button("Page (HTML)", f"feature-{feature}.html", lambda: exported(place),
                    help="One file that opens without Python and without a network")
    st.html(f'<div class="sx">{drawn.provenance(provenance(place.chosen), folded=False)}</div>')


def whole(place: CurrentFeature) -> Card:
    """All that is known of the feature, with every example that the index keeps."""
    return cards.card(place.index, place.feature, place.labels, n_top=50, n_each=50, groups=cards.EVERY_GROUP)


def exported(place: CurrentFeature) -> str:
    """The feature as one file."""
    from analysis.render.export import page

    return page(cards.cards(place.index, [place.feature], place.labels), f"A feature of {place.chosen.run.name}")
