"""Journeys through the Circuits page that need a model: prompts traced there, interventions, a node's examples."""

import re

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from analysis.circuits.attribution.run import TraceOptions, trace_prompt
from analysis.circuits.formats.opening import open_circuit
from analysis.circuits.graph import Circuit
from analysis.circuits.interventions.on_prompt import steer_prompt
from analysis.index import open_index
from analysis.prompt import encode_text
from analysis.render.text import number
from tests.dashboard.browser import Dashboard, idle, unfold, visit
from tests.dashboard.test_circuit_journeys import node, until

PROMPT = "those east winds"


@pytest.fixture(scope="module")
def traced(dashboard: Dashboard) -> Circuit:
    """The graph of a prompt by the healthy run, as the command makes it from the folder of the runs."""
    root = dashboard.runs.parent
    return trace_prompt(PROMPT, TraceOptions(["runs/healthy"], name="winds", root=root, n_gap=0), quiet=True)


@pytest.fixture(scope="module")
def feature(traced: Circuit) -> str:
    """A feature of it with an effect."""
    rows = [row for row in traced.table() if row["kind"] == "feature" and row["site"] == "resid-0"]
    return str(rows[0]["node"])


def test_a_card_has_the_value_on_the_histogram_and_examples(
    page: Page, dashboard: Dashboard, traced: Circuit, feature: str
) -> None:
    i = int(traced.find(feature)[0])
    f, position = int(traced.nodes.feature[i]), int(traced.nodes.position[i])
    run, value = dashboard.runs / "healthy", float(traced.value[i])
    assert value == pytest.approx(float(encode_text(run, PROMPT).values(f)[position]), rel=1e-4), "of the same SAE and text"
    visit(page, dashboard, "page=circuits&circuit=winds")
    node(page, feature).click()
    card = page.locator(".sx-cg-known")
    expect(card.locator(".sx-mark text")).to_have_text(f"here {number(value)}")
    bars = card.locator(".sx-histogram rect:not(.sx-brush)")
    assert bars.count() == int(np.count_nonzero(open_index(run).feature(f).histogram.counts_pos))
    (example,) = open_index(run).examples(f, "top", "+", 1)
    first = card.locator(".sx-ex").first
    assert first.get_attribute("data-at") == f"{example.seq}.{example.position}"
    first.click()
    expect(first).to_have_class(re.compile("sx-wide"))
    # a token of the prompt has neither, and the card of a feature follows the click at once
    node(page, traced.names[0]).click()
    expect(card).to_have_count(0)
    page.locator(".sx-cg-bars button", has_text="resid-0/f").first.click()
    expect(card.locator(".sx-mark")).to_have_count(1)
    page.get_by_role("link", name="examples").click()
    expect(page).to_have_url(re.compile("page=feature.*run=healthy"))


def test_interventions_show_what_happened_beside_what_was_predicted(
    page: Page, dashboard: Dashboard, traced: Circuit, feature: str
) -> None:
    root, run = dashboard.runs.parent, open_index(dashboard.runs / "healthy")
    visit(page, dashboard, "page=circuits&circuit=winds")
    expect(page.get_by_role("button", name="Run")).to_be_disabled()
    node(page, feature).click(modifiers=["Control"])
    until(page, "view=")
    idle(page)
    f = int(traced.nodes.feature[traced.find(feature)[0]])
    for of, maxima in (("× its largest value in the index", [run.feature(f).max]), ("× its value here", None)):
        page.get_by_role("combobox", name="of each node").click()
        page.get_by_role("option", name=of).click()
        page.get_by_role("spinbutton", name="Strength").fill("2")
        page.get_by_role("button", name="Run").click()
        until(page, "of=max" if maxima else "of=value")
        idle(page)
        wanted = steer_prompt(traced, traced.select(feature), 2.0, maxima=maxima, root=root)
        told = page.locator("[data-steered]")
        change, predicted = (number(one - wanted.before) for one in (wanted.after, wanted.predicted))
        expect(told).to_contain_text(f"(change {change}, predicted {predicted})")
        cells = told.get_by_role("region", name="Next token").locator("tbody tr").first.locator("td").all_inner_texts()
        best = wanted.steered[0]
        assert cells[0] == number(wanted.baseline[0].logit) and cells[-2:] == [number(best.logit), number(best.probability)]
    page.reload()
    idle(page)
    expect(page.locator("[data-steered]")).to_contain_text(f"predicted {predicted}")
    # an error has no largest value: it is refused in one sentence
    error = next(name for name in traced.names if name.startswith("resid-0/error"))
    node(page, error).click(modifiers=["Control"])
    expect(page.locator(".sx-cg-pin")).to_have_count(2)
    page.get_by_role("combobox", name="of each node").click()
    page.get_by_role("option", name="largest").click()
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("alert")).to_contain_text("no largest value")


