"""A plan against what trainings really take, and its refusals."""

import json
from pathlib import Path

import numpy as np
import pytest

from sae.errors import SaescopeError
from sae.variants import VARIANTS
from tests.helpers import HOOK, quick_fields, train, write_config
from training.config.reading import resolve
from training.plan.estimate import facts, plan
from training.plan.machine import GPUS, Machine, gpu_called
from training.plan.sizes import model_size, rows_of, sae_sizes, share_run, width

MACHINE = Machine(GPUS["h100"], 50e9, 2e9)


@pytest.mark.parametrize("variant", sorted(VARIANTS.keys() - {"icfl"}))  # which takes no transcoders
def test_every_parameter_is_counted(variant: str) -> None:
    with_k = ("topk", "abstopk", "matryoshka", "batchtopk", "absbatchtopk")
    target = "blocks.1.hook_mlp_out"
    fields = quick_fields(site={"input": HOOK, "target": target})
    config = resolve({**fields, "sae": {"variant": variant, "d_sae": 60, **({"k": 4} if variant in with_k else {})}})
    sizes = sae_sizes(config[0], {HOOK: 6, target: 5})
    sae = VARIANTS[variant][0](config[0].sae, 6, 5)
    assert sizes.own + sizes.common == sum(p.numel() for p in sae.parameters())
    assert sizes.common == sum(p.numel() for p in sae.parameters() if 60 not in p.shape)
    assert (sizes.d_sae, sizes.d_in, sizes.d_out) == (60, 6, 5)


def test_disk_is_what_a_training_really_takes(tmp_path: Path) -> None:
    write_config(tmp_path, cache={"name": "c"}, sae={"d_sae": 512})
    assert train(tmp_path).code == 0
    found = plan(resolve(quick_fields(sae={"d_sae": 512})), 1, MACHINE)

    def size(*patterns: str) -> int:
        return sum(p.stat().st_size for pattern in patterns for p in tmp_path.glob(pattern))

    made = size("cache/c/acts/*/*.npy", "cache/c/*.npy")
    assert found.disk["cache"] == pytest.approx(made, rel=0.05)
    assert found.disk["checkpoints"] == pytest.approx(1.5 * size("runs/quick/checkpoints/*/*.safetensors"), rel=0.15)
    weights = size("runs/quick/final/*.safetensors", "runs/quick/sae_weights.safetensors")
    assert found.disk["trained SAEs"] == pytest.approx(weights, rel=0.1)
    steps = json.loads((tmp_path / "runs/quick/metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert found.clock.n_steps == pytest.approx(steps, rel=0.2)
    assert found.rows.widths == {HOOK: 32} and found.rows.model is not None and found.rows.model.n_layers == 2


def test_memory_falls_with_the_shards_and_the_wire_with_the_grid() -> None:
    members = resolve(quick_fields(sae={"d_sae": 262_144}, data={"batch_rows": 1024}))
    found = plan(members, 4, MACHINE, widths={HOOK: 768})
    assert [one.grid.shards for one in found.grids] == [1, 2, 4]
    weights = [one.device["weights, gradients, Adam"] for one in found.grids]
    assert weights[2] == pytest.approx(weights[0] / 4, rel=1e-3)
    alone = plan(members, 1, MACHINE, widths={HOOK: 768}).grids[0]
    shared = found.grids[2]
    assert sum(shared.device[what] for what in ("weights, gradients, Adam", "one step")) <= 0.35 * sum(
        alone.device[what] for what in ("weights, gradients, Adam", "one step"))
    assert found.grids[0].wire_bytes > found.grids[2].wire_bytes > 0 == alone.wire_bytes
    assert found.best(1e15) == min(found.grids, key=lambda one: one.training_seconds) and found.best(1.0) is None


def test_a_sweep_adds_up() -> None:
    fields = quick_fields()
    one = plan(resolve(fields), 2, MACHINE).grids[0]
    two = plan(resolve({**fields, "sweep": [{"name": "a"}, {"name": "b", "sae.k": 8}]}), 2, MACHINE).grids[0]
    assert two.device["weights, gradients, Adam"] == 2 * one.device["weights, gradients, Adam"]
    assert two.wire_bytes == 2 * one.wire_bytes


@pytest.mark.parametrize(("rows", "d", "d_sae", "milliseconds"), [
    (4096, 768, 16_384, 1.12), (4096, 768, 24_576, 1.75), (8192, 2304, 65_536, 12.8), (16_384, 768, 131_072, 15.5),
])
def test_steps_that_were_measured_on_an_h200_are_met(rows: int, d: int, d_sae: int, milliseconds: float) -> None:
    seconds = Machine(GPUS["h200"], 1e9, 1e9).step_seconds(2.0 * rows * d * d_sae, 2 * d * d_sae)
    assert 1e3 * seconds == pytest.approx(milliseconds, rel=0.2)


def test_forward_passes_that_were_measured_are_met() -> None:
    machine = Machine(GPUS["h200"], 1e9, 1e9)
    assert machine.rows_per_second(2.1e9 * 12 / 26) == pytest.approx(205e3, rel=0.2)
    assert machine.rows_per_second(106e6 * 10 / 30) == pytest.approx(1.81e6, rel=0.2)


def test_rows_that_need_no_model(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1280, 6), np.float32))
    fields = quick_fields(model=None, corpus={"sources": f"acts:{tmp_path}"}, site="acts")
    rows = rows_of(resolve(fields))
    assert rows.n == 1280 and rows.widths == {"acts": 6} and rows.model is None
    found = plan(resolve(fields), 2, MACHINE)
    assert found.disk["cache"] == 0 == found.cache_seconds


