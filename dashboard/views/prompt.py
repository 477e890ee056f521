"""The page Prompt: a text as features by tokens, what fires at one token, and the contexts most like it."""

from collections.abc import Callable
from html import escape

import streamlit as st

from analysis.prompt import PromptCode
from analysis.render import prompt as drawn
from analysis.render import tokens
from analysis.render.feature import reference
from analysis.render.text import count, number, shown
from dashboard import escaping
from dashboard.components.navigation import navigation
from dashboard.heading import choose
from dashboard.state import address
from dashboard.state.model_results import encoded
from dashboard.state.selection import Selection, names
from sae.errors import SaescopeError

EXAMPLE = "The quick brown fox jumps over the lazy dog."


def page() -> None:
    """Draw the page."""
    chosen = choose("Prompt")
    navigation(keys={"/": address.link()})
    form = address.Form("token", "pick")
    with st.form("prompt", border=False):
        st.text_area("Text", **form.text("text"), height=90, max_chars=address.N_CHARS, placeholder=EXAMPLE)
        st.form_submit_button("Which features fire?", icon=":material/play_arrow:", on_click=form.submit)
    text = st.query_params.get("text", "")
    if not text.strip():
        st.caption("The language model of this run reads the text on this machine; the first time it has to be loaded.")
        return
    try:
        code = encoded(chosen.run.folder, text)
    except SaescopeError as error:
        st.error(escaping.plain(str(error)), icon=":material/error:")
        return
    _grid(chosen, code)
    _picked(chosen, code)
    _similar(chosen, code)


def _grid(chosen: Selection, code: PromptCode) -> None:
    token = _integer("token", len(code.pieces))
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        layout = st.segmented_control("Layout", ["grid", "tokens"], required=True, width="content",
                                      format_func={"grid": "features by tokens", "tokens": "token by token"}.__getitem__,
                                      **address.choice("layout", ["grid", "tokens"], default="grid"))
        n = st.slider("Features", 5, 100, step=5, **address.integer("n", 5, 100, default=25), width=260)
    top = code.top(n, positions=None if token is None else [token])
    at = "" if token is None else (
        f" at token {token} {shown(code.pieces[token], spaces=True)} · "
        f'<a href="{escape(address.link(token=None), quote=True)}">all tokens</a>')
    n_fire = count(len(code.top(10**9)), "feature")
    st.html(f'<div class="sx sx-quiet">{count(len(code.pieces), "token")}, {n_fire} active; the strongest {len(top)}{at}. '
            "Click a token to rank by it, a feature to see it.</div>")
    if not top:
        st.text("Nothing fires here: the token is masked, as BOS and outliers are in training.")
    elif layout == "grid":
        st.html(drawn.grid(code.pieces, code.code, [one.feature for one in top], names(chosen), _pick()))
    else:
        st.html(drawn.by_token(code.pieces, code.code, names(chosen), _pick(), n=5))


def _picked(chosen: Selection, code: PromptCode) -> None:
    """One feature over the text, beside its page."""
    feature = _integer("pick", chosen.index.d_sae)
    if feature is None:
        return
    values = code.values(feature)
    scale = max(1e-9, float(abs(values).max()))
    known = chosen.index.feature(feature)
    name = reference(feature, names(chosen), lambda _: None)
    st.html(
        f'<div class="sx"><h3>{name}</h3>{tokens.heat(code.pieces, values.tolist(), scale=scale, focus_all=True)}'
        f'<p class="sx-quiet">Here up to {number(scale)}; over the corpus {number(known.min)} to {number(known.max)}. '
        f'<a href="{escape(address.link("feature", f=feature), quote=True)}">Open the feature</a></p></div>')


def _similar(chosen: Selection, code: PromptCode) -> None:
    st.subheader("Similar contexts")
    found = chosen.index.similar(code.code, n=10)
    rows = []
    strongest = [one.feature for one in code.top(8)]
    for one in found:
        # the prompt's strongest feature that fires there says where to look
        best = max(((f, chosen.index.values(f, one.seq)) for f in strongest), key=lambda pair: float(abs(pair[1]).max()))
        at = int(abs(best[1]).argmax())
        example = chosen.index.window(best[0], one.seq, at, before=24, after=23)
        scale = max(abs(chosen.index.feature(best[0]).max), 1e-9)
        heat = tokens.heat(example.pieces, example.values, scale=scale, peak=at - example.start)
        rows.append(f'<div class="sx-ex"><span class="sx-val" title="context {one.seq}">{one.score:.2f}<br>'
                    f'<a href="{escape(address.link("feature", f=best[0]), quote=True)}">#{best[0]}</a></span>{heat}</div>')
    said = ("Cosine of the contexts’ codes with the prompt’s, in which rare features weigh more; shaded is the prompt’s "
            "feature that is strongest there.")
    st.html(f'<div class="sx"><p class="sx-quiet">{said}</p>{"".join(rows)}</div>' if rows
            else "<p>No context shares a feature that is rare enough to tell it from others.</p>")


def _pick() -> Callable[[int], str]:
    to = address.linker()
    return lambda feature: to(pick=feature)


def _integer(key: str, below: int) -> int | None:
    """A whole number of the URL in 0 to `below` − 1; None if there is none that fits."""
    text = st.query_params.get(key, "")
    return int(text) if text.isdecimal() and int(text) < below else None
