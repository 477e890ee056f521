"""The Prompt page: features by tokens for a text, one feature in a side panel, and steering with it."""

from collections.abc import Callable, Sequence
from html import escape

import numpy as np
import streamlit as st

from analysis.prompt import PER_TOKEN, PromptCode, Top, own_maximum, rarer_than
from analysis.render import prompt as drawn
from analysis.render import tokens
from analysis.render.feature import percent, reference
from analysis.render.text import count, number, shown
from dashboard import escaping
from dashboard.components.navigation import navigation
from dashboard.heading import choose
from dashboard.state import address
from dashboard.state.current_feature import CurrentFeature
from dashboard.state.model_results import encoded
from dashboard.state.selection import Selection, names
from dashboard.views.feature.steer import steer
from sae.errors import SaescopeError

EXAMPLE = "The quick brown fox jumps over the lazy dog."
CUTS = {"100": "all", "50": "50 %", "10": "10 %", "1": "1 %", "0.1": "0.1 %"}
"""Maximum densities, in percent."""


def page() -> None:
    """Draw the page."""
    chosen = choose("Prompt")
    navigation(keys={"/": address.link()})
    form = address.Form("token", "prompt", "strength")
    with st.form("read", border=False):
        st.text_area("Text", **form.text("text"), height=90, max_chars=address.N_CHARS, placeholder=EXAMPLE)
        pressed = st.form_submit_button("Which features fire?", icon=":material/play_arrow:", on_click=form.submit)
    text = st.query_params.get("text", "")
    if not text.strip():
        _without_text(pressed=pressed)
        return
    try:
        code = encoded(chosen.run.folder, text, chosen.index.refine)
    except SaescopeError as error:
        st.error(escaping.plain(str(error)), icon=":material/error:")
        return
    with st.container(key="prompt-results"):
        left, right = st.columns([5, 3], gap="medium")
        with left:
            first = _ranking(chosen, code)
        asked = _integer("f", chosen.index.d_sae)
        with right:
            _panel(chosen, code, first if asked is None else asked)
    _similar(chosen, code)


def _without_text(*, pressed: bool) -> None:
    if pressed:
        st.warning("There is no text yet: enter one above.", icon=":material/edit:")
    example = _escaped(address.link(text=EXAMPLE))
    st.html(f'<div class="sx">This run’s language model reads the text on this machine; it takes a while to load. '
            f'<a href="{example}">Try “{EXAMPLE}”</a></div>')


def _ranking(chosen: Selection, code: PromptCode) -> int | None:
    """Draw the ranked features; return the first."""
    token = _integer("token", len(code.pieces))
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        layout = st.segmented_control("Layout", ["grid", "tokens"], required=True, width="content",
                                      format_func={"grid": "features by tokens", "tokens": "token by token"}.__getitem__,
                                      **address.choice("layout", ["grid", "tokens"], default="grid"))
        n = st.slider("Features", 5, 100, step=5, **address.integer("n", 5, 100, default=25), width=160)
        cut = st.selectbox("Density up to", list(CUTS), format_func=CUTS.__getitem__, width=120,
                           help="Leaves out features that fire on more of the corpus: they fire on any text.",
                           **address.choice("cut", list(CUTS), default="10"))
    largest, allowed = own_maximum(chosen.index), rarer_than(chosen.index, float(cut) / 100)
    top = code.ranked(largest, allowed, n, position=token)
    st.html(_told(code, top, token, allowed))
    if not top:
        st.text("Nothing fires here: the token is masked (like BOS and outliers in training), or every active feature is "
                "above the density limit.")
        return None
    if layout == "grid":
        st.html(drawn.grid(code.pieces, code.code, [one.feature for one in top], names(chosen), _pick(),
                           scale=dict(enumerate(largest.tolist())), selected=_integer("f", chosen.index.d_sae)))
    else:
        each = [code.ranked(largest, allowed, 5, position=i) for i in range(len(code.pieces))]
        st.html(drawn.by_token(code.pieces, each, names(chosen), _pick()))
    return top[0].feature


