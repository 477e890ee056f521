"""Texts through a run's model, once: what the pages ask of it again on every redrawing is kept."""

from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

if TYPE_CHECKING:
    from analysis.live import PromptCode


def encoded(run: Path, text: str) -> "PromptCode":
    """A text as the run's features see it, token by token.

    Raises:
        SaescopeError: the run has no model, or the text is empty or too long.
    """
    manifest = run / "final" / "sae.json"
    stamp = manifest.stat().st_mtime_ns if manifest.exists() else 0
    return _encoded(run, stamp, text)


@st.cache_resource(max_entries=64, show_spinner="The model reads the text …")
def _encoded(run: Path, stamp: int, text: str) -> "PromptCode":  # noqa: ARG001 (another training is another entry)
    from analysis.live import Prompt

    return Prompt(run).encode(text)
