"""Pages without a browser: the script that a visit runs, and what it puts on the page."""

import json
from pathlib import Path
from typing import Any

from streamlit.testing.v1 import AppTest

APP = str(Path(__file__).parents[2] / "dashboard" / "app.py")


def visit(**query: Any) -> AppTest:
    """The page at an address, drawn without an exception."""
    app = AppTest.from_file(APP, default_timeout=90)
    for key, value in query.items():
        app.query_params[key] = value
    return drawn(app)


def drawn(app: AppTest) -> AppTest:
    """The page drawn again after a choice."""
    app.run()
    assert not app.exception, app.exception
    return app


def html(app: AppTest) -> str:
    """All that is put on the page as HTML."""
    read = [one[key] for one in reader(app).get("features", ()) for key in ("side", "examples", "tried", "verdict")]
    return "".join([*(element.proto.body for element in app.get("html")), *read])


def reader(app: AppTest) -> dict[str, Any]:
    """What the browser's reader of features is told; nothing on other pages."""
    found = [e.proto for e in app.get("bidi_component") if e.proto.component_name == "saescope_reader_bar"]
    return json.loads(found[0].json) if found else {}


def said(app: AppTest) -> str:
    """Every text of the page."""
    kinds = ("text", "error", "warning", "info", "caption", "code", "title")
    return html(app) + " ".join(str(element.value) for kind in kinds for element in app.get(kind))


def saved(app: AppTest) -> tuple[str, str]:
    """Name and text of the file that the page has just handed to the browser."""
    (found,) = [e.proto for e in app.get("bidi_component") if e.proto.component_name == "saescope_save"]
    data = json.loads(found.json)
    return data["name"], data["text"]
