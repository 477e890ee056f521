"""Loops are compiled while the model loads: the small training covers every variant, and is left out where loops are."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from sae.kernels import backend
from training.compile_ahead import compiling, take_steps
from training.config.reading import resolve
from training.config.schema import Config

SPARSITY = {"relu", "gated", "jumprelu", "mdl"}


def config(variant: str = "topk", **fields: Any) -> Config:
    sae = {"variant": variant, "d_sae": 4608} | ({"sparsity": {"target_l0": 8}} if variant in SPARSITY else {"k": 32})
    return resolve({
        "name": "x", "model": "smollm2-135m", "corpus": {"sources": "python-stdlib"}, "site": "blocks.9.hook_resid_post",
        "sae": sae, "train": {"budget": "5 epochs"}, **fields,
    })[0]


@pytest.mark.parametrize("variant", ["topk", "batchtopk", "abstopk", "absbatchtopk", "matryoshka", *sorted(SPARSITY)])
def test_every_variant_takes_steps(variant: str) -> None:
    take_steps(config(variant))


def test_a_transcoder_takes_steps() -> None:
    take_steps(config(site={"input": "blocks.9.mlp.hook_in", "target": "blocks.9.hook_mlp_out"}))


def test_a_process_begins_only_where_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, command: list[str], **fields: Any) -> None:
            begun.append(command)
            super().__init__([command[0], "-c", "import sys; sys.stdin.read(); sys.exit(1)"], **fields)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    monkeypatch.setattr("training.compile_ahead._is_new", lambda: False)
    with compiling([config()], backend("cpu")):
        pass
    assert not begun
    monkeypatch.setattr("training.compile_ahead._is_new", lambda: True)
    with compiling([config()], backend("cpu", "reference")):
        pass
    assert not begun
    # a process that fails changes nothing
    with compiling([config()], backend("cpu")):
        pass
    assert len(begun) == 1
    # and one that is still at work ends with what it is for
    with pytest.raises(KeyboardInterrupt), compiling([config()], backend("cpu")):
        raise KeyboardInterrupt
    assert len(begun) == 2
