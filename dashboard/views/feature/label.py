"""The tab Label and notes: a feature's label, note, tags and lists, editable."""

import streamlit as st

from analysis.render import feature as drawn
from analysis.render.text import shown
from dashboard import escaping
from dashboard.frame import tried
from dashboard.state.current_feature import CurrentFeature


def label(place: CurrentFeature) -> None:
    """Label, note, tags and lists, editable; how an automatic label was judged."""
    labels, feature = place.labels, place.feature
    mine = next((one.text for one in labels.every(feature) if one.author == "you"), "")
    lists = labels.lists()
    fixed = not labels.writable
    if fixed:
        st.info("This run's folder cannot be written: labels are shown and cannot be changed.", icon=":material/lock:")
    # keyed by feature, so that what was typed for one is not saved for the next
    with st.form(f"label {feature}", border=False):
        text = st.text_input("Label", mine, key=f"label text {feature}", max_chars=300,
                             disabled=fixed, placeholder="what this feature fires on")
        note = st.text_area("Notes", labels.note(feature), key=f"note {feature}", height=100, disabled=fixed)
        tags = st.multiselect("Tags", sorted({*labels.all_tags(), *labels.tags(feature)}), labels.tags(feature),
                              key=f"tags {feature}", accept_new_options=True, disabled=fixed, placeholder="type to add one")
        chosen = st.multiselect("Lists", sorted(lists), [name for name, has in lists.items() if feature in has],
                                key=f"lists {feature}", accept_new_options=True, disabled=fixed,
                                placeholder="type to begin one")
        if st.form_submit_button("Save", icon=":material/save:", disabled=fixed):
            tried(lambda: _save(place, text, note, tags, chosen))
    automatic = next((one for one in labels.every(feature) if one.author == "auto"), None)
    if automatic is None:
        st.caption("No automatic label yet; this makes them for all features:")
        st.code(f"sae label {escaping.shell(place.chosen.run.folder)}", language="bash")
    else:
        st.html(f'<div class="sx"><h3>Automatic label</h3>{shown(automatic.text, limit=300)}{drawn.verdict(automatic)}'
                f"{drawn.judged(automatic)}</div>")


def _save(place: CurrentFeature, text: str, note: str, tags: list[str], chosen: list[str]) -> None:
    labels, feature = place.labels, place.feature
    labels.set_label(feature, text)
    labels.set_note(feature, note)
    before = set(labels.tags(feature))
    for tag in {*tags} - before:
        labels.add_tag(feature, tag)
    for tag in before - {*tags}:
        labels.remove_tag(feature, tag)
    on = {name for name, has in labels.lists().items() if feature in has}
    for name in {*chosen} - on:
        labels.add_to_list(name, feature)
    for name in on - {*chosen}:
        labels.remove_from_list(name, feature)
    st.toast("Saved.")
    st.rerun(scope="fragment")
