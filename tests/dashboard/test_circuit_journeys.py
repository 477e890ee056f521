"""Journeys through the Circuits page in a real browser: what a person makes of a graph is in the URL and in its file."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import numpy as np
import pytest
from playwright.sync_api import Locator, Page, expect

from analysis.circuits.attribution.influence import Kinds, subgraph_scores
from analysis.circuits.formats.circuit_tracer.reading import read_graph
from analysis.circuits.formats.circuit_tracer.writing import write_graph
from analysis.circuits.formats.store import save_circuit
from analysis.circuits.nodes import OUTPUT
from analysis.circuits.view import View, view_of, with_view
from tests.analysis.circuits.graphs import attributed, circuit
from tests.dashboard.browser import Dashboard, idle, serve, visit

HOSTILE = '<img src=x onerror=alert(1)>"\u202e</script>'


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """A server whose folder has circuits and no runs."""
    folder = tmp_path_factory.mktemp("circuits-page")
    (folder / "runs").mkdir()
    save_circuit(circuit(n=60, e=150, name="keys"), folder / "circuits" / "keys")
    write_graph(attributed(), folder / "circuits" / "traced.json")
    write_graph(with_view(attributed(), View(pins=(attributed().names[5],))), folder / "circuits" / "pinned.json")
    hostile = json.loads((folder / "circuits" / "traced.json").read_text())
    for node in hostile["nodes"]:
        node["clerp"] = HOSTILE
    hostile["metadata"]["prompt_tokens"] = [HOSTILE] * len(hostile["metadata"]["prompt_tokens"])
    (folder / "circuits" / "hostile.json").write_text(json.dumps(hostile))
    (folder / "circuits" / "broken.json").write_text('{"metadata": {"schema_version": 7}}')
    with serve(folder / "runs", folder) as running:
        yield running


def node(page: Page, name: str) -> Locator:
    page.locator(".sx-cg-node").first.wait_for()
    names = page.evaluate("() => document.querySelector('.sx-cg').page.graph.nodes.name")
    return page.locator(f'.sx-cg-node[data-i="{names.index(name)}"]')


def url_view(page: Page) -> View:
    return View.read(parse_qs(urlsplit(page.url).query).get("view", ["{}"])[-1])


def until(page: Page, check: str) -> None:
    """Wait for the URL's view."""
    expect(page).to_have_url(re.compile(check))


