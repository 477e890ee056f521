"""Make Streamlit run the callbacks of widgets to their end.

Streamlit ends a run at its next call once the browser asks for another, even while the callbacks of the first are run.
Then a button that was pressed, or a link that was followed, has done nothing, or half of what it should. Callbacks here
are short, so the interruption waits until the page begins to be drawn.
"""

from streamlit.runtime.scriptrunner import ScriptRunner, get_script_run_ctx

_ASK = "_maybe_handle_execution_control_request"
"""Streamlit's method that ends a run if another is asked for; there is no public one."""


def install() -> None:
    """Change Streamlit in this process, once."""
    interrupt = getattr(ScriptRunner, _ASK)
    if getattr(interrupt, "waits", False):
        return

    def ask(self: ScriptRunner) -> None:
        ctx = get_script_run_ctx(suppress_warning=True)
        if ctx is None or getattr(ctx, "has_script_started", True):
            interrupt(self)

    ask.waits = True  # type: ignore[attr-defined]
    setattr(ScriptRunner, _ASK, ask)
