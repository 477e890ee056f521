from dataclasses import replace
from pathlib import Path

import pytest
import torch

from analysis.labels.names import Name
from analysis.render import steering as render
from analysis.steering.generate import Edit, Editor, Settings, Steered, steer, stream
from analysis.trained import TrainedSAE, open_trained
from sae.errors import SaescopeError
from tests.analysis.markup import Page, check_visible
from tests.analysis.model_runs import HOOK, write_live_run
from tests.analysis.samples import HOSTILE

TEXT = "the quick brown"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_live_run(tmp_path_factory.mktemp("steering"))[0]


@pytest.fixture(scope="module")
def loaded(run: Path) -> TrainedSAE:
    return open_trained(run)


def residual(loaded: TrainedSAE, tokens: torch.Tensor, editor: Editor | None, hook: str = HOOK) -> torch.Tensor:
    """What the model carries at the hook, `[n, d]`, behind the edits."""
    found: list[torch.Tensor] = []

    def capture(acts: torch.Tensor) -> torch.Tensor:
        found.append(acts[0].clone())
        return acts

    with torch.no_grad():
        if editor is None:
            with loaded.model.splice(hook, capture):
                loaded.model.logits(tokens[None])
        else:
            with editor.spliced(len(tokens)), loaded.model.splice(hook, capture):
                loaded.model.logits(tokens[None])
    return found[0]


def test_nothing_added_changes_no_bit(loaded: TrainedSAE) -> None:
    tokens = loaded.tokens(TEXT)
    plain = loaded.model.logits(tokens[None])
    with Editor(loaded, [Edit(3, 0.0), Edit(5, 0.0)], Settings(), tokens).spliced(len(tokens)):
        assert torch.equal(loaded.model.logits(tokens[None]), plain)
    assert torch.equal(loaded.model.logits(tokens[None]), plain)


def test_adding_moves_exactly_the_chosen_positions(loaded: TrainedSAE) -> None:
    tokens = loaded.tokens(TEXT)
    clean = residual(loaded, tokens, None)
    d3, d5 = (loaded.sae.W_dec[f] / loaded.sae.W_dec[f].norm() for f in (3, 5))
    moved = residual(loaded, tokens, Editor(loaded, [Edit(3, 2.5)], Settings(positions=[1, 4]), tokens))
    expected = clean.clone()
    expected[[1, 4]] = clean[[1, 4]] + 2.5 * d3
    assert torch.equal(moved, expected)
    assert float((moved - clean)[1].norm()) == pytest.approx(2.5, rel=1e-5)
    both = residual(loaded, tokens, Editor(loaded, [Edit(3, 2.5), Edit(5, -1.0)], Settings(positions=[2]), tokens))
    torch.testing.assert_close(both[2] - clean[2], 2.5 * d3 - d5, atol=1e-6, rtol=1e-5)
    assert torch.equal(both[[0, 1, 3]], clean[[0, 1, 3]])


def test_clamping_keeps_the_error_and_the_other_features(loaded: TrainedSAE) -> None:
    tokens = loaded.tokens(TEXT)
    clean = residual(loaded, tokens, None)
    code = loaded.sae.encode(clean).to_dense()
    feature = int((code[1:] != 0).sum(0).argmax())
    assert 0 < int((code[1:, feature] != 0).sum()) < len(tokens) - 1, "the feature should fire on some tokens only"
    held = residual(loaded, tokens, Editor(loaded, [Edit(feature, 1.5, "clamp")], Settings(), tokens))
    direction = (loaded.sae.W_dec[feature] / loaded.sae.W_dec[feature].norm()).detach()
    change = (1.5 - code[1:, feature])[:, None] * direction
    torch.testing.assert_close(held[1:], clean[1:] + change, atol=1e-6, rtol=1e-6)
    assert torch.equal(held[0], clean[0])  # BOS
    # the pre-activation moves by what the encoder reads of the direction, per unit of activation
    w_enc, _ = loaded.sae.encoder()
    gain = (w_enc[:, feature] @ direction) * loaded.sae.lengths()[feature] * loaded.sae.input.scale
    before, after = (_pre(loaded, x[1:], feature) for x in (clean, held))
    torch.testing.assert_close(after - before, (1.5 - code[1:, feature]) * gain.detach(), atol=1e-5, rtol=1e-5)


def _pre(loaded: TrainedSAE, x: torch.Tensor, feature: int) -> torch.Tensor:
    """The feature's pre-activation in the units of its activations, written out."""
    sae = loaded.sae
    w_enc, b_enc = sae.encoder()
    x = sae.input.normalise(x) - (0 if sae.b_pre is None else sae.b_pre)
    return ((x @ w_enc + b_enc)[:, feature] * sae.lengths()[feature]).detach()


