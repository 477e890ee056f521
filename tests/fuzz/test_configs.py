"""Configs of any content: one sentence or a config that means what it says, never a traceback."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.circuits.pipeline.config import read_config
from sae.errors import SaescopeError
from sae.units import Duration
from tests.fuzz.damage import TEXTS, VALUES, replaced, torn
from tests.helpers import quick_fields
from training.config.reading import read, resolve
from training.config.schema import Config

ROOT = Path(__file__).parent.parent.parent
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))
CIRCUITS = [ROOT / "configs/circuits/demo.yaml", ROOT / "configs/circuits/agreement.yaml"]
VARIANTS = [
    {"variant": "topk", "d_sae": 64, "k": 4}, {"variant": "relu", "d_sae": 64}, {"variant": "jumprelu", "d_sae": 64},
    {"variant": "gated", "d_sae": 64}, {"variant": "mdl", "d_sae": 64}, {"variant": "batchtopk", "d_sae": 64, "k": 4},
    {"variant": "matryoshka", "d_sae": 64, "k": 4},
]


def _whole(value: object) -> bool:
    return type(value) is int


def _finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


SAID: dict[str, Callable[[Any], bool]] = {
    "corpus.n_ctx": lambda v: _whole(v) and v > 1, "corpus.n_tokens": lambda v: _whole(v) and 0 < v < 2**63,
    "corpus.seed": lambda v: _whole(v) and 0 <= v < 2**63, "data.seed": lambda v: _whole(v) and 0 <= v < 2**63,
    "data.batch_rows": lambda v: _whole(v) and v > 0, "data.block_rows": lambda v: _whole(v) and v > 0,
    "data.prefetch": lambda v: _whole(v) and v >= 0, "data.n_calib": lambda v: _whole(v) and v > 0,
    "data.outlier_multiple": lambda v: v is None or (_finite(v) and v > 1),
    "optim.lr": lambda v: _finite(v) and v > 0, "optim.eps": lambda v: _finite(v) and v > 0,
    "optim.betas": lambda v: all(_finite(b) and 0 <= b < 1 for b in v),
    "sae.d_sae": lambda v: _whole(v) and v > 0, "sae.seed": lambda v: _whole(v) and 0 <= v < 2**63,
    "sae.grad_clip": lambda v: v is None or (_finite(v) and v > 0),
    "eval.n_rows": lambda v: _whole(v) and v > 0, "eval.n_tokens": lambda v: _whole(v) and v >= 0,
    "cache.shard_rows": lambda v: _whole(v) and v > 0, "model.batch_seqs": lambda v: _whole(v) and v > 0,
}
"""What the texts of fields say, written down once more."""
SHARES = ("train.budget", "optim.warmup", "optim.decay", "train.log_every", "eval.every")
KEYS = [*SAID, *SHARES, "sae.k", "site", "name", "model", "corpus.sources"]


def check(config: Config) -> None:
    """An accepted config says what its texts allow, and survives being written and read."""
    plain = config.plain()
    for key, holds in SAID.items():
        section, name = key.split(".")
        if plain[section] is not None:
            assert holds(plain[section][name]), (key, plain[section][name])
    for key in SHARES:
        section, name = key.split(".")
        length = Duration.parse(plain[section][name])
        assert 0 <= length.value <= (100 if length.unit == "%" else 1e308), (key, length)
    assert config.name.strip() and ".." not in config.name.split("/")
    assert resolve(json.loads(json.dumps(plain))) == [config]


def accepted(make: Callable[[], list[Config]]) -> list[Config]:
    """What is made, or nothing where one sentence refuses it."""
    try:
        return make()
    except SaescopeError as error:
        text = str(error)
        assert 10 < len(text) < 3000 and "Traceback" not in text and "\n  " not in text, text
        return []


@given(data=st.data())
def test_a_config_with_any_value_in_place_of_one(data: st.DataObject) -> None:
    fields: Any = {**quick_fields(), "sae": data.draw(st.sampled_from(VARIANTS))}
    (config,) = resolve(fields)
    for _ in range(data.draw(st.integers(1, 2))):
        fields = data.draw(replaced(config.plain()))
        if not isinstance(fields, dict):
            return
        for one in accepted(lambda fields=fields: resolve(fields)):  # type: ignore[misc]
            check(one)


@given(data=st.data())
def test_a_config_file_of_any_text(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(data.draw(torn(data.draw(st.sampled_from(SHIPPED)).read_bytes())))
    for one in accepted(lambda: read(path)):
        check(one)


@given(st.lists(st.tuples(st.sampled_from(KEYS), VALUES | TEXTS), max_size=3))
def test_overrides_of_any_text(pairs: list[tuple[str, Any]]) -> None:
    overrides = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in pairs]
    for one in accepted(lambda: resolve(quick_fields(), overrides)):
        check(one)


@given(data=st.data())
def test_a_circuit_config_of_any_text(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "circuit.yaml"
    path.write_bytes(data.draw(torn(data.draw(st.sampled_from(CIRCUITS)).read_bytes())))
    try:
        config = read_config(path, data.draw(st.lists(TEXTS.map("nodes.most={}".format), max_size=1)))
    except SaescopeError as error:
        assert len(str(error)) > 10
        return
    assert config.nodes.most > 0 and config.effects.batch > 0
