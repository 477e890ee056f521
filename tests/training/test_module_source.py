"""Any torch module as a source: rows are its activations, everything behind them is as for text, mistakes are explained."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae.errors import SaescopeError
from tests.helpers import quick_fields, refusal, run_sae, tree
from training.activations.harvest import open_data
from training.config.reading import resolve
from training.display import Display
from training.model.feed import picture
from training.model.module import HookedModule, load_module
from training.run import sweep, train

ROOT = Path(__file__).parents[2]


def fields(function: str = "digits", **sections: Any) -> dict[str, Any]:
    """A training of a second on the 16 positions of the convolution."""
    ours: dict[str, Any] = {
        "corpus": {"sources": f"module:toy_vision.{function}", "n_ctx": 16}, "site": "block",
        "data": {"batch_rows": 64, "superblock_rows": 512, "block_rows": 16, "n_calib": 8}, "sae": {"d_sae": 24, "k": 3},
        "train": {"budget": "4 epochs"},
    }
    made = quick_fields(**ours)
    del made["model"]
    for name, section in sections.items():
        made[name] = {**made[name], **section} if isinstance(section, dict) and name != "site" else section
    return made


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the user's file, from which commands are called."""
    shutil.copy(Path(__file__).with_name("toy_vision.py"), tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_vision", raising=False)
    return tmp_path


@pytest.fixture
def module(place: Path) -> HookedModule:
    return load_module("module:toy_vision.digits", n_inputs=1000)


def by_hand(module: HookedModule) -> dict[str, torch.Tensor]:
    """What passes where, of all inputs at once."""
    net, images = module._module, module.inputs.items
    conv = net.conv(images)
    first = conv.relu()
    block = net.block(first)
    rest = (first + block).relu()
    flat = net.flat(rest.mean((2, 3)))
    rows = {"conv": conv, "block.hook_in": first, "block": block}
    return {hook: acts.flatten(2).transpose(1, 2) for hook, acts in rows.items()} | {
        "tokens": net.tokens(rest.flatten(2).transpose(1, 2)), "flat": flat[:, None], "head.hook_in": flat[:, None],
    }


@torch.no_grad()
def test_rows_are_the_modules_activations(module: HookedModule) -> None:
    """Also where the next module writes over them, and however inputs are grouped."""
    hooks = module.hooks()
    assert hooks["conv"] == (16, 6) and hooks["tokens"] == (16, 5) and hooks["flat"] == (1, 16)
    assert hooks["conv.hook_in"] == (64, 1) and not module.feed.module.training
    expected = by_hand(module)
    numbers = torch.arange(60)
    found = module.activations(numbers, list(expected), n_seqs_per_forward=7)
    for hook, rows in expected.items():
        torch.testing.assert_close(found[hook], rows)
    part = module.activations(numbers[11:13], ["block"], n_seqs_per_forward=7)["block"]
    assert torch.equal(part, found["block"][11:13])


@torch.no_grad()
def test_a_splice_replaces_rows(module: HookedModule) -> None:
    numbers = torch.arange(5)
    before = module.logits(numbers)
    with module.splice("block", lambda acts: acts):
        assert torch.equal(module.logits(numbers), before)
    with module.splice("block", lambda acts: torch.zeros_like(acts)):
        without = module.logits(numbers)
    net, images = module._module, module.inputs.items[:5]
    x = net.conv(images).relu()
    torch.testing.assert_close(without, net.head(net.flat(x.mean((2, 3)))))
    assert torch.equal(module.logits(numbers), before)


@torch.no_grad()
def test_inputs_may_be_tensors_tuples_dicts_and_endless(place: Path) -> None:
    tokens = {}
    for function in ("digits", "plain", "endless", "keywords", "positional"):
        module = load_module(f"module:toy_vision.{function}", n_inputs=100)
        assert module.inputs.n == (100 if function == "endless" else 60)
        tokens[function] = module.activations(torch.tensor([0, 9]), ["block"])["block"]
    assert torch.equal(tokens["digits"], tokens["plain"]) and torch.equal(tokens["digits"], tokens["endless"])
    assert torch.equal(tokens["keywords"], tokens["positional"])
    torch.testing.assert_close(tokens["keywords"][0], tokens["digits"][0])
    assert not torch.allclose(tokens["keywords"][1], tokens["digits"][1], atol=1e-3)


def test_positions_are_parts_of_the_image(module: HookedModule) -> None:
    assert module.boxes("block").tolist()[6] == [0.25, 0.5, 0.25, 0.25]
    assert module.boxes("tokens").tolist() == module.boxes("block").tolist()
    assert module.boxes("flat").tolist() == [[0, 0, 1, 1]]
    assert module.boxes("conv").sum(0)[2:].tolist() == [4, 4]


def test_documents_are_held_out_whole_and_rows_lie_in_a_cache(place: Path) -> None:
    (config,) = resolve(fields())
    data = open_data(config, ("block", "block.hook_in"), Display(quiet=True))
    tokens = data.tokens
    assert tokens.tokens is None and tokens.n_seqs == 60 and tokens.n_ctx == 16 and tokens.images is not None
    assert tokens.images.pixels.shape == (60, 8, 8, 1) and tokens.folder is not None
    assert bytes(tokens.images.names[3]) == b"digit 3"
    held = tokens.held_out.reshape(20, 3)
    assert (held.all(1) == held.any(1)).all() and 0 < held.sum() < 60
    assert tokens.units().kind == "document" and len(np.unique(tokens.units().number)) == 20
    module = load_module("module:toy_vision.digits", n_inputs=60)
    rows = data.source.rows("block", np.array([5, 2]), 16)
    with torch.no_grad():
        torch.testing.assert_close(rows, by_hand(module)["block"][[5, 2]].flatten(0, 1))
    # a second time nothing is computed
    before = tree(place / "cache")
    open_data(config, ("block",), Display(quiet=True))
    assert tree(place / "cache") == before


@pytest.mark.parametrize("site", ["flat", {"input": "block.hook_in", "target": "block", "update": "both"}])
def test_cached_and_streamed_rows_train_the_same(place: Path, site: Any) -> None:
    n_ctx = 1 if site == "flat" else 16
    sections: dict[str, Any] = {
        "site": site, "corpus": {"n_ctx": n_ctx}, "data": {"block_rows": n_ctx, "batch_rows": 16, "superblock_rows": 32},
    }
    results = {
        mode: train(fields(**sections, name=mode, cache={"mode": mode}), runs=place / "runs", quiet=True)
        for mode in ("disk", "stream")
    }
    hashes = {result.summary["weights_sha256"] for result in results.values()}
    assert len(hashes) == 1
    held = results["disk"].summary["heldout"]
    assert held["fve"] > 0.3 and held["interval_unit"] == "document" and "kl" not in held


def test_a_signal_saves_and_resuming_goes_on_bit_for_bit(place: Path) -> None:
    """A sweep over sites of one feed."""
    config = fields(name="run", sweep=[
        {"name": "tokens", "site": "tokens"},
        {"name": "update", "site": {"input": "block.hook_in", "target": "block", "update": True}},
    ])
    sweep(config, runs=place / "whole", quiet=True)
    (place / "c.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "tests.training.interrupted", str(place / "c.json"), str(place / "cut"), "20"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    cut = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert cut.returncode == 2 and "after step 20" in cut.stderr, cut.stderr
    assert not list((place / "cut").rglob("final"))
    sweep(config, runs=place / "cut", quiet=True, resume=True)
    for name in ("tokens", "update"):
        cut_, whole = (tree(place / kind / "run" / name / "final") for kind in ("cut", "whole"))
        assert cut_ and cut_ == whole, name


@pytest.mark.parametrize(("function", "override", "message"), [
    ("digits", "corpus.sources=module:toy_vision", r"use module:PACKAGE\.FUNCTION"),
    ("digits", "corpus.sources='module:'", r"is not a source"),
    ("digits", "corpus.sources=module:no_such_file.digits", r"find the module no_such_file; run the command from"),
    ("digits", "corpus.sources=module:toy_vision.digit", r"toy_vision has no digit; did you mean digits\?"),
    ("number", "", r"number is a int, not a function"),
    ("not_a_feed", "", r"returned a dict; it must return a training\.Feed"),
    ("no_module", "", r"Feed\.module is a method; it must be a torch\.nn\.Module"),
    ("no_inputs", "", r"Feed\.inputs is empty"),
    ("few_documents", "", r"Feed\.documents has 2 entries for 60 inputs"),
    ("wrong_image", "", r"Feed\.image of input 0 is float32 of shape \[64\]; an image must be \[h, w\]"),
    ("other_shapes", "", r"Feed\.inputs have different shapes"),
    ("wrong_call", "", r"the module raised RuntimeError on input 0: Given groups=1"),
    ("raises", "", r"raised RuntimeError: no weights here \(.*toy_vision\.py, line \d+\)"),
    ("digits", "site=blok", r"has no hook 'blok'.*the nearest are block"),
    ("digits", "site=act", r"act cannot be used as a hook: the module is run 2 times per input"),
    ("digits", "site=flat", r"has 1 positions per input at flat, but corpus\.n_ctx is 16; set corpus\.n_ctx=1"),
    ("digits", "site={input: conv.hook_in, target: conv}", r"has 64 positions per input at conv\.hook_in"),
    ("digits", "corpus.n_tokens=15", r"less than one input of 16 rows"),
    ("digits", "corpus.seed=1", r"corpus\.seed = 1 has no effect"),
    ("digits", "corpus.held_out=0.000001", r"too few for a training and a held-out part"),
    ("digits", "corpus.sources=[module:toy_vision.digits, python-stdlib]", r"cannot be mixed with other sources"),
])
def test_mistakes_are_refused_in_a_sentence(place: Path, function: str, override: str, message: str) -> None:
    (place / "quick.yaml").write_text(json.dumps(fields(function)))
    said = refusal(run_sae(place, "train", "quick.yaml", *filter(None, [override])))
    assert re.search(message, said), said
    assert not tree(place / "runs")


def test_an_error_while_importing_is_told_with_its_line(place: Path) -> None:
    (place / "broken_vision.py").write_text("import math\nimport not_installed_anywhere\n")
    with pytest.raises(SaescopeError, match=r"importing broken_vision raised ModuleNotFoundError: No module.*line 2"):
        load_module("module:broken_vision.feed", n_inputs=1)


def test_pictures_are_read_in_every_usual_form() -> None:
    ramp = torch.linspace(0, 1, 12).view(3, 4)
    for value in (ramp, ramp[None], ramp.numpy(), ramp.double()):
        assert picture(value, "it").shape == (3, 4, 1) and picture(value, "it").max() == 255
    colour = torch.rand(3, 5, 6)
    assert np.array_equal(picture(colour, "it"), picture(colour.permute(1, 2, 0), "it"))
    assert picture(np.full((2, 2), 7, np.uint8), "it").tolist() == [[[7], [7]], [[7], [7]]]
    assert picture(torch.tensor([[-1.0, 2.0]]), "it").tolist() == [[[0], [255]]]