def test_positions_by_name(loaded: TrainedSAE) -> None:
    tokens = loaded.tokens(TEXT)
    n = len(tokens)
    longer = torch.cat([tokens, tokens[1:4]])
    clean = residual(loaded, longer, None)
    places = {"all": range(1, n + 3), "prompt": range(1, n), "generated": range(n - 1, n + 3)}
    for where, expected in (*places.items(), ([0], [0])):
        moved = residual(loaded, longer, Editor(loaded, [Edit(1, 1.0)], Settings(positions=where), tokens))
        assert (moved != clean).any(1).nonzero().squeeze(-1).tolist() == list(expected), where


def test_at_a_transcoders_site_the_input_is_read_and_the_target_moved(tmp_path: Path) -> None:
    target = "blocks.1.hook_mlp_out"
    folder, sae, model = write_live_run(tmp_path, target=target)
    loaded = open_trained(folder)
    tokens = loaded.tokens(TEXT)
    at_input, at_target = (residual(loaded, tokens, None, hook) for hook in (HOOK, target))
    editor = Editor(loaded, [Edit(7, 2.0, "clamp")], Settings(), tokens)
    moved = residual(loaded, tokens, editor, target)
    current = sae.encode(at_input).to_dense()[:, 7]
    direction = sae.W_dec[7] / sae.W_dec[7].norm()
    torch.testing.assert_close(moved[1:] - at_target[1:], (2.0 - current[1:])[:, None] * direction, atol=1e-5, rtol=1e-5)
    assert torch.equal(residual(loaded, tokens, editor, HOOK), at_input)
    assert model.name == "native:tiny"


