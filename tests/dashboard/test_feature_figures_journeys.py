"""What evaluations say of single features stands in the table of features, in a real browser."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from analysis.evals.common import features
from analysis.evals.common.result import PerFeature
from analysis.evals.common.seeds import weights_of
from tests.dashboard.browser import Dashboard, idle, visit

N = 64


@pytest.fixture(scope="module")
def area(dashboard: Dashboard) -> np.ndarray:
    """A run that was evaluated; odd features are not said anything of."""
    run = Path(shutil.copytree(dashboard.runs / "healthy", dashboard.runs / "measured"))
    area = np.where(np.arange(N) % 2, np.nan, 0.5 + np.random.default_rng(0).permutation(N) / 200)
    told = tuple(None if i % 2 else ("comment", "<b>string</b>")[i % 4 // 2] for i in range(N))
    features.write(run, "probing", {
        "probe_concept": PerFeature(told, "Tells", "label", "none", "the label"),
        "probe_auc": PerFeature(area, "AUC", "AUC", "higher", "area under ROC"),
    }, weights_of(run))
    features.write(run, "stability", {"seed_cosine": PerFeature(area, "Stability", "cosine", "higher", "cosine")}, "older")
    return area


def listed(page: Page) -> list[int]:
    return [int(text.removeprefix("#")) for text in page.locator(".sx-features tbody th a").all_inner_texts()]


def test_features_are_sorted_and_filtered_by_what_evaluations_say(
    page: Page, dashboard: Dashboard, area: np.ndarray
) -> None:
    visit(page, dashboard, "page=features&run=measured")
    head = page.locator(".sx-features th", has_text="AUC ↑")
    expect(head).to_have_attribute("title", "area under ROC (AUC; higher is better); in filters: probe_auc")
    expect(page.locator(".sx-features th", has_text="Stability")).to_have_count(0)  # of other weights
    head.get_by_role("link").click()
    expect(page.locator("th[aria-sort=descending]")).to_contain_text("AUC")
    known = np.flatnonzero(np.isfinite(area))
    assert listed(page)[: len(known)] == known[np.argsort(-area[known])].tolist()
    idle(page)
    head.get_by_role("link").click()
    expect(page.locator("th[aria-sort=ascending]")).to_contain_text("AUC")
    assert listed(page)[0] == known[area[known].argmin()]
    field = page.locator(".st-key-filter input")
    field.fill("probe_auc >= 0.6, probe_concept = comment")
    field.press("Enter")
    wanted = [f for f in known[np.argsort(area[known])].tolist() if area[f] >= 0.6 and f % 4 == 0]
    expect(page.locator(".sx-features tbody tr")).to_have_count(len(wanted))
    assert listed(page) == wanted and 2 < len(wanted) < 16
    expect(page.locator(".sx-features tbody td", has_text="comment")).to_have_count(len(wanted))
    idle(page)
    page.go_back()
    expect(page.locator(".sx-features tbody tr")).to_have_count(50)
    visit(page, dashboard, "page=features&run=healthy&sort=probe_auc")
    expect(page.locator(".sx-features th", has_text="AUC")).to_have_count(0)
    assert listed(page) == list(range(50))