def test_widths_and_layers_of_a_model_that_is_on_disk(tmp_path: Path) -> None:
    from transformers import GPT2Config, LlamaConfig

    llama_config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, vocab_size=128
    )
    llama_config.save_pretrained(tmp_path / "llama")
    GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=100).save_pretrained(tmp_path / "gpt2")
    llama, gpt2 = model_size(f"local:{tmp_path}/llama"), model_size(f"local:{tmp_path}/gpt2")
    hooks = {"hook_resid_post": 64, "attn.hook_z": 64, "attn.hook_z[2]": 16, "mlp.hook_post": 96, "hook_mlp_out": 64}
    assert {hook: width(f"blocks.1.{hook}", llama, "llama") for hook in hooks} == hooks
    assert width("blocks.0.hook_resid_pre", gpt2, "gpt2") == 32
    assert (llama.n_layers, llama.n_embedding) == (3, 2 * 128 * 64)
    assert llama.n_params - llama.n_embedding == 3 * (4 * 64 * 64 + 3 * 64 * 96 + 2 * 64) + 64
    with pytest.raises(SaescopeError, match="--d-in"):
        width("blocks.1.hook_elsewhere", llama, "llama")
    assert share_run(["blocks.1.hook_resid_post"], 4) == 0.5 and share_run(["blocks.1.hook_resid_pre"], 4) == 0.25


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from training.commands import plan as command

    path = str(write_config(tmp_path))
    assert command([path, "--gpus", "4"]) == 0
    said = capsys.readouterr().out
    assert "rows over 4" in said and "features over 4" in said and "assumed:" in said
    assert command([path, "sae.d_sae=128", "--gpus", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(facts(plan(resolve(quick_fields(sae={"d_sae": 128})), 2, MACHINE))))
    assert found["grids"][1]["wire_bytes_per_step"]["candidates"] == 128 * 4 * 4


@pytest.mark.parametrize(("arguments", "facts"), [
    (["--gpus", "0"], "--gpus 0"), (["--gpus", "7"], "7 ranks"), (["--gpu", "abacus"], "abacus"),
    (["--disk", "0"], "--disk"), (["model.name=local:nowhere"], "--model-params"),
])
def test_what_cannot_be_planned(tmp_path: Path, arguments: list[str], facts: str) -> None:
    from training.commands import plan as command

    with pytest.raises(SaescopeError, match=facts):
        command([str(write_config(tmp_path)), *arguments])
    assert gpu_called("a100").memory == 80e9
