"""Shared by all pages: the navigation bar, and the message of a page that has nothing to show yet."""

import importlib.metadata
import time
from collections.abc import Callable
from html import escape
from typing import NoReturn

import streamlit as st

from analysis.render.css import CSS
from analysis.runs import Run
from dashboard.components.navigation import navigation
from dashboard.escaping import plain
from dashboard.state import address
from dashboard.state.watched_runs import all_runs, chosen, follow
from sae.errors import SaescopeError

TITLES = {
    "runs": "Runs", "features": "Features", "feature": "Feature", "compare": "Compare", "prompt": "Prompt",
    "evaluations": "Evaluations", "circuits": "Circuits",
}
_STYLE = """
[data-testid='stMainBlockContainer'] {padding-top: 0.6rem; padding-bottom: 5rem; max-width: 1500px}
[data-testid='stHeader'] {background: transparent; pointer-events: none}
[data-testid='stHeader'] * {pointer-events: auto}
.st-key-navigation {height: 0; margin-top: -1rem}
[class*='st-key-file-'] {position: absolute; height: 0}
nav.sx-pages {display: flex; gap: 0.2rem 0.4rem; align-items: center; padding: 0 6rem 0.4rem 0; font-size: 0.95rem;
  overflow-x: auto; white-space: nowrap; border-bottom: 1px solid var(--sx-rule)}
nav.sx-pages a {text-decoration: none; padding: 0.35rem 0.7rem; border-radius: 6px}
nav.sx-pages a:hover, nav.sx-pages a[aria-current] {background: var(--sx-soft)}
nav.sx-pages a[aria-current] {font-weight: 600}
nav.sx-pages strong {font-size: 1.05rem; padding-right: 0.8rem}
@media (max-width: 700px) {
  nav.sx-pages {padding-right: 2.5rem; gap: 0}
  nav.sx-pages strong {display: none}
  [data-testid='stButtonGroup'] [role='radiogroup'] {flex-wrap: wrap; overflow: visible; height: auto}
  nav.sx-pages a {padding: 0.35rem 0.45rem}
  [data-testid='stMainBlockContainer'] {padding-left: 1rem; padding-right: 1rem}
  .st-key-feature-body > [data-testid='stLayoutWrapper'] > [data-testid='stHorizontalBlock'],
  .st-key-feature-body > [data-testid='stHorizontalBlock'],
  .st-key-prompt-results > [data-testid='stLayoutWrapper'] > [data-testid='stHorizontalBlock'],
  .st-key-prompt-results > [data-testid='stHorizontalBlock'] {flex-direction: column-reverse}
}
.st-key-prompt-results [data-panel] {position: sticky; top: 4rem}
[data-testid='stCaptionContainer'], [data-testid='stCaptionContainer'] * {color: inherit}
[data-testid='stCaptionContainer'] {opacity: 0.8}
.js-plotly-plot :is(.xtick, .ytick, .xtitle, .ytitle, .cbtitle, .cbaxis, .annotation) text,
.js-plotly-plot :is(text.xtitle, text.ytitle, text.cbtitle, .textpoint text) {
  fill: currentColor !important; fill-opacity: 0.85 !important}
[data-testid='stHtml'] .sx-facts, [data-testid='stHtml'] .sx-facts dd {margin-left: 0; padding-left: 0}
[data-testid='stHtml'] .sx-facts dt {padding: 0; margin: 0; font-weight: 400}
.sx-walk {display: flex; flex-wrap: wrap; gap: 0.3rem 1.1rem; align-items: center}
.sx button {font: inherit; font-size: 0.75rem; color: inherit; background: none; border: 1px solid var(--sx-rule);
  border-radius: 4px; padding: 0 0.45rem; cursor: pointer}
.sx-features {white-space: nowrap}
.sx.sx-low {padding-bottom: 0.6rem}
.sx-features thead th {position: sticky; top: 0; background: var(--sx-ground)}
.sx-tall {max-height: 28rem; overflow: auto}
.sx-list.sx-features .sx-num {padding-right: 0.9rem}
.sx-list.sx-features .sx-name {white-space: normal; min-width: 8rem; max-width: 22rem}
.sx-features td.sx-num small {display: block; font-size: 0.75rem; opacity: 0.8}
.sx-features tbody th {padding-left: 0.4rem}
.sx-features tbody tr.sx-control th {padding-left: 1.2rem; opacity: 0.8}
.sx-features .sx-word {white-space: normal; min-width: 5.5rem; max-width: 11rem}
.sx-features tbody tr[aria-current] {box-shadow: inset 3px 0 0 currentColor}
.sx-features tbody tr:hover, .sx-features tbody tr[aria-current], .sx-ex[data-at]:hover {background: var(--sx-soft)}
.sx-ex[data-at], th[data-token] {cursor: pointer}
.st-key-head h1 {padding-bottom: 0.1rem}
dialog.sx-keys {border: 1px solid var(--sx-rule, gray); border-radius: 8px; padding: 1.2rem; min-width: 24rem;
  font-size: 0.9rem; background: var(--sx-ground); color: inherit}
dialog.sx-keys dl {display: grid; grid-template-columns: auto 1fr; gap: 0.4rem 1.2rem; margin: 0 0 1rem}
dialog.sx-keys dt {font-family: ui-monospace, monospace; white-space: pre}
dialog.sx-keys dd {margin: 0}
"""


def bar(current: str) -> None:
    """Draw the links to all pages. They keep the selection and return to where each page was left.

    Args:
        current: name of the current page.
    """
    st.html(f"<style>{CSS}{_STYLE}</style>")
    if current != address.RUNS:
        chosen(all_runs())
    links = "".join(
        f'<a href="{escape(_to(name), quote=True)}" data-page="{name}"{" aria-current=page" if name == current else ""}>'
        f"{title}</a>" for name, title in TITLES.items()
    )
    st.html(f'<nav class="sx sx-pages" aria-label="Pages"><strong>Saescope</strong>{links}</nav>')


def _to(name: str) -> str:
    # open the table at the page with the selected feature
    return address.link(name, **({"p": "f"} if name == "features" and address.get("f") else {}))


def unfinished(run: Run, then: str) -> None:
    """Stop the page if the run hasn't finished, and say what to do next.

    Args:
        run: the run.
        then: the command that produces what the page shows, once the run has finished.
    """
    status = run.status(time.time())
    if status == "training":
        through = f", {run.through:.0%} done" if run.through is not None else ""
        nothing(f"{run.name} is training{through}. When it has finished, run:", then, follow_runs=True)
    if status == "interrupted":
        said = f"{run.name} was interrupted. Resume it by repeating the original command with"
        nothing(f"{said} --resume; then run:", then, follow_runs=True)


def nothing(said: str, command: str, *, follow_runs: bool = False) -> NoReturn:
    """Stop the page with a message and the command that produces what is missing.

    Args:
        said: the message, shown verbatim.
        command: shown with a copy button.
        follow_runs: redraw the page when a run changes.
    """
    navigation()
    st.text(said)
    name = command.split()[1] if command.startswith("sae ") else ""
    st.code(command, language=None, wrap_lines=True)
    if name and not _has_command(name):
        st.caption(f"“sae {name}” is not available in this version of saescope.")
    if follow_runs:
        follow(all_runs())
    st.stop()


def _has_command(name: str) -> bool:
    return any(entry.name == name for entry in importlib.metadata.entry_points(group="saescope.commands"))


def tried(act: Callable[[], None]) -> None:
    """Call `act`; show a `SaescopeError` on the page."""
    try:
        act()
    except SaescopeError as error:
        st.error(plain(str(error)), icon=":material/error:")
