"""Interactive circuit graph: highlighting, pruning, pinning, grouping and search in the browser; Python gets the view."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import streamlit as st

from analysis.circuits.view import View
from analysis.render.css import NEGATIVE, POSITIVE
from dashboard.state import address

_CSS = f"""
.sx-cg-bar{{display:flex;flex-wrap:wrap;gap:.3rem 1rem;align-items:center;margin-bottom:.4rem}}
.sx-cg-bar label{{display:inline-flex;gap:.4rem;align-items:center}}
.sx-cg input{{font:inherit;color:inherit;background:transparent;border:1px solid var(--sx-rule);border-radius:4px;
padding:.1rem .4rem}}
.sx-cg input[type=range]{{width:8rem;padding:0;accent-color:{POSITIVE}}}
.sx-cg-both{{display:grid;grid-template-columns:minmax(0,1fr) 20rem;gap:1rem;align-items:start}}
@container (max-width:50rem){{.sx-cg-both{{grid-template-columns:minmax(0,1fr)}}}}
.sx-cg-scroll{{overflow:auto;max-height:44rem;border:1px solid var(--sx-rule);border-radius:6px}}
.sx-cg-stack{{position:relative}}
.sx-cg-stack>*{{position:absolute;left:0;top:0}}
.sx-cg-stack canvas{{pointer-events:none}}
.sx .sx-cg-stack svg{{width:auto;max-width:none}}
.sx .sx-cg-stack>.sx-cg-rows{{position:sticky;background:var(--sx-ground,Canvas);pointer-events:none}}
.sx-cg-node{{cursor:pointer;fill:currentColor;fill-opacity:.55;stroke:transparent;stroke-width:2}}
.sx-cg-feature{{fill:{POSITIVE};fill-opacity:1}}
.sx-cg-error,.sx-cg-skip{{fill:currentColor;fill-opacity:.3}}
.sx-cg-off{{display:none}}
.sx-cg-sure{{stroke:color-mix(in srgb,currentColor 60%,transparent);stroke-width:1.5}}
.sx-cg-bad{{fill:{NEGATIVE};fill-opacity:1}}
.sx-cg-pin{{stroke:currentColor;stroke-width:2.5}}
.sx-cg-near{{stroke:{NEGATIVE};stroke-width:3}}
.sx-cg-match{{stroke:currentColor;stroke-width:4;stroke-dasharray:2 2}}
.sx-cg-on{{stroke:currentColor;stroke-width:5}}
.sx-cg-node:focus-visible{{outline:2px solid currentColor}}
.sx-cg-side{{max-height:44rem;overflow:auto;min-width:0;outline:none}}
.sx-cg-tabs{{display:flex;gap:.4rem;margin-bottom:.5rem}}
.sx-cg [aria-selected=true],.sx-cg [aria-pressed=true]{{background:var(--sx-soft);font-weight:600}}
.sx-cg-buttons{{display:flex;flex-wrap:wrap;gap:.4rem;align-items:center;margin:.4rem 0}}
.sx .sx-cg-name{{width:100%;font-weight:600}}
.sx-cg-bars,.sx-cg-list{{list-style:none;margin:0;padding:0}}
.sx-cg-bars li{{display:grid;grid-template-columns:minmax(0,1fr) auto;gap:0 .6rem;margin:0 0 .15rem}}
.sx-cg-bars .sx-bar{{grid-column:1/-1;margin-top:0}}
.sx-cg-bars .sx-num,.sx-cg-bars span{{font-size:.75rem}}
.sx .sx-cg-bars button,.sx .sx-cg-list button{{border:none;padding:0;text-align:left;overflow-wrap:anywhere}}
.sx-cg-list li{{display:flex;gap:.4rem;align-items:baseline;margin:0}}
.sx-cg-group{{border:1px solid var(--sx-rule);border-radius:6px;padding:.4rem;margin-bottom:.5rem}}
"""
_graph = st.components.v2.component(
    "saescope_circuit_graph", css=_CSS,
    js=(Path(__file__).parent / "circuit_graph.js").read_text(encoding="utf-8"), isolate_styles=False,
)


def circuit_graph(
    data: Mapping[str, Any], view: View, links: Mapping[int, str], card: Mapping[str, str] | None, came_with: View
) -> None:
    """Draw a graph; the user's choices in it go into the URL's `view`.

    Args:
        data: output of `analysis.render.circuit_data.graph_data`.
        view: what to show of the graph.
        links: row of the graph → URL of the Feature page for that row's SAE.
        card: extra content for the open node card: the node's name, `node`, and trusted `html`.
        came_with: the default view, used if the URL has none.
    """
    shown = view.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    given = {"graph": dict(data), "view": shown, "links": {str(row): link for row, link in links.items()},
             "card": card}
    _graph(key="circuit_graph", data=given, on_view_change=lambda: _chosen(came_with))


def _chosen(came_with: View) -> None:
    text = st.session_state["circuit_graph"].view
    if text:
        shown = None if text == came_with.text() else json.dumps(json.loads(text), separators=(",", ":"))
        address.update(view=shown, tracing=None)  # a user who keeps working here shouldn't be taken to a finished trace
