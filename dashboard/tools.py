"""What can be asked of one feature: its label, where it fires with another, own text, steering, exports."""

import json
from collections.abc import Callable
from dataclasses import asdict

import streamlit as st

from analysis.render import cofire, steering, tokens
from analysis.render import feature as drawn
from analysis.render.text import number, shown
from dashboard import address, frame
from dashboard.chosen import names, provenance
from dashboard.lm import encoded
from dashboard.place import Place, go
from sae.errors import SaescopeError


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
        st.code(f"sae label {frame.shell(place.chosen.run.folder)}", language="bash")
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
    st.html(f'<div class="sx">{cofire.both(found, place.feature, int(other), names(place.chosen), go)}</div>')


def own_text(place: Place) -> None:
    """This feature over a text of one's own."""
    with st.form("try", border=False):
        typed = st.text_area("Text", st.query_params.get("text", ""), key="text", height=90, max_chars=address.N_CHARS)
        if st.form_submit_button("Does it fire?", icon=":material/play_arrow:"):
            address.update(text=typed or None)
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
    """A prompt continued without and with this feature."""
    from analysis.steering import WHERE, Edit, Settings
    from analysis.steering import steer as steered

    top = max(1.0, abs(place.index.feature(place.feature).max))
    with st.form("steer", border=False):
        prompt = st.text_area("Prompt", key="steer prompt", height=70, value="The", max_chars=address.N_CHARS)
        first, second, third = st.columns(3)
        mode = first.segmented_control("How", ["add", "clamp"], default="add", required=True, key="steer mode",
                                       help="add: lengthen the feature by the strength; clamp: hold it there")
        strength = first.number_input("Strength", -100 * top, 100 * top, round(top, 1), key=f"strength {place.feature}",
                                      help=f"In the feature's own units; its largest value is {number(top)}")
        where = second.selectbox("Positions", WHERE, key="steer positions")
        n = second.number_input("Tokens", 1, 128, 24, key="steer tokens")
        temperature = third.number_input("Temperature", 0.0, 10.0, 0.8, step=0.1, key="steer temperature")
        seed = third.number_input("Seed", 0, 2**31 - 1, 0, key="steer seed")
        pressed = st.form_submit_button("Continue both ways", icon=":material/play_arrow:")
    if not pressed:
        return

    def run() -> None:
        settings = Settings(max_tokens=int(n), temperature=temperature, seed=int(seed), positions=where)
        with st.spinner("The model writes twice …"):
            edit = Edit(place.feature, strength, "clamp" if mode == "clamp" else "add")
            result = steered(place.chosen.run.folder, prompt, [edit], settings)
        st.html(f'<div class="sx" data-steered="true">{steering.compared(result, names(place.chosen), go)}</div>')

    _tried(run)


def export(place: Place) -> None:
    """Files of this feature, and what its numbers were made from."""
    feature = place.feature
    with st.container(horizontal=True):
        st.download_button("JSON", lambda: as_json(place), f"feature-{feature}.json", "application/json",
                           on_click="ignore", key="feature json", icon=":material/download:")
        st.download_button("Examples (CSV)", lambda: as_csv(place), f"feature-{feature}.csv", "text/csv",
                           on_click="ignore", key="feature csv", icon=":material/download:")
        st.download_button("Page (HTML)", lambda: as_html(place), f"feature-{feature}.html", "text/html",
                           on_click="ignore", key="feature html", icon=":material/download:",
                           help="One file that opens without Python and without a network")
    facts = drawn.provenance(provenance(place.chosen)).replace("<details>", "<details open>")
    st.html(f'<div class="sx">{facts}</div>')


def _all_examples(place: Place) -> list[tuple[str, str, int, list[object]]]:
    return [
        (side, group.name, group.population, list(place.index.examples(place.feature, group.name, side, 50)))
        for side in place.index.sides for group in place.index.groups(place.feature, side)
    ]


def as_json(place: Place) -> str:
    """All that the page shows of a feature."""
    one = place.labels.get(place.feature)
    return json.dumps({
        **asdict(place.index.feature(place.feature)), "label": one.text if one else None,
        "note": place.labels.note(place.feature), "tags": place.labels.tags(place.feature),
        "neighbours": {kind: [asdict(n) for n in place.index.neighbours(place.feature, kind)]
                       for kind in ("decoder", "coactivation")},
        "examples": [{"side": side, "group": group, "population": n, "examples": [asdict(e) for e in found]}  # type: ignore[call-overload]
                     for side, group, n, found in _all_examples(place)],
        "provenance": provenance(place.chosen),
    }, indent=1, ensure_ascii=False)


def as_csv(place: Place) -> str:
    """The tokens of all examples, one a line."""
    import csv
    import io

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("side", "group", "context", "position", "token", "value"))
    for side, group, _, found in _all_examples(place):
        for one in found:
            for i, (piece, value) in enumerate(zip(one.pieces, one.values, strict=True)):  # type: ignore[attr-defined]
                writer.writerow((side, group, one.seq, one.start + i, piece, repr(value)))  # type: ignore[attr-defined]
    return out.getvalue()


def as_html(place: Place) -> str:
    """One file of the feature."""
    from analysis.render.css import CSS

    near = {kind: place.index.neighbours(place.feature, kind)[:10] for kind in ("decoder", "coactivation")}
    sections = [
        drawn.Section(side, group, place.index.examples(place.feature, group.name, side, 10))
        for side in place.index.sides for group in place.index.groups(place.feature, side)
    ]
    labels = place.labels
    whole = drawn.Card(
        place.index.feature(place.feature), sections, near, labels.get(place.feature), labels.note(place.feature),
        labels.tags(place.feature), names(place.chosen), provenance(place.chosen))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Feature {place.feature}</title>'
        '<meta name="color-scheme" content="light dark">'
        f'<style>body{{font-family:system-ui,sans-serif;margin:2rem}}{CSS}</style><body>{drawn.card(whole)}</body></html>'
    )


def _tried(act: Callable[[], None]) -> None:
    """Do it, or say what stands in the way."""
    try:
        act()
    except SaescopeError as error:
        st.error(frame.plain(str(error)), icon=":material/error:")