def test_all_that_is_chosen_survives_a_reload_and_a_file(page: Page, dashboard: Dashboard, tmp_path: Path) -> None:
    graph = circuit(n=60, e=150, name="keys")
    features = [name for name in graph.names if "/f" in name][:4]
    visit(page, dashboard, "page=circuits&circuit=keys")
    for name in features[:3]:
        node(page, name).click(modifiers=["Control"])
        expect(node(page, name)).to_have_class(re.compile("sx-cg-pin"))
    node(page, features[0]).click()
    page.get_by_role("button", name="spurious").click()
    label = page.get_by_label("Name of the node")
    label.fill("plural <subject>")
    label.press("Enter")
    page.get_by_role("tab", name="Subgraph (3)").click()
    for name in features[1:3]:
        page.get_by_label(f"group {name}", exact=True).check()
    expect(page.get_by_text("2 nodes:")).to_be_visible()
    page.get_by_label("Name of the new group").fill("verbs")
    page.get_by_role("button", name="group", exact=True).click()
    expect(page.get_by_label("Name of the group", exact=True)).to_have_value("verbs")
    slider = page.get_by_label("Share of the influence of nodes to show")
    slider.fill("0.5")
    until(page, "n%22%3A0.5")
    hidden = page.locator(".sx-cg").get_attribute("data-hidden")
    assert hidden is not None and 0 < int(hidden) < len(graph.nodes)
    expect(page.get_by_text(re.compile(rf"^{hidden} of {len(graph.nodes)} nodes"))).to_be_visible()
    wanted = View(
        pins=tuple(features[:3]), groups=(("verbs", tuple(features[1:3])),), labels={features[0]: "plural <subject>"},
        judged={features[0]: True}, clicked=features[0], node_share=0.5,
    )
    assert url_view(page).model_dump() == wanted.model_dump()
    page.reload()
    idle(page)
    expect(page.get_by_text(re.compile(rf"^{hidden} of"))).to_be_visible()
    expect(page.locator(".sx-cg-pin")).to_have_count(3)
    expect(page.get_by_label("Name of the node")).to_have_value("plural <subject>")
    # the file has all of it, and opens as the same
    with page.expect_download() as saved:
        page.get_by_role("button", name="Graph file").click()
    path = tmp_path / "again.json"
    saved.value.save_as(path)
    back, first = read_graph(path), path.read_bytes()
    assert view_of(back) == wanted and back.names == graph.names
    path.rename(dashboard.runs.parent / "circuits" / "again.json")
    visit(page, dashboard, "page=circuits&circuit=again.json")
    expect(page.locator(".sx-cg-pin")).to_have_count(3)
    expect(page.get_by_label("Name of the node")).to_have_value("plural <subject>")
    expect(page.get_by_text(re.compile(rf"^{hidden} of {len(graph.nodes)} nodes"))).to_be_visible()
    expect(slider).to_have_value("0.5")
    expect(page.get_by_role("button", name="spurious")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("tab", name="Subgraph (3)").click()
    expect(page.get_by_label("Name of the group", exact=True)).to_have_value("verbs")
    expect(page.get_by_text("2 nodes:")).to_be_visible()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Graph file").click()
    assert saved.value.path().read_bytes() == first
    (dashboard.runs.parent / "circuits" / "again.json").unlink()


def test_what_a_file_came_with_can_be_taken_away(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, "page=circuits&circuit=pinned.json")
    expect(page.locator(".sx-cg-pin")).to_have_count(1)
    page.locator(".sx-cg-pin").click(modifiers=["Control"])
    until(page, "view=")
    page.reload()
    idle(page)
    expect(page.locator(".sx-cg-node").first).to_be_visible()
    expect(page.locator(".sx-cg-pin")).to_have_count(0)


def test_back_undoes_a_pin(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, "page=circuits&circuit=keys")
    name = circuit(n=60, e=150).names[5]
    node(page, name).click(modifiers=["Control"])
    until(page, "view=")
    page.go_back()
    expect(page.locator(".sx-cg-pin")).to_have_count(0)


def test_search_and_keys(page: Page, dashboard: Dashboard) -> None:
    graph = circuit(n=60, e=150)
    visit(page, dashboard, "page=circuits&circuit=keys")
    page.get_by_label("Search nodes").fill("cabinet")
    mine = int((graph.nodes.position == 5).sum())
    expect(page.locator(".sx-cg-match")).to_have_count(mine)
    expect(page.get_by_text(re.compile(f"{mine} found"))).to_be_visible()
    page.get_by_label("Search nodes").fill("")
    first = node(page, graph.names[0])
    first.click()
    page.keyboard.press("p")
    expect(first).to_have_class(re.compile("sx-cg-pin"))
    first.focus()
    page.keyboard.press("ArrowUp")
    moved = page.locator(".sx-cg").get_attribute("data-marked")
    assert moved and moved != graph.names[0]


def test_hovering_shows_neighbours(page: Page, dashboard: Dashboard) -> None:
    graph = circuit(n=60, e=150)
    visit(page, dashboard, "page=circuits&circuit=keys")
    counts = np.bincount(np.concatenate([graph.source, graph.target[graph.target >= 0]]), minlength=len(graph.nodes))
    busy = int(counts.argmax())
    near = {int(x) for e in range(len(graph.source)) for x in (graph.source[e], graph.target[e])
            if busy in (graph.source[e], graph.target[e]) and x not in (busy, OUTPUT)}
    node(page, graph.names[busy]).hover()
    expect(page.locator(".sx-cg-near")).to_have_count(len(near))


def test_scores_of_the_pinned_subgraph_are_pythons(page: Page, dashboard: Dashboard) -> None:
    graph = read_graph(dashboard.runs.parent / "circuits" / "traced.json")
    visit(page, dashboard, "page=circuits&circuit=traced.json")
    pinned = [i for i, name in enumerate(graph.names) if name.startswith("transcoder-") and "/f" in name][::3][:6]
    for i in pinned:
        node(page, graph.names[i]).click(modifiers=["Control"])
    page.get_by_role("tab", name="Subgraph (6)").click()
    n = len(graph.nodes)
    adjacency, weights = np.zeros((n, n)), np.zeros(n)
    for s, t, w in zip(graph.source, graph.target, graph.weight, strict=True):
        if t == OUTPUT:
            weights[s] = w
        else:
            adjacency[t, s] = w
    variants = [graph.sites[s].variant for s in graph.nodes.site]
    kinds = Kinds(np.array([v == "embedding" for v in variants]), graph.nodes.feature == -1,
                  np.array([v == "logit" for v in variants]))
    mask = np.zeros(n, dtype=bool)
    mask[pinned] = True
    wanted = subgraph_scores(adjacency, weights, kinds, mask)
    found = page.evaluate("() => document.querySelector('.sx-cg').page.scores()")
    assert found == pytest.approx(wanted, rel=1e-5)  # the browser has six digits
    expect(page.locator(".sx-cg-scores")).to_contain_text("replacement")


def test_hostile_graphs_are_text_and_broken_ones_are_said(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, "page=circuits&circuit=hostile.json")
    page.locator(".sx-cg-node").first.click()
    assert page.locator(".sx-cg img, .sx-cg script").count() == 0
    visit(page, dashboard, "page=circuits&circuit=broken.json")
    expect(page.get_by_text("schema")).to_be_visible()
    visit(page, dashboard, "page=circuits&circuit=keys&view=%7Bnonsense")
    expect(page.get_by_text("valid view of a graph")).to_be_visible()
    expect(page.locator(".sx-cg-node").first).to_be_visible()


def test_the_card_and_what_it_leads_to(page: Page, dashboard: Dashboard) -> None:
    graph = circuit(n=60, e=150)
    degree = np.bincount(np.concatenate([graph.source, graph.target[graph.target >= 0]]), minlength=len(graph.nodes))
    degree[graph.nodes.feature < 0] = 0
    busy = graph.names[int(degree.argmax())]
    visit(page, dashboard, "page=circuits&circuit=keys")
    node(page, busy).focus()
    page.keyboard.press("Enter")
    label = page.get_by_label("Name of the node")
    expect(label).to_have_value(busy)
    expect(page.locator(".sx-cg-known")).to_contain_text("was not found")  # the run, and so its index
    page.get_by_role("button", name="pin", exact=True).click()
    expect(node(page, busy)).to_have_class(re.compile("sx-cg-pin"))
    page.get_by_role("button", name="unpin", exact=True).click()
    expect(page.locator(".sx-cg-pin")).to_have_count(0)
    page.get_by_role("button", name="relevant").click()
    until(page, "%22j%22")
    assert url_view(page).judged == {busy: False}
    page.get_by_role("button", name="relevant").click()
    expect(page).not_to_have_url(re.compile("%22j%22"))
    label.fill("a name")
    label.press("Enter")
    until(page, "%22l%22")
    label.fill(busy)
    label.press("Enter")
    expect(page).not_to_have_url(re.compile("%22l%22"))
    assert url_view(page).labels == {}
    other = page.locator(".sx-cg-bars button").first
    name = other.inner_text()
    other.hover()
    expect(page.locator(".sx-cg")).to_have_attribute("data-marked", name)
    other.click()
    expect(label).to_have_value(name)
    page.keyboard.press("Escape")
    expect(page.get_by_text("Click a node to open its card")).to_be_visible()
    expect(page).not_to_have_url(re.compile("%22c%22"))
    page.get_by_label("Share of the influence of edges to show").fill("0.3")
    until(page, "e%22%3A0.3")
    lost = len(graph.source) - page.evaluate("() => document.querySelector('.sx-cg').page.kept.length")
    assert lost > 0
    expect(page.get_by_text(f"and {lost} of {len(graph.source)} edges hidden")).to_be_visible()
    visit(page, dashboard, "page=circuits&circuit=traced.json")
    graph = read_graph(dashboard.runs.parent / "circuits" / "traced.json")
    inputs = np.bincount(graph.target[graph.target >= 0], minlength=len(graph.nodes))
    node(page, graph.names[int(inputs.argmax())]).click()
    page.get_by_role("button", name=re.compile("smaller ones")).first.click()
    expect(page.locator(".sx-cg-bars").first.locator("li")).to_have_count(int(inputs.max()))


def test_groups_are_renamed_dissolved_and_unpinned(page: Page, dashboard: Dashboard) -> None:
    graph = circuit(n=60, e=150)
    mine = [name for name in graph.names if "/f" in name][:3]
    view = View(pins=tuple(mine), groups=(("both", tuple(mine[:2])),)).text()
    visit(page, dashboard, f"page=circuits&circuit=keys&view={quote(view)}")
    page.get_by_role("tab", name="Subgraph (3)").click()
    page.get_by_label("Name of the group", exact=True).fill("two")
    page.get_by_label("Name of the group", exact=True).press("Enter")
    until(page, "two")
    page.get_by_role("button", name="dissolve").click()
    expect(page.locator(".sx-cg-group")).to_have_count(0)
    page.get_by_label(f"unpin {mine[2]}", exact=True).click()
    expect(page.get_by_role("tab", name="Subgraph (2)")).to_be_visible()
    page.locator(".sx-cg-list").get_by_role("button", name=mine[1], exact=True).click()
    expect(page.get_by_label("Name of the node")).to_have_value(mine[1])
    until(page, "%22c%22")
    assert url_view(page).model_dump() == View(pins=tuple(mine[:2]), clicked=mine[1]).model_dump()
    page.get_by_role("tab", name="Subgraph (2)").click()
    page.get_by_role("tab", name="Node").click()
    expect(page.get_by_label("Name of the node")).to_be_visible()


def test_another_circuit_is_chosen_and_its_figures_are_read(page: Page, dashboard: Dashboard) -> None:
    visit(page, dashboard, "page=circuits&circuit=keys&view=%7B%22n%22%3A0.5%7D")
    page.get_by_role("combobox", name="Circuit").click()
    page.get_by_role("option", name="traced.json").click()
    until(page, "circuit=traced.json")
    expect(page.locator(".sx-cg-node")).to_have_count(len(attributed().nodes))
    expect(page).not_to_have_url(re.compile("view="))
    page.get_by_text("What was measured").click()
    expect(page.get_by_text("largest edges")).to_be_visible()
