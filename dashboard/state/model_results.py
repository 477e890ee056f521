"""Texts through a run's model: asked of the one worker, kept, and waited for in sight of its queue."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from analysis.render.text import count
from dashboard.state.model_worker import Job, Worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analysis.prompt import PromptCode
    from analysis.steering.generate import Edit, Settings

SOON_S = 0.3
"""What takes longer is said."""


@st.cache_resource(show_spinner=False)
def worker() -> Worker:
    """The worker of this server."""
    return Worker()


def encoding(run: Path, text: str) -> Job:
    """The job that reads a text as the run's features see it, token by token; its result is a `PromptCode`."""

    def steps() -> "Iterator[PromptCode]":
        from analysis.prompt import encode_text

        yield encode_text(run, text)

    return worker().job(("read", run, _stamp(run), text), steps, short=True)


def encoded(run: Path, text: str) -> "PromptCode":
    """What `encoding` gives, waited for; the page says so meanwhile.

    Raises:
        SaescopeError: the run has no model, or the text is empty or too long.
    """
    job = encoding(run, text)
    if not job.ended.wait(SOON_S):
        place = st.empty()
        while not job.ended.wait(0.2):
            place.text(waiting(job, "The model reads the text"))
        place.empty()
    if job.error is not None:
        raise job.error
    code: PromptCode = job.result
    return code


def steering(run: Path, prompt: str, edits: "Sequence[Edit]", settings: "Settings") -> Job:
    """The job that continues a prompt without and with edits; its results are `Steered`, longer and longer."""

    def steps() -> Iterator[Any]:
        from analysis.steering.generate import stream

        return stream(run, prompt, edits, settings)

    return worker().job(("write", run, _stamp(run), prompt, repr((edits, settings))), steps)


def waiting(job: Job, what: str) -> str:
    """How far a job is, in words."""
    before = worker().ahead(job)
    return f"The model is busy: {count(before, 'request')} before this one." if before else f"{what} …"


def _stamp(run: Path) -> int:
    manifest = run / "final" / "sae.json"
    return manifest.stat().st_mtime_ns if manifest.exists() else 0
