"""What can be asked of one feature: its label, where it fires with another, own text, steering, exports."""

from collections.abc import Callable
from html import escape

import streamlit as st

from analysis.export import cards
from analysis.render import cofire, steering, tokens
from analysis.render import feature as drawn
from analysis.render.feature import Card
from analysis.render.text import number, shown
from dashboard import escaping
from dashboard.components import save
from dashboard.state import address
from dashboard.state.current_feature import Place
from dashboard.state.model_results import encoded, steered
from dashboard.state.selection import names, provenance
from sae.errors import SaescopeError

MODES = ("add", "clamp")


def label(place: Place) -> None:
    """Label, note, tags and lists, editable; how an automatic label was judged."""
    labels, feature = place.labels, place.feature
    mine = next((one.text for one in labels.every(feature) if one.author == "you"), "")
    lists = labels.lists()
    # keyed by feature, so that what was typed for one is not saved for the next
    with st.form(f"label {feature}", border=False):
        text = st.text_input("Label", mine, key=f"label text {feature}", max_chars=300,
                             placeholder="what this feature fires on")
        note = st.text_area("Notes", labels.note(feature), key=f"note {feature}", height=100)
        tags = st.multiselect("Tags", sorted({*labels.all_tags(), *labels.tags(feature)}), labels.tags(feature),
                              key=f"tags {feature}", accept_new_options=True, placeholder="type to add one")
        chosen = st.multiselect("Lists", sorted(lists), [name for name, has in lists.items() if feature in has],
                                key=f"lists {feature}", accept_new_options=True, placeholder="type to begin one")
        if st.form_submit_button("Save", icon=":material/save:"):
            _tried(lambda: _save(place, text, note, tags, chosen))
    automatic = next((one for one in labels.every(feature) if one.author == "auto"), None)
    if automatic is None:
        st.caption("No automatic label yet; this makes them for all features:")
        st.code(f"sae label {escaping.shell(place.chosen.run.folder)}", language="bash")
    else:
        st.html(f'<div class="sx"><h3>Automatic label</h3>{shown(automatic.text, limit=300)}{drawn.verdict(automatic)}'
                f"{drawn.judged(automatic)}</div>")


def _save(place: Place, text: str, note: str, tags: list[str], chosen: list[str]) -> None:
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


def together(place: Place) -> None:
    """Contexts in which this feature and another fire."""
    near = place.index.neighbours(place.feature, "coactivation")
    first = near[0].feature if near else (place.feature + 1) % place.index.d_sae
    other = st.number_input(
        "Other feature", 0, place.index.d_sae - 1, width=180,
        **address.integer("with", 0, place.index.d_sae - 1, default=first))
    found = place.index.where(place.feature, int(other), n=20)
    beside = escape(address.link("compare", f=place.feature, **{"with": int(other)}), quote=True)
    st.html(f'<div class="sx"><p><a href="{beside}">⇄ Compare the two side by side</a></p>'
            f"{cofire.both(found, place.feature, int(other), names(place.chosen), place.go)}</div>")


def own_text(place: Place) -> None:
    """This feature over a text of one's own."""
    form = address.Form()
    with st.form("try", border=False):
        st.text_area("Text", **form.text("text"), height=90, max_chars=address.N_CHARS)
        st.form_submit_button("Does it fire?", icon=":material/play_arrow:", on_click=form.submit)
    text = st.query_params.get("text", "")
    if not text.strip():
        st.caption("The run's language model reads the text on this machine; the first time it has to be loaded.")
        return
    _tried(lambda: _fired(place, text))


def _fired(place: Place, text: str) -> None:
    code = encoded(place.chosen.run.folder, text)
    values = code.values(place.feature)
    about = place.index.feature(place.feature)
    scale = max(abs(about.max), abs(about.min), float(abs(values).max()), 1e-9)
    strongest = float(values[abs(values).argmax()])
    said = f"It fires on {int((values != 0).sum())} of {len(values)} tokens" + (
        f", up to {number(strongest)}." if strongest else ".")
    st.html(f'<div class="sx sx-numbers" data-tried="true"><p>{said}</p>'
            f"{tokens.heat(code.pieces, values.tolist(), scale=scale, focus_all=True)}</div>")


