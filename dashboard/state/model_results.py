"""Texts through a run's model, once: what the pages ask of it again on every redrawing is kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

if TYPE_CHECKING:
    from analysis.prompt import PromptCode
    from analysis.steering.generate import Edit, Settings, Steered


def encoded(run: Path, text: str) -> "PromptCode":
    """A text as the run's features see it, token by token.

    Raises:
        SaescopeError: the run has no model, or the text is empty or too long.
    """
    return _encoded(run, _stamp(run), text)


def steered(run: Path, prompt: str, edits: "Sequence[Edit]", settings: "Settings") -> "Steered":
    """A prompt continued without and with edits.

    Raises:
        SaescopeError: as `analysis.steering.generate.steer`.
    """
    return _steered(run, _stamp(run), prompt, repr((edits, settings)), edits, settings)


def _stamp(run: Path) -> int:
    manifest = run / "final" / "sae.json"
    return manifest.stat().st_mtime_ns if manifest.exists() else 0


@st.cache_resource(max_entries=64, show_spinner="The model reads the text …")
def _encoded(run: Path, stamp: int, text: str) -> "PromptCode":  # noqa: ARG001 (another training is another entry)
    from analysis.prompt import encode_text

    return encode_text(run, text)


@st.cache_resource(max_entries=64, show_spinner="The model writes twice …")
def _steered(
    run: Path, stamp: int, prompt: str, said: str, _edits: "Sequence[Edit]", _settings: "Settings"  # noqa: ARG001
) -> "Steered":
    from analysis.steering.generate import steer

    return steer(run, prompt, _edits, _settings)
