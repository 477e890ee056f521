"""What is known of a node's feature beside the graph: its value among the feature's values, and examples, from an index."""

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
"""Tokens before and behind the peak that are seen at first."""


def links(circuit: Circuit) -> dict[int, str]:
    """By row of the graph, the Feature page of its SAE's run, where that is here."""
    found = {i: run_name(info) for i, info in enumerate(circuit.sites)}
    return {i: address.link("feature", **address.of_run(name)) for i, name in found.items() if name is not None}


def run_name(info: SiteInfo) -> str | None:
    """What the run of a site is called here; None where it is not here."""
    root = runs_folder().absolute()
    folder = None if info.run is None else root.parent / info.run
    inside = folder is not None and folder.is_dir() and root in folder.parents
    return folder.relative_to(root).as_posix() if inside and folder is not None else None


def opened(info: SiteInfo) -> Selection:
    """The index of a site's run.

    Raises:
        SaescopeError: the run or its index is not here, cannot be read, or is of another SAE.
    """
    name = run_name(info)
    run = next((one for one in all_runs() if one.name == name), None)
    if run is None:
        where = "This graph names no run" if info.run is None else f"The run of this site, {info.run}, is not here"
        raise SaescopeError(f"{where}: there are no examples of its features, and nobody knows their largest values.")
    found = indexes(run.folder)
    if not found:
        raise SaescopeError(f"{run.name} has no index, which holds its features’ examples and largest values; "
                            f"make one with: sae index {shell(run.folder)}")
    chosen = of_run(run, found[0])
    if chosen.index.manifest["made_from"].get("weights_sha256") != info.sae:
        raise SaescopeError(f"The index of {run.name} is of another SAE than the graph: {run.name} was trained anew since.")
    return chosen


def card(circuit: Circuit, clicked: str | None) -> Mapping[str, str] | None:
    """The part of a node's card that the browser does not know: trusted HTML, in which every text is escaped.

    Returns:
        `node` and `html`; None where no feature's card is open.
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
    """The value of largest size that each pinned feature takes in the index of its run, in the order of `select`.

    Raises:
        SaescopeError: an error or a skip path, which has no such value; or as `opened`.
    """
    found = []
    for site, _, number in circuit.select(*pins).triples:
        if number < 0:
            raise SaescopeError("An error or a skip path has no largest value: unpin it, or multiply its value here.")
        feature = opened(circuit.sites[site]).index.feature(number)
        found.append(feature.max if abs(feature.max) >= abs(feature.min) else feature.min)
    return found
