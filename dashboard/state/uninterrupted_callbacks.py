"""Make Streamlit run widget callbacks to completion.

When the browser requests a rerun, Streamlit aborts the current run at its next call, even inside a callback. A pressed
button or followed link would then have done nothing, or half its work. Callbacks here are short, so the interruption
waits until the script starts to draw.
"""

from streamlit.runtime.scriptrunner import ScriptRunner, get_script_run_ctx

_ASK = "_maybe_handle_execution_control_request"
"""Streamlit's private method that aborts a run when another is requested; there is no public one."""


def install() -> None:
    """Patch Streamlit in this process, once."""
    interrupt = getattr(ScriptRunner, _ASK)
    if getattr(interrupt, "waits", False):
        return

    def ask(self: ScriptRunner) -> None:
        ctx = get_script_run_ctx(suppress_warning=True)
        if ctx is None or getattr(ctx, "has_script_started", True):
            interrupt(self)

    ask.waits = True  # type: ignore[attr-defined]
    setattr(ScriptRunner, _ASK, ask)
