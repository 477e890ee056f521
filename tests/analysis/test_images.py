"""Contexts that are images: what an index holds of them, how they are drawn, and steering one through its module."""

import base64
import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.export.cards import as_csv, as_json, card
from analysis.index import Index, open_index
from analysis.render import feature as drawn
from analysis.render.export import page
from analysis.render.steering import compared_outputs
from analysis.render.tokens import example
from analysis.steering.generate import Edit
from analysis.steering.inputs import steer_input
from analysis.trained import open_trained
from sae.errors import SaescopeError
from tests.analysis.image_runs import imported_from, write_image_run
from training.model.module import load_module


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_image_run(folder)
    return folder


@pytest.fixture(scope="module")
def index(root: Path) -> Index:
    return open_index(root / "runs" / "images")


@pytest.fixture(scope="module")
def feature(index: Index) -> int:
    """One that fires often."""
    return int(index.top("n_active", limit=1)["feature"][0].as_py())


def test_an_index_has_the_images_and_needs_nothing_else(index: Index, root: Path, feature: int) -> None:
    assert index.of_images and index.verify() == [] and (index.n_seqs, index.n_ctx) == (60, 16)
    with imported_from(root):
        module = load_module("module:toy_vision.digits", n_inputs=60)
    one = index.examples(feature, n=1)[0]
    assert (one.start, one.stop, len(one.values)) == (0, 16, 16) and one.picture is not None
    expected = (module.inputs.items[one.seq][0] * 255).round().to(torch.uint8).numpy()
    assert np.array_equal(one.picture.pixels[..., 0], expected)
    assert one.picture.name == module.feed.names[one.seq]  # type: ignore[index]
    assert one.picture.boxes.shape == (16, 4)
    # values are the SAE's over the module's activations
    trained = open_trained(root / "runs" / "images")
    rows = module.activations(torch.tensor([one.seq]), ["block"])["block"][0]
    codes = trained.encode({"block": rows}).to_dense()[:, feature]
    np.testing.assert_allclose(np.array(one.values), codes.numpy(), rtol=2e-3, atol=1e-3)


def test_features_are_named_by_what_they_fire_on(index: Index, feature: int) -> None:
    found = index.fires_on(feature)
    assert 1 <= len(found) <= 3 and all(re.fullmatch(r"digit \d", one.text) for one in found)
    position, _ = index.column(feature)
    share = np.mean([index.names[seq] == found[0].text for seq in position // 16])
    assert found[0].share == pytest.approx(share)


def test_two_features_are_seen_in_one_image(index: Index, feature: int) -> None:
    other = index.neighbours(feature, "coactivation")[0].feature
    both = index.where(feature, other)
    first, second = both.examples[0]
    assert first.picture is not None and len(first.values) == len(second.values) == 16
    assert second.value == pytest.approx(second.values[second.position])


def pixels_of(html: str) -> np.ndarray:
    """The first image of a piece of HTML, decoded."""
    png = base64.b64decode(re.search(r"data:image/png;base64,([^)]+)\)", html)[1])  # type: ignore[index]
    width, height = struct.unpack(">II", png[16:24])
    size = struct.unpack(">I", png[33:37])[0]
    lines = np.frombuffer(zlib.decompress(png[41 : 41 + size]), np.uint8).reshape(height, 1 + 3 * width)
    return lines[:, 1:].reshape(height, width, 3)


def test_an_example_is_the_image_with_its_positions_marked(index: Index, feature: int) -> None:
    one = index.examples(feature, n=1)[0]
    html = example(one, scale=one.value)
    assert one.picture is not None and np.array_equal(pixels_of(html)[..., 0], one.picture.pixels[..., 0])
    marks = re.findall(r'<bdi class="sx-p(\d+)( sx-peak)?".*?style="top:([\d.]+)%;left:([\d.]+)%', html)
    active = [i for i, value in enumerate(one.values) if value]
    assert [(float(top), float(left)) for _, _, top, left in marks] == [(i // 4 * 25, i % 4 * 25) for i in active]
    (peak,) = [i for i, (_, is_peak, _, _) in zip(active, marks, strict=True) if is_peak]
    assert peak == one.position and one.picture.name in html


def test_a_card_goes_into_every_export(index: Index, feature: int) -> None:
    shown = card(index, feature)
    whole = page([shown], "images")
    assert "img-src data:" in whole and whole.count("sx-picture") > 10 and drawn.card(shown) in whole
    read = json.loads(as_json([shown]))
    example_ = read[0]["sections"][0]["examples"][0]
    assert np.shape(example_["picture"]["pixels"]) == (8, 8, 1)
    assert as_csv([shown]).count("\n") > 100


def test_steering_is_the_modules_own_forward_with_the_direction_added(root: Path, index: Index, feature: int) -> None:
    run, one = root / "runs" / "images", index.examples(feature, n=1)[0]
    with imported_from(root):
        still = steer_input(run, one.seq, [Edit(feature, 0.0)])
        assert still.change == 0 and still.baseline == still.steered
        found = steer_input(run, one.seq, [Edit(feature, 4.0)], positions=(one.position, 3))
        off = steer_input(run, one.seq, [Edit(feature, 0.0, "clamp")])
        trained = open_trained(run)
        module = trained.module
    assert found.image is not None and found.image.shape == (8, 8, 1)
    direction = trained.sae.W_dec[feature].detach()

    def added(acts: torch.Tensor) -> torch.Tensor:
        acts = acts.clone()
        acts[:, [one.position, 3]] += 4.0 * direction
        return acts

    with module.splice("block", added):
        scores = module.logits(torch.tensor([one.seq]))[0].softmax(0)
    assert isinstance(found.steered, dict)
    np.testing.assert_allclose(list(found.steered.values()), scores.numpy(), rtol=1e-4)
    assert found.change > 0 and off.change > 0
    html = compared_outputs(found, {})
    assert "digit 7" in html and f"Positions: {one.position}, 3" in html and "Baseline" in html


@pytest.mark.parametrize(("number", "edits", "positions", "message"), [
    (60, [Edit(0, 1.0)], "all", r"no input 60; .* has 0 to 59"), (0, [Edit(12, 1.0)], "all", r"no feature 12"),
    (0, [Edit(1, 1.0)], (16,), r"no position 16; an input has 0 to 15"), (0, [Edit(1, 1.0), Edit(1, 2.0)], "all", r"twice"),
])
def test_what_cannot_be_steered_is_refused(root: Path, number: int, edits: list, positions: object, message: str) -> None:
    with imported_from(root), pytest.raises(SaescopeError, match=message):
        steer_input(root / "runs" / "images", number, edits, positions)  # type: ignore[arg-type]


def test_a_module_that_has_changed_is_refused(root: Path) -> None:
    from analysis import trained as opened

    text = (root / "toy_vision.py").read_text()
    (root / "toy_vision.py").write_text(text.replace("torch.manual_seed(0)", "torch.manual_seed(1)"))
    opened._module.cache_clear()
    try:
        with imported_from(root), pytest.raises(SaescopeError, match=r"is not what images was trained on.*weights_sha256"):
            _ = open_trained(root / "runs" / "images").module
    finally:
        (root / "toy_vision.py").write_text(text)
        opened._module.cache_clear()


def test_it_reads_no_text(root: Path) -> None:
    with pytest.raises(SaescopeError, match=r"without a language model"):
        _ = open_trained(root / "runs" / "images").model