def test_what_cannot_be_traced_is_said(page: Page, dashboard: Dashboard, slow: str, traced: Circuit) -> None:
    visit(page, dashboard, "page=circuits&circuit=winds")
    unfold(page, "Trace a prompt")
    form = page.locator("[data-testid=stForm]").filter(has=page.get_by_role("textbox", name="Prompt"))
    form.get_by_role("button", name="Trace").click()
    expect(page.get_by_role("alert")).to_contain_text("prompt is empty")
    form.get_by_role("textbox", name="Prompt").fill("those east winds that blow there")
    form.get_by_role("button", name="Trace").click()
    expect(page.get_by_role("alert")).to_contain_text("No SAE is selected")
    idle(page)  # a list closes when the page is drawn
    form.get_by_role("combobox").click()
    page.get_by_role("option", name=slow).click()
    page.keyboard.press("Escape")
    form.get_by_role("textbox", name="Name").fill("winds")
    form.get_by_role("button", name="Trace").click()
    expect(page.get_by_role("alert")).to_contain_text("already a circuit called winds")
    form.get_by_role("textbox", name="Name").fill("long")
    form.get_by_role("textbox", name="Prompt").fill("those " * 30)
    form.get_by_role("button", name="Trace").click()
    expect(page.get_by_role("alert")).to_contain_text("181 tokens")
    page.get_by_role("button", name="Dismiss").click()


def test_what_was_traced_is_saved_and_opens(page: Page, dashboard: Dashboard, traced: Circuit) -> None:
    folder = dashboard.runs.parent / "circuits" / "those-east-winds"
    visit(page, dashboard, f"page=circuits&circuit=winds&prompt={PROMPT.replace(' ', '+')}&saes=healthy&features=60")
    unfold(page, "Trace a prompt")
    page.get_by_role("button", name="Trace").click()
    until(page, "circuit=those-east-winds")
    idle(page)
    made = open_circuit(folder)
    expect(page.locator(".sx-cg-node")).to_have_count(len(made.nodes))
    assert made.names == traced.names and np.allclose(made.weight, traced.weight, atol=1e-5)
    assert [info.run for info in made.sites] == [None, "runs/healthy", None]
    expect(page).not_to_have_url(re.compile("tracing="))


def test_a_trace_shows_how_far_it_is_and_stops(page: Page, dashboard: Dashboard, slow: str, traced: Circuit) -> None:
    prompt = "+".join(["those east winds"] * 7).replace(" ", "+")
    visit(page, dashboard, f"page=circuits&circuit=winds&prompt={prompt}&saes={slow}&features=5000&name=far")
    unfold(page, "Trace a prompt")
    page.get_by_role("button", name="Trace").click()
    expect(page.get_by_text(re.compile(r"Tracing far: .*[1-9]\d* of [\d,]+"))).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Tracing far was stopped; nothing was saved.")).to_be_visible()
    assert not (dashboard.runs.parent / "circuits" / "far").exists()
    page.get_by_role("button", name="Dismiss").click()
    expect(page.get_by_text("Tracing far")).to_have_count(0)