def steer(place: Place) -> None:
    """A prompt continued without and with this feature, and others if they are named."""
    from analysis.steering.generate import WHERE

    top = max(1.0, abs(place.index.feature(place.feature).max))
    most = 100 * top
    form = address.Form(always=("strength",))
    with st.form("steer", border=False):
        st.text_area("Prompt", **form.text("prompt", default="The"), height=70, max_chars=address.N_CHARS)
        first, second, third = st.columns(3, vertical_alignment="bottom")
        first.segmented_control("How", MODES, required=True, **form.choice("mode", MODES, default="add"), width="stretch",
                                help="add: lengthen the feature by the strength; clamp: hold it there")
        second.selectbox("Positions", WHERE, **form.choice("at", WHERE, default="all"))
        third.number_input("Temperature", 0.0, 10.0, step=0.1, **form.number("heat", 0.0, 10.0, default=0.8))
        first, second, third = st.columns(3, vertical_alignment="bottom")
        first.number_input("Strength", -most, most, **form.number("strength", -most, most, default=round(top, 1)),
                           help=f"In the feature's own units; its largest value is {number(top)}")
        second.number_input("Tokens", 1, 128, **form.integer("tokens", 1, 128, default=24))
        third.number_input("Seed", 0, 2**31 - 1, **form.integer("seed", 0, 2**31 - 1, default=0))
        st.text_input("Further features", **form.text("also"), placeholder="44=0, 920+12.5",
                      help="44=0 holds feature 44 at 0; 920+12.5 adds 12.5 of feature 920; 7-3 takes 3 of feature 7 away")
        st.form_submit_button("Continue both ways", icon=":material/play_arrow:", on_click=form.submit)
    if "strength" in st.query_params:  # the button was pressed, here or by who sent the link
        _tried(lambda: _steered(place))


def _steered(place: Place) -> None:
    from analysis.steering.edits import edits
    from analysis.steering.generate import Edit, Settings

    asked = st.session_state
    settings = Settings(asked["tokens"], asked["heat"], asked["seed"], asked["at"])
    every = [Edit(place.feature, asked["strength"], asked["mode"]), *edits(asked["also"], place.index.d_sae)]
    result = steered(place.chosen.run.folder, asked["prompt"], every, settings)
    st.html(f'<div class="sx" data-steered="true">{steering.compared(result, names(place.chosen), place.go)}</div>')


def export(place: Place) -> None:
    """Files of this feature, and what its numbers were made from."""
    feature = place.feature
    with st.container(horizontal=True):
        save.button("JSON", f"feature-{feature}.json", lambda: cards.as_json([whole(place)]))
        save.button("Examples (CSV)", f"feature-{feature}.csv", lambda: cards.as_csv([whole(place)]))
        save.button("Page (HTML)", f"feature-{feature}.html", lambda: exported(place),
                    help="One file that opens without Python and without a network")
    facts = drawn.provenance(provenance(place.chosen)).replace("<details>", "<details open>")
    st.html(f'<div class="sx">{facts}</div>')


def whole(place: Place) -> Card:
    """All that is known of the feature, with every example that the index keeps."""
    return cards.card(place.index, place.feature, place.labels, n_top=50, n_each=50, groups=cards.EVERY_GROUP)


def exported(place: Place) -> str:
    """The feature as one file."""
    from analysis.render.export import page

    return page(cards.cards(place.index, [place.feature], place.labels), f"A feature of {place.chosen.run.name}")


def _tried(act: Callable[[], None]) -> None:
    """Do it, or say what stands in the way."""
    try:
        act()
    except SaescopeError as error:
        st.error(escaping.plain(str(error)), icon=":material/error:")
