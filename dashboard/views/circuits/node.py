"""Node cards: the node's value within its feature's histogram, and examples, both from an index."""

from collections.abc import Mapping
from html import escape

from analysis.circuits.graph import Circuit, SiteInfo
from analysis.index import indexes
from analysis.index.types import Side
from analysis.render import feature as drawn
from analysis.render.figures import histogram
from analysis.render.text import shown
from dashboard.escaping import shell
from dashboard.settings import runs_folder
from dashboard.state import address
from dashboard.state.selection import Selection, names, of_run
from dashboard.state.watched_runs import all_runs
from dashboard.views.feature.bundle import sections
from sae.errors import SaescopeError

GROUPS = {"top": 5, "q5": 3, "random": 3}
REACH = (9, 5)
"""Tokens shown before and after the peak at first."""


def links(circuit: Circuit) -> dict[int, str]:
    """Row of the graph → URL of the Feature page of its SAE's run, if that run exists here."""
    found = {i: run_name(info) for i, info in enumerate(circuit.sites)}
    return {i: address.link("feature", **address.of_run(name)) for i, name in found.items() if name is not None}


def run_name(info: SiteInfo) -> str | None:
    """The local name of a site's run; None if the run isn't in the runs folder."""
    root = runs_folder().absolute()
    folder = None if info.run is None else root.parent / info.run
    inside = folder is not None and folder.is_dir() and root in folder.parents
    return folder.relative_to(root).as_posix() if inside and folder is not None else None


def opened(info: SiteInfo) -> Selection:
    """Open the index of a site's run.

    Raises:
        SaescopeError: the run or its index is missing or unreadable, or the index is of another SAE.
    """
    name = run_name(info)
    run = next((one for one in all_runs() if one.name == name), None)
    if run is None:
        where = "This graph names no run" if info.run is None else f"This site's run, {info.run}, was not found"
        raise SaescopeError(f"{where}, so the examples and largest values of its features are unknown.")
    found = indexes(run.folder)
    if not found:
        raise SaescopeError(f"{run.name} has no index, which holds its features’ examples and largest values; "
                            f"build one with: sae index {shell(run.folder)}")
    chosen = of_run(run, found[0])
    if chosen.index.manifest["made_from"].get("weights_sha256") != info.sae:
        raise SaescopeError(f"The index of {run.name} is of another SAE than the graph: {run.name} was retrained since.")
    return chosen


def card(circuit: Circuit, clicked: str | None) -> Mapping[str, str] | None:
    """The server's part of a node card: trusted HTML with all text escaped.

    Returns:
        `node` and `html`; None if no feature's card is open.
    """
    if clicked is None:
        return None
    i = int(circuit.find(clicked)[0])
    info, feature = circuit.sites[int(circuit.nodes.site[i])], int(circuit.nodes.feature[i])
    if feature < 0 or info.variant in ("embedding", "logit"):
        return None
    try:
        html = _feature(opened(info), feature, float(circuit.value[i]))
    except SaescopeError as error:
        html = f'<p class="sx-quiet">{escape(str(error))}</p>'
    return {"node": clicked, "html": html}


def _feature(chosen: Selection, number: int, value: float) -> str:
    index = chosen.index
    feature, side = index.feature(number), _side(value)
    if feature.dead:
        return drawn.empty(feature)
    rows = "".join(drawn.group(one, feature, reach=REACH) for one in sections(index, number, side, GROUPS) if one.examples)
    drawing = histogram.svg(feature, mark=None if value != value else value)
    label = names(chosen)[number].label
    named = f"<p><b>{shown(label, limit=120)}</b></p>" if label else ""
    return (f"{named}{drawn.firing(feature, index.fires_on(number))}"
            f"<h3>Values when active</h3>{drawing}{rows or drawn.empty(feature)}")


def _side(value: float) -> Side:
    return "-" if value < 0 else "+"


def largest(circuit: Circuit, pins: tuple[str, ...]) -> list[float]:
    """Each pinned feature's largest value by magnitude in its run's index, signed, in the order of `select`.

    Raises:
        SaescopeError: an error node or a skip path is pinned, which has no such value; or as `opened`.
    """
    found = []
    for site, _, number in circuit.select(*pins).triples:
        if number < 0:
            raise SaescopeError("Error nodes and skip paths have no largest value: unpin them or scale their values here.")
        feature = opened(circuit.sites[site]).index.feature(number)
        found.append(feature.max if abs(feature.max) >= abs(feature.min) else feature.min)
    return found
