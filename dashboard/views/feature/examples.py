"""The tab Examples: contexts in which a feature is active, by strength."""

import streamlit as st

from analysis.render import feature as drawn
from analysis.render.feature import Section
from analysis.render.tokens import legend
from dashboard.state import address
from dashboard.state.current_feature import CurrentFeature

OVERVIEW = {"top": 10, "q9": 3, "q7": 3, "q5": 3, "q3": 3, "q1": 3, "random": 4, "near": 3}
GROUPS = {
    "overview": "Overview", "top": "Strongest", **{f"q{i}": f"Tenth {i}" for i in range(10, 0, -1)}, "random": "Random",
    "near": "Near misses",
}


def examples(place: CurrentFeature) -> None:
    """Groups of examples, with fields for group, side, numbers and line breaks."""
    index, feature = place.index, place.index.feature(place.feature)
    if feature.dead:
        st.html(f'<div class="sx">{drawn.empty(feature)}</div>')
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        group = st.selectbox("Group", list(GROUPS), format_func=GROUPS.__getitem__, label_visibility="collapsed", width=150,
                             **address.choice("group", list(GROUPS), default="overview"))
        sides = list(index.sides)
        side = sides[0] if len(sides) == 1 else st.segmented_control(
            "Side", sides, required=True, label_visibility="collapsed", width="content",
            format_func={"+": "+ positive", "-": "− negative"}.__getitem__,
            **address.choice("side", sides, default="-" if feature.max <= 0 else "+"))
        numbers = st.toggle("numbers", **address.flag("numbers"))
        breaks = st.toggle("line breaks", **address.flag("breaks"))
    wanted = OVERVIEW if group == "overview" else {group: 50}
    about = {one.name: one for one in index.groups(place.feature, side)}
    sections = [
        Section(side, about[name], [place.widened(one) for one in index.examples(place.feature, name, side, n)])
        for name, n in wanted.items()
    ]
    rows = "".join(drawn.group(section, feature) for section in sections if section.examples)
    classes = "sx" + (" sx-numbers" if numbers else "") + (" sx-breaks" if breaks else "")
    scale = legend(max(abs(feature.max), abs(feature.min)), signed=index.signed)
    st.html(f'<div class="{classes}" id="examples">{scale}{rows or drawn.empty(feature)}</div>')
