"""Labels of an index with planted features, written and judged by a server on this machine."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.labels.automatic import AFTER, BEFORE, N_JUDGED, Explainer
from analysis.labels.by_model.chat import Question
from analysis.labels.by_model.endpoint import Endpoint
from analysis.labels.by_model.labelling import Cost, Labelling, Settings
from analysis.labels.by_model.local import LocalModel
from analysis.labels.store import Label, Labels
from analysis.render.feature import verdict
from sae.errors import SaescopeError
from tests.analysis.labels.by_model.chat_server import MODEL, Broken, ChatServer, TooLong
from tests.analysis.labels.by_model.speller import JUDGING, LINE, fits, speller
from tests.analysis.labels.test_automatic import N_CTX, Planted


def accuracy(text: str, label: Label) -> float:
    """Of a label's text, on the examples by which another was judged."""
    right: dict[bool, list[bool]] = {True: [], False: []}
    for one in label.judged:
        right[one.active].append(fits(text, one.pieces[one.peak]) == one.active)
    return (sum(right[True]) / len(right[True]) + sum(right[False]) / len(right[False])) / 2


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    return Labels(tmp_path, weights="w")


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted()


def labelled(
    planted: Planted, labels: Labels, server: ChatServer, features: list[int], *, n_parallel: int = 3, **settings: object
) -> Labelling:
    chat = Endpoint(server.url, MODEL, n_parallel=n_parallel, pause_s=0.01)
    labelling = Labelling(planted, labels, chat, Settings(**settings))  # type: ignore[arg-type]
    try:
        labelling.run(labelling.plan(features))
    finally:
        chat.close()
    return labelling


def test_labels_are_scored_as_rules_are(planted: Planted, labels: Labels) -> None:
    """A judge that follows the same rule says the same of the same examples, and so comes to the same score."""
    labels.set_label(0, "mine")
    with ChatServer(speller) as server:
        labelling = labelled(planted, labels, server, list(range(7)))
    host = server.url.split("/")[2]
    rules = Explainer(planted)  # type: ignore[arg-type]
    assert labels.get(0).text == "mine" and labels.every(0)[1].text == "spelt import"  # type: ignore[union-attr]
    for feature, text in ((0, "spelt import"), (6, "spelt x (negative side)")):
        rule = rules.label(feature)
        label = labels.every(feature)[-1]
        assert rule is not None and label.text == text and label.model == f"{MODEL} at {host}"
        assert label.score == rule.score == 1.0 and label.judged == rule.judged
    assert labels.get(5) is None  # never active
    to = labels.get(1)
    assert to is not None and to.text == "spelt to"
    # half of what is not "to" after "seem" is "to" elsewhere
    active, said = (np.array([getattr(one, side) for one in to.judged]) for side in ("active", "said"))
    assert to.score == (said[active].mean() + (~said[~active]).mean()) / 2 <= 0.75 and active.sum() == N_JUDGED
    for one in (to, labels.every(0)[1]):
        assert one.baseline in {accuracy(other.text, one) for other in labels.automatic() if other.feature != one.feature}
    assert labelling.outcome.counted and not labelling.outcome.unjudged
    assert labelling.outcome.cost == Cost(18, *np.sum(server.answered, 0).tolist())