@pytest.mark.parametrize("update", [True, "both"])
def test_clamping_an_update_reads_what_its_sae_reads(update: bool | str, tmp_path: Path) -> None:
    """With `both` a feature's value is that of the update, not of the block's input."""
    after = "blocks.1.hook_resid_post"
    folder, sae, _ = write_live_run(tmp_path, target=after, site={"input": HOOK, "target": after, "update": update})
    loaded = open_trained(folder)
    tokens = loaded.tokens(TEXT)
    before_block, behind = (residual(loaded, tokens, None, hook) for hook in (HOOK, after))
    code = sae.encode(behind - before_block if update == "both" else before_block).to_dense()
    other = sae.encode(before_block if update == "both" else behind - before_block).to_dense()
    feature = int((code[1:] - other[1:]).abs().sum(0).argmax())
    held = residual(loaded, tokens, Editor(loaded, [Edit(feature, 1.5, "clamp")], Settings(), tokens), after)
    direction = sae.W_dec[feature] / sae.W_dec[feature].norm()
    expected = behind[1:] + (1.5 - code[1:, feature])[:, None] * direction
    torch.testing.assert_close(held[1:], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(held[0], behind[0])


def test_strength_zero_gives_the_same_text(run: Path) -> None:
    result = steer(run, TEXT, [Edit(3, 0.0)], Settings(max_tokens=12, seed=4))
    assert result.baseline == result.steered and result.parted is None
    assert all(one.baseline == one.steered for one in result.alternatives)


def test_a_strong_edit_parts_the_texts_and_a_seed_repeats_them(run: Path) -> None:
    settings = Settings(max_tokens=12, seed=4)
    first = steer(run, TEXT, [Edit(3, 50.0)], settings)
    again = steer(run, TEXT, [Edit(3, 50.0)], settings)
    assert first == again and first.parted is not None
    assert first.baseline == steer(run, TEXT, [], settings).baseline
    assert steer(run, TEXT, [], replace(settings, seed=5)).baseline.tokens != first.baseline.tokens
    assert len(first.baseline.logprobs) == len(first.baseline.tokens) == len(first.baseline.pieces)
    assert first.steered.tokens[: first.parted] == first.baseline.tokens[: first.parted]


def test_a_stream_grows_to_the_whole(run: Path) -> None:
    settings = Settings(max_tokens=9, seed=4)
    parts = list(stream(run, TEXT, [Edit(3, 50.0)], settings))
    assert parts[-1] == steer(run, TEXT, [Edit(3, 50.0)], settings) and len(parts) == 9

    def tokens(part: Steered) -> tuple[list[int], list[int]]:
        return part.baseline.tokens, part.steered.tokens

    for n, part in enumerate(parts, start=1):
        for now, whole in zip(tokens(part), tokens(parts[-1]), strict=True):
            assert now == whole[:n]


def test_both_in_one_batch_are_what_each_is_alone(loaded: TrainedSAE, run: Path) -> None:
    """The edited text against a plain forward of it under the same edit; the other against one without."""
    edits, settings = [Edit(3, 20.0)], Settings(max_tokens=8, temperature=0.0)
    result = steer(run, TEXT, edits, settings)
    prompt = loaded.tokens(TEXT)
    for text, edited in ((result.baseline, []), (result.steered, edits)):
        whole = torch.cat([prompt, torch.tensor(text.tokens)])
        with Editor(loaded, edited, settings, prompt).spliced(len(whole)):
            logits = loaded.model.logits(whole[None])[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == text.tokens
        expected = logits.log_softmax(-1).gather(1, torch.tensor(text.tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(text.logprobs), expected, atol=1e-5, rtol=1e-5)
    assert result.parted is not None


def test_others_may_use_the_model_between_two_tokens(run: Path) -> None:
    settings = Settings(max_tokens=6, seed=4)
    alone = steer(run, TEXT, [Edit(3, 50.0)], settings)
    first, second = (stream(run, TEXT, [Edit(3, 50.0)], settings) for _ in range(2))
    both = [part for pair in zip(first, second, strict=True) for part in pair]
    assert both[-2] == both[-1] == alone


def test_generated_begins_with_the_first_new_token(run: Path) -> None:
    """Which is drawn from what stands at the prompt's last token."""
    strong = [Edit(f, 80.0) for f in range(8)]
    result = steer(run, TEXT, strong, Settings(max_tokens=3, temperature=0.0, positions="generated"))
    assert result.parted == 0


def test_greedy_generation_is_the_models_own(loaded: TrainedSAE, run: Path) -> None:
    result = steer(run, TEXT, [], Settings(max_tokens=5, temperature=0.0))
    tokens = loaded.tokens(TEXT)
    for token, logprob in zip(result.baseline.tokens, result.baseline.logprobs, strict=True):
        logits = loaded.model.logits(tokens[None])[0, -1]
        assert token == int(logits.argmax())
        assert logprob == pytest.approx(float(logits.log_softmax(-1)[token]), abs=1e-5)
        tokens = torch.cat([tokens, torch.tensor([token])])


def test_sampling_follows_the_models_probabilities() -> None:
    from analysis.steering.generate import choose, gumbel_noise

    logits = torch.tensor([1.0, 0.0, -1.0])
    noise = gumbel_noise(1)
    counts = torch.bincount(torch.tensor([choose(logits, 2.0, noise(3)) for _ in range(4000)]), minlength=3) / 4000
    expected = (logits / 2).softmax(-1)
    assert (counts - expected).abs().max() < 4 * float((expected * (1 - expected) / 4000).sqrt().max())


@pytest.mark.parametrize(("edits", "settings", "message"), [
    ([Edit(64, 1.0)], {}, "no feature 64; this run has 0 to 63"),
    ([Edit(1, 1.0), Edit(1, 2.0)], {}, "twice"),
    ([Edit(i, 1.0) for i in range(33)], {}, "at most 32"),
    ([Edit(1, float("nan"))], {}, "strength of feature 1 is nan"),
    ([Edit(1, float("inf"))], {}, "strength"),
    ([], {"max_tokens": 120}, "only 112 more can be generated"),
])
def test_what_cannot_be_steered_is_told(run: Path, edits: list[Edit], settings: dict, message: str) -> None:
    with pytest.raises(SaescopeError, match=message):
        steer(run, TEXT, edits, Settings(**settings))


@pytest.mark.parametrize("fields", [{"max_tokens": 0}, {"max_tokens": 257}, {"temperature": -1.0}, {"positions": "some"}])
def test_settings_have_bounds(fields: dict) -> None:
    with pytest.raises(SaescopeError, match=next(iter(fields))):
        Settings(**fields)


def test_both_texts_are_drawn(run: Path) -> None:
    result = steer(run, TEXT, [Edit(3, 50.0), Edit(4, -1.0, "clamp")], Settings(max_tokens=6, seed=4))
    page = Page(render.compared(result, {3: Name("threes")}, lambda i: f"?f={i}"))
    for text in ("add 50.0 to #3 threes", "hold at −1.00: #4", "Baseline", "Steered", "seed 4", "diverge at token"):
        assert text in page.text, text
    peaks = page.having(class_="sx-peak")
    assert 1 <= len(peaks) <= 2


def test_hostile_continuations_are_text(run: Path) -> None:
    result = steer(run, TEXT, [], Settings(max_tokens=2))
    for text in HOSTILE:
        bad = replace(result, prompt=[text], baseline=replace(result.baseline, pieces=[text, text], logprobs=[-1.0, -2.0]))
        check_visible(Page(render.compared(bad, {})).text)