def _told(code: PromptCode, top: Sequence[Top], token: int | None, allowed: np.ndarray) -> str:
    """Describe the ranking and what it leaves out."""
    at = (f", at most {PER_TOKEN} of a token" if token is None else
          f" at token {token} {shown(code.pieces[token], spaces=True)} · "
          f'<a href="{_escaped(address.link(token=None))}">all tokens</a>')
    fire = np.unique(code.code.feature.numpy())
    n_left_out = int((~allowed[fire]).sum())
    left_out = f", {n_left_out:,} of them too dense" if n_left_out else ""
    return (f'<div class="sx sx-quiet">{count(len(code.pieces), "token")}, {count(len(fire), "feature")} active{left_out}; '
            f"showing the {len(top)} closest to their largest value in the corpus{at}. Shading is the share of that value. "
            "Click a token to rank by it, or a feature to see it.</div>")


def _panel(chosen: Selection, code: PromptCode, feature: int | None) -> None:
    """Draw one feature's values on the text, and steering with it."""
    if feature is None:
        return
    values = code.values(feature)
    known = chosen.index.feature(feature)
    scale = max(abs(known.max), abs(known.min)) or max(1e-9, float(abs(values).max()))
    strongest = float(values[abs(values).argmax()])
    here = f"Here up to {number(strongest)}" if strongest else "Does not fire here"
    name = reference(feature, names(chosen), lambda _: None)
    opened = _escaped(address.link("feature", f=feature))
    st.html(
        f'<div class="sx" data-panel="{feature}"><h2 class="sx-sub">{name}</h2>'
        f"{tokens.heat(code.pieces, values.tolist(), scale=scale, focus_all=True)}"
        f'<p class="sx-quiet">{here}; in the corpus {number(known.min)} to {number(known.max)}, on '
        f"{percent(known.density)} of tokens. Shading is relative to its largest value there.</p>"
        f'<p><a href="{opened}">Open the feature</a></p></div>')
    with st.expander("Steer this text with it", expanded="strength" in st.query_params, icon=":material/alt_route:"):
        steer(CurrentFeature(chosen, feature, lambda other: address.link("feature", f=other)), code.text)


def _similar(chosen: Selection, code: PromptCode) -> None:
    st.header("Similar contexts")
    found = chosen.index.similar(code.code, n=10)
    rows = []
    strongest = [one.feature for one in code.top(8)]
    for one in found:
        # centre on the peak of the prompt feature that fires most strongly in this context
        best = max(((f, chosen.index.values(f, one.seq)) for f in strongest), key=lambda pair: float(abs(pair[1]).max()))
        at = int(abs(best[1]).argmax())
        example = chosen.index.window(best[0], one.seq, at, before=24, after=23)
        scale = max(abs(chosen.index.feature(best[0]).max), 1e-9)
        heat = tokens.heat(example.pieces, example.values, scale=scale, peak=at - example.start)
        rows.append(f'<div class="sx-ex"><span class="sx-val" title="context {one.seq}">{one.score:.2f}<br>'
                    f'<a href="{_escaped(address.link("feature", f=best[0]))}">#{best[0]}</a></span>{heat}</div>')
    said = ("Cosine similarity of the contexts’ codes to the prompt’s, with rare features weighted up; shaded by the "
            "prompt feature that is strongest there.")
    st.html(f'<div class="sx"><p class="sx-quiet">{said}</p>{"".join(rows)}</div>' if rows
            else "<p>No context shares a sufficiently rare feature with the prompt.</p>")


def _pick() -> Callable[[int], str]:
    to = address.linker(strength=None, also=None)
    return lambda feature: to(f=feature)


def _escaped(href: str) -> str:
    return escape(href, quote=True)


def _integer(key: str, below: int) -> int | None:
    """The URL's integer for `key`, from 0 to `below` − 1; None if missing or invalid."""
    text = st.query_params.get(key, "")
    return int(text) if text.isdecimal() and int(text) < below else None