def test_what_explains_and_what_judges_share_no_document(planted: Planted, labels: Labels) -> None:
    planted = Planted()
    unit = np.arange(planted.tokens.size).reshape(planted.tokens.shape) // 50
    planted.arrays["unit"] = unit.astype(np.int32)
    labelling = Labelling(planted, labels, Endpoint("http://localhost:1", MODEL))  # type: ignore[arg-type]
    shown, unit = labelling.shown, unit.reshape(-1)
    rows = shown.chosen(0)
    assert len(rows) == 20 and len(set((rows // N_CTX).tolist())) == 20 and set(unit[rows] % 2) == {0}
    strength = np.abs(planted.dense[rows, 0])
    everything = np.sort(np.abs(planted.dense[:, 0][(unit % 2 == 0) & (planted.dense[:, 0] != 0)]))
    assert strength[0] == everything[-1] and strength[-1] < np.median(everything)
    assert (np.diff(strength) <= 0).all()
    judges = shown.judges(0)
    assert judges is not None and set(unit[judges.rows] % 2) == {1}
    assert judges.active.tolist() != sorted(judges.active.tolist(), reverse=True)  # mixed
    for row in rows.tolist():
        excerpt = shown._excerpt(0, row)
        start = next(s for s in range(max(0, row % N_CTX - 20), row % N_CTX + 1) if unit[row - row % N_CTX + s] % 2 == 0
                     and (unit[row - row % N_CTX + s : row + 1] % 2 == 0).all())
        seen = row - row % N_CTX + start + np.arange(len(excerpt.pieces))
        assert (unit[seen] % 2 == 0).all() and row in seen
        assert [s > 0 for s in excerpt.strengths] == (planted.dense[seen, 0] != 0).tolist()
    prompt = shown.to_judge("a", judges)
    windows = [planted.window(0, *divmod(row, N_CTX), BEFORE, AFTER).pieces for row in judges.rows.tolist()]
    assert [re.sub("<<|>>", "", line) for line in LINE.findall(prompt.text)] == ["".join(pieces) for pieces in windows]


def test_it_goes_on_where_it_was_stopped(planted: Planted, labels: Labels, tmp_path: Path) -> None:
    features = [0, 1, 2, 4, 6]
    with ChatServer(speller) as server:
        for n_answers in (2, 2, 3):  # two labels, two more, the last and one judged
            server.answering = failing_after(n_answers)
            with pytest.raises(SaescopeError, match="broken"):
                labelled(planted, labels, server, features, n_parallel=1)
        assert [one.score is None for one in labels.automatic()] == [False, True, True, True, True]
        server.answering = failing_after(1_000)
        labelling = labelled(planted, labels, server, features)
        assert labelling.outcome.cost.n_requests == 8  # the other four, judged by their own label and by another's
        n_before, plan = len(server.requests), labelling.plan(features)
        assert (plan.unlabelled, plan.unscored, plan.n_done) == ([], [], 5)
        whole = Labels(tmp_path / "whole", weights="w")
        (tmp_path / "whole").mkdir()
        labelled(planted, whole, server, features)
        assert len(server.requests) == n_before + 15
        for feature in features:
            assert found(labels, feature) == found(whole, feature)
        again = labelling.plan(features, anew=True)
        assert again.unlabelled == features and not again.n_replaced


def found(labels: Labels, feature: int) -> tuple[object, ...]:
    """A label, wherever it comes from."""
    (label,) = labels.every(feature)
    return label.text, label.score, label.baseline, label.judged


def failing_after(n: int) -> Callable[[str, int], tuple[str, int, int]]:
    """Answers `n` prompts, then breaks."""
    left = [n]

    def answering(prompt: str, _: int) -> tuple[str, int, int]:
        left[0] -= 1
        if left[0] < 0:
            raise Broken
        return speller(prompt), 1, 1

    return answering


def test_what_one_question_meets_stops_no_other(planted: Planted, labels: Labels) -> None:
    def answering(prompt: str, _: int) -> tuple[str, int, int]:
        if "<<x>>" in prompt.lower():
            raise TooLong
        return speller(prompt), 1, 1

    with ChatServer(answering=answering) as server:
        labelling = labelled(planted, labels, server, [0, 6], n_parallel=1, scored=False)
        assert labelling.outcome.wordless == [6] and "too long" in labelling.outcome.refusal
        assert [one.feature for one in labels.automatic()] == [0]
        with pytest.raises(SaescopeError, match="too long"):  # nothing was answered
            labelled(planted, labels, server, [6], n_parallel=1)


def test_labels_of_other_origin_give_way_and_yours_stay(planted: Planted, labels: Labels) -> None:
    labels.set_label(1, "mine")
    there = (0, "a rule", "contrast 2"), (1, "theirs", "model b at c, prompt 1")
    labels.put([Label(feature, text, "auto", method=method) for feature, text, method in there])
    with ChatServer(speller) as server:
        chat = Endpoint(server.url, MODEL)
        plan = Labelling(planted, labels, chat).plan([0, 1, 2])  # type: ignore[arg-type]
        chat.close()
        assert plan.n_replaced == 2 and plan.unlabelled == [0, 1, 2]
        labelled(planted, labels, server, [0, 1, 2], scored=False)
    assert [one.text for one in labels.automatic()][:2] == ["spelt import", "spelt to"] and len(labels.automatic()) == 3
    assert labels.get(1).text == "mine" and all(one.score is None for one in labels.automatic())  # type: ignore[union-attr]


def test_answers_that_say_nothing_or_mean_harm(planted: Planted, labels: Labels) -> None:
    texts = iter(["", "LABEL: </bdi><script>\x1b[31m\u202e" + "x" * 5000, "<think>", "ok"])

    def answer(prompt: str) -> str:
        return "[99]" if re.search(JUDGING, prompt) else next(texts)

    with ChatServer(answering=lambda prompt, _: (answer(prompt), 1, 1)) as server:
        labelling = labelled(planted, labels, server, [0, 1, 2, 6], n_parallel=1)
        assert labelling.outcome.wordless == [0, 2] and labelling.outcome.unjudged == [1, 6]
        harm = labels.get(1)
        assert harm is not None and harm.text.isprintable() and len(harm.text) <= 200 and harm.score is None
        assert [one.feature for one in labels.automatic()] == [1, 6]
        plan = labelling.plan([0, 1, 2, 6])
        assert (plan.unlabelled, plan.unscored) == ([0, 2], [1, 6])
    html = verdict(Label(1, "x", "auto", method="model <b>m</b> at h, prompt 1"))
    assert "&lt;b&gt;m&lt;/b&gt; at h" in html and "prompt 1" not in html


def test_the_packaged_model_labels_at_a_server_as_it_does_here(
    planted: Planted, labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server generates with transformers' own `generate`, and counts with its tokenizer."""
    monkeypatch.setattr("analysis.labels.automatic.N_JUDGED", 4)
    here = LocalModel("smollm2-135m", device="cpu", dtype="float32")
    settings = Settings(n_examples=3, max_tokens=12)
    (tmp_path / "there").mkdir()
    there = Labels(tmp_path / "there", weights="w")
    local = Labelling(planted, labels, here, settings)  # type: ignore[arg-type]
    labels.put([Label(1, "an infinitive", "auto", method=local.method)])
    local.run(local.plan([0]))
    with ChatServer(answering=generating(here)) as server:
        chat = Endpoint(server.url, MODEL, n_parallel=1)
        remote = Labelling(planted, there, chat, settings)  # type: ignore[arg-type]
        there.put([Label(1, "an infinitive", "auto", method=remote.method)])
        plan = remote.plan([0])
        forecast, outcome = remote.cost(plan), remote.run(plan)
        chat.close()
    assert local.outcome.cost == outcome.cost and len(server.requests) == outcome.cost.n_requests
    for expected, rel in ((forecast, 0.3), (local.cost(local.plan([0], anew=True)), 0.15)):
        assert expected.n_requests == outcome.cost.n_requests == 3
        assert expected.n_in == pytest.approx(outcome.cost.n_in, rel=rel)
    assert found(labels, 0) == found(there, 0) and len(labels.names()[0]) > 3
    with pytest.raises(SaescopeError, match=f"{here.model.n_ctx_max:,}"):
        here.ask(Question("x"), here.model.n_ctx_max)
    assert labels.get(0).model == "smollm2-135m" != there.get(0).model  # type: ignore[union-attr]


def generating(local: LocalModel) -> Callable[[str, int], tuple[str, int, int]]:
    tokenizer, network = local.model.tokenizer, local.model._network

    def answering(prompt: str, limit: int) -> tuple[str, int, int]:
        begin, end = ("[", "]") if re.search(JUDGING, prompt) else ("LABEL:", "\n")
        messages = [{"role": "user", "content": prompt}]
        chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        tokens = tokenizer(chat + begin, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            out = network.generate(**tokens, max_new_tokens=limit, do_sample=False, stop_strings=end, tokenizer=tokenizer)
        made = out[0, tokens.input_ids.shape[1] :]
        return begin + tokenizer.decode(made, skip_special_tokens=True), tokens.input_ids.shape[1], len(made)

    return answering
