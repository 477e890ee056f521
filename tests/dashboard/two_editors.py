"""Two browsers edit one run at random: every edit that is said to be saved stays, and every conflict is shown.

    python -m tests.dashboard.two_editors --actions 200 --seed 0

Each action is one of: write a label, a note or tags; star; go to another feature; reload; read on without saving. The two
see each other's edits only when the server next sends the feature, so many of their texts are stale when they are saved.
What must happen is worked out beforehand from what the browser had read and what the labels' file says.
"""

import argparse
import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from analysis.index import build
from analysis.labels.editing import Written
from analysis.labels.store import Labels
from tests.analysis.indexed_runs import train_tiny
from tests.dashboard.browser import TIMEOUT_MS, Dashboard, heading, idle, launch, serve, visit

FEATURES = range(3)
"""Few, so that the two meet often."""
STAR = "starred"
WORDS = ("verbs", "quotes", "self", "numbers", "imports", "loops", "brackets")


class Editor:
    """One browser, and what it does."""

    def __init__(self, page: Page, dashboard: Dashboard, labels: Labels, rng: random.Random) -> None:
        self.page, self.dashboard, self.labels, self.rng = page, dashboard, labels, rng
        self.feature = 0
        self.done: dict[str, int] = {}
        visit(page, dashboard, "page=feature&run=run&f=0")
        page.evaluate("sessionStorage.setItem('saescope more', 'true')")
        self.reload()

    def act(self, expected: dict[int, Written]) -> None:
        """One action; `expected` is what the file must say, and is changed by what this action is to change."""
        name = self.rng.choice(("label", "label", "label", "note", "note", "tags", "star", "go", "reload", "wait"))
        if name in ("label", "note"):
            self.write(name, expected)
        else:
            {"tags": self.tags, "star": self.star, "go": self.go, "reload": lambda _: self.reload(),
             "wait": lambda _: self.page.wait_for_timeout(300)}[name](expected)
        self.done[name] = self.done.get(name, 0) + 1

    def write(self, field: str, expected: dict[int, Written]) -> None:
        """A label or note: saved, or refused with both versions shown and then settled one way or the other."""
        text = f"{self.rng.choice(WORDS)} {self.rng.randrange(1000)}"
        before, there = self.read(), expected[self.feature]
        self.page.locator(f"[data-is={field}]").fill(text)
        self.save()
        if getattr(there, field) in (getattr(before, field), text):
            expected[self.feature] = replace(there, **{field: text})
            self.said("Saved.")
            return
        conflict = self.page.locator("[data-is=conflict]")
        expect(conflict).to_contain_text(text)
        expect(conflict).to_contain_text(getattr(there, field) or "nothing")
        assert self.labels.written(self.feature) == there, "a stale text was written"
        self.done["conflict"] = self.done.get("conflict", 0) + 1
        if self.rng.random() < 0.5:
            self.page.get_by_role("button", name="Keep mine").click()
            self.settled()
            expected[self.feature] = replace(there, **{field: text})
            self.said("Saved.")
        else:
            self.page.get_by_role("button", name="Take theirs").click()
            expect(self.page.locator(f"[data-is={field}]")).to_have_value(getattr(there, field))
            self.settled()
            if self.page.locator("[data-is=discard]").is_visible():
                self.page.locator("[data-is=discard]").click()

    def tags(self, expected: dict[int, Written]) -> None:
        """Some added, some taken away: of those that the other has added meanwhile none is lost."""
        before, there = self.read(), expected[self.feature]
        after = sorted(self.rng.sample(WORDS, self.rng.randrange(4)))
        if tuple(after) == before.tags:
            return
        self.page.locator("[data-is=tags]").fill(", ".join(after))
        self.save()
        self.said("Saved.")
        tags = ({*there.tags} - ({*before.tags} - {*after})) | ({*after} - {*before.tags})
        expected[self.feature] = replace(there, tags=tuple(sorted(tags)))

    def star(self, expected: dict[int, Written]) -> None:
        on = STAR not in self.read().lists
        self.page.locator("[data-is=star]").click()
        self.settled()
        there = expected[self.feature]
        without = [name for name in there.lists if name != STAR]
        expected[self.feature] = replace(there, lists=tuple(sorted([*without, STAR] if on else without)))

    def go(self, _: object) -> None:
        self.feature = self.rng.choice([one for one in FEATURES if one != self.feature])
        number = self.page.locator("[data-is=number]")
        number.fill(str(self.feature))
        number.press("Enter")
        heading(self.page, self.feature)
        self.settled()

    def reload(self) -> None:
        self.page.reload()
        heading(self.page, self.feature)
        idle(self.page)

    def read(self) -> Written:
        """What this browser holds of the feature, true or stale."""
        self.settled()
        told = self.page.evaluate(f"saescopeReader.features.get({self.feature}).written")
        return Written(told["label"], told["note"], tuple(told["tags"]), tuple(told["lists"]))

    def save(self) -> None:
        self.page.locator("[data-is=save]").click()
        self.settled()

    def settled(self) -> None:
        """The server has answered everything."""
        idle(self.page)

    def said(self, text: str) -> None:
        expect(self.page.locator("[data-is=said]")).to_have_text(text)


def main(actions: int, seed: int) -> None:
    """Raise at the first edit that is lost, or conflict that is not shown."""
    rng = random.Random(seed)
    expect.set_options(timeout=TIMEOUT_MS)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        build(train_tiny(folder, "run"), quiet=True)
        labels = Labels(folder / "runs" / "run")
        browsers = [launch(playwright) for _ in range(2)]
        with serve(folder / "runs", folder) as dashboard:
            editors = []
            for browser in browsers:
                assert not isinstance(browser, str), browser
                page = browser.new_page()
                dashboard.watch(page)
                editors.append(Editor(page, dashboard, labels, rng))
            expected = {feature: labels.written(feature) for feature in FEATURES}
            for i in range(actions):
                rng.choice(editors).act(expected)
                found = {feature: labels.written(feature) for feature in FEATURES}
                assert found == expected, f"after action {i}: {found} and not {expected}"
            assert dashboard.met() == []
            for browser in browsers:
                assert not isinstance(browser, str)
                browser.close()
    total = {key: sum(one.done.get(key, 0) for one in editors) for key in sorted({*editors[0].done, *editors[1].done})}
    sys.stdout.write(f"{actions} actions in two browsers: nothing lost, every conflict shown ({total})\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.actions, arguments.seed)
