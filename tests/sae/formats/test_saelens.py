"""The format against its formulas written out; `tests/peers/saelens_check.py` compares with SAELens itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae import store
from sae.base import Progress, Transform
from sae.code import SparseCode
from sae.errors import SaescopeError
from sae.formats import saelens
from sae.init import initialise
from sae.variants.gated import Gated
from sae.variants.imported import Imported
from sae.variants.jumprelu import JumpReLU
from sae.variants.relu import ReLU, ReLUConfig
from sae.variants.topk import BatchTopKConfig, TopK, TopKConfig
from tests.sae.test_store import FIELDS, make, rows

D, N, D_OUT, K = 10, 24, 7, 4
METADATA = {"hook_name": "blocks.1.hook_resid_post", "model_name": "tiny", "context_size": 16, "prepend_bos": True}


def dense(cfg: dict[str, Any], w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """SAELens' forward pass from its formulas, in fp64: activations as lengths in the model's units, and x̂."""
    w, x = {name: tensor.double() for name, tensor in w.items()}, x.double()
    cross, architecture = "transcoder" in cfg["architecture"], cfg["architecture"]
    inner, spread, centre = x, torch.ones(len(x), 1).double(), torch.zeros(len(x), 1).double()
    if cfg["normalize_activations"] == "layer_norm":
        centre = x.mean(1, keepdim=True)
        spread = (x - centre).std(1, keepdim=True)
        inner = (x - centre) / (spread + 1e-5)
    elif cfg["normalize_activations"] == "constant_norm_rescale":
        spread = x.norm(dim=1, keepdim=True) / x.shape[1] ** 0.5
        inner = x / spread
    if cfg["apply_b_dec_to_input"]:
        inner = inner - w["b_dec"]
    norms = w["W_dec"].norm(dim=1)
    rescale = norms if cfg.get("rescale_acts_by_decoder_norm") else torch.ones(N).double()
    if architecture == "gated":
        gate = inner @ w["W_enc"] + w["b_gate"] > 0
        f = gate * (inner @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).relu()
    else:
        h = (inner @ w["W_enc"] + w["b_enc"]) * rescale
        if architecture in ("topk", "abstopk"):
            score = h.abs() if architecture == "abstopk" else h
            kept = torch.zeros_like(h).scatter(1, score.topk(cfg["k"], dim=1).indices, 1)
            f = kept * (h if architecture == "abstopk" else h.relu())
        else:
            f = h.relu() * (h > w.get("threshold", w.get("topk_threshold", torch.tensor(0.0))))
    out = (f / rescale) @ w["W_dec"] + w["b_dec"]
    lengths = f / rescale * norms
    if not cross:
        out, lengths = out * spread + centre, lengths * spread
    if "W_skip" in w:
        out = out + x @ w["W_skip"].t()
    return lengths.float(), out.float()


def weights(architecture: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    d_out = D_OUT if "transcoder" in architecture else D
    shapes = {"W_enc": (D, N), "b_enc": (N,), "W_dec": (N, d_out), "b_dec": (d_out,)}
    if architecture == "gated":
        shapes = {"W_enc": (D, N), "b_gate": (N,), "b_mag": (N,), "r_mag": (N,), "W_dec": (N, D), "b_dec": (D,)}
    w = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if "jumprelu" in architecture:
        w["threshold"] = torch.rand(N, generator=generator) * 3 - 0.5
    if "batchtopk" in architecture:
        w["topk_threshold"] = torch.tensor(1.5, dtype=torch.float64)
    if "skip" in architecture:
        w["W_skip"] = torch.randn(d_out, D, generator=generator)
    return w


def folder_of(folder: Path, architecture: str, w: dict[str, Tensor] | None = None, **changes: Any) -> dict[str, Any]:
    cross = "transcoder" in architecture
    cfg = {
        "d_in": D, "d_sae": N, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": not cross,
        "normalize_activations": "none", "reshape_activations": "none", "architecture": architecture,
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.0.hook_resid_post"},
    }
    cfg |= {"d_out": D_OUT} if cross else {}
    cfg |= {"k": K, "rescale_acts_by_decoder_norm": False} if architecture in ("topk", "abstopk") else {}
    cfg |= changes
    (folder / "cfg.json").write_text(json.dumps(cfg))
    save_file(weights(architecture) if w is None else w, folder / "sae_weights.safetensors")
    return cfg


CASES = [
    *[(a, {"normalize_activations": n}) for a in ("standard", "jumprelu", "gated", "topk", "abstopk", "transcoder")
      for n in ("none", "layer_norm", "constant_norm_rescale")],
    *[(a, {"apply_b_dec_to_input": False}) for a in ("standard", "jumprelu", "gated", "topk")],
    *[(a, {"rescale_acts_by_decoder_norm": True}) for a in ("topk", "abstopk")],
    ("topk", {"rescale_acts_by_decoder_norm": True, "normalize_activations": "layer_norm"}),
    *[(a, {}) for a in ("skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")],
    ("skip_transcoder", {"normalize_activations": "layer_norm"}),
    ("standard", {"reshape_activations": "hook_z"}),
    ("batchtopk", {"rescale_acts_by_decoder_norm": True, "k": 4.5}),
    ("matryoshka_batchtopk", {"rescale_acts_by_decoder_norm": False, "k": 4, "decoder_init_norm": 0.1}),
]


@pytest.mark.parametrize(("architecture", "changes"), CASES)
def test_reading_computes_the_formula(tmp_path: Path, architecture: str, changes: dict[str, Any]):
    cfg = folder_of(tmp_path, architecture, **changes)
    sae = store.load(tmp_path, kernels="reference")
    x = 1 + 2 * torch.randn(50, D, generator=torch.Generator().manual_seed(4))
    code = sae.encode(x)
    lengths, x_hat = dense(cfg, weights(architecture), x)
    torch.testing.assert_close(code.to_dense(), lengths, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(sae.decode(code), x_hat, atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(sae(x), x_hat, atol=5e-5, rtol=1e-4)
    assert (code.to_dense() < 0).any() == (architecture == "abstopk")
    assert sae.provenance["cfg"]["metadata"]["hook_name"] == "blocks.0.hook_resid_post"


def test_known_architectures_become_variants(tmp_path: Path):
    expected = {
        "standard": ReLU, "transcoder": ReLU, "topk": TopK, "abstopk": TopK, "gated": Gated, "jumprelu": JumpReLU,
        "jumprelu_transcoder": JumpReLU, "skip_transcoder": ReLU, "jumprelu_skip_transcoder": JumpReLU,
    }
    for architecture, variant in expected.items():
        folder_of(tmp_path, architecture)
        sae = saelens.read(tmp_path)
        assert type(sae) is variant
        assert variant is not TopK or sae.config.variant == architecture
    folder_of(tmp_path, "gated", normalize_activations="layer_norm")
    assert type(saelens.read(tmp_path)) is Imported


def test_what_needs_its_input_to_be_decoded_says_so(tmp_path: Path):
    folder_of(tmp_path, "skip_transcoder")
    sae = store.load(tmp_path)
    code = sae.encode(torch.randn(3, D))
    bare = SparseCode(code.feature, code.value, code.n_rows, code.d_sae, indptr=code.indptr)
    with pytest.raises(SaescopeError, match="pass the code that encode"):
        sae.decode(bare)
    folder_of(tmp_path, "skip_transcoder", normalize_activations="layer_norm")
    assert "normalize_activations layer_norm" in str(store.load(tmp_path).unfit_as_start())


@pytest.mark.parametrize("architecture", ["gated", "jumprelu_transcoder", "skip_transcoder"])
def test_what_was_imported_can_be_saved(tmp_path: Path, architecture: str):
    folder_of(tmp_path, architecture)
    sae = store.load(tmp_path)
    store.save(sae, tmp_path / "ours", provenance={})
    x = torch.randn(20, D)
    torch.testing.assert_close(store.load(tmp_path / "ours")(x), sae(x), atol=1e-5, rtol=1e-4)


def test_an_import_has_no_loss(tmp_path: Path):
    folder_of(tmp_path, "gated", normalize_activations="layer_norm")
    with pytest.raises(SaescopeError, match=r"init\.from"):
        saelens.read(tmp_path).losses(torch.zeros(1, D), torch.zeros(1, D), Progress(torch.zeros(N, dtype=torch.bool)))


def test_old_names_are_understood(tmp_path: Path):
    w = weights("jumprelu")
    w["log_threshold"] = w.pop("threshold").abs().log()
    folder_of(tmp_path, "jumprelu", w)
    torch.testing.assert_close(saelens.read(tmp_path).threshold, w["log_threshold"].exp())
    flat = {"d_in": D, "d_sae": N, "hook_point": "blocks.2.hook_resid_pre", "activation_fn_str": "topk",
            "activation_fn_kwargs": {"k": 3}, "normalize_activations": False}
    (tmp_path / "cfg.json").write_text(json.dumps(flat))
    save_file(weights("standard"), tmp_path / "sae_weights.safetensors")
    sae = saelens.read(tmp_path)
    assert isinstance(sae, TopK) and sae.config.k == 3
    assert sae.provenance["cfg"]["metadata"]["hook_name"] == "blocks.2.hook_resid_pre"


def test_a_topk_of_version_4_keeps_its_k_with_the_activation_function(tmp_path: Path):
    flat = {"d_in": D, "d_sae": N, "hook_name": "blocks.2.hook_resid_pre", "architecture": "topk",
            "activation_fn_str": "relu", "activation_fn_kwargs": {"k": 3}, "normalize_activations": "none"}
    (tmp_path / "cfg.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(flat).encode())  # and a BOM
    save_file(weights("topk"), tmp_path / "sae_weights.safetensors")
    sae = saelens.read(tmp_path)
    assert isinstance(sae, TopK) and sae.config.k == 3
    x = torch.randn(20, D)
    cfg = {**flat, "k": 3, "apply_b_dec_to_input": True}
    torch.testing.assert_close(sae(x), dense(cfg, weights("topk"), x)[1], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["scaling_factor", "finetuning_scaling_factor"])
@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "topk"])
def test_what_finetuning_scaled_is_folded(tmp_path: Path, architecture: str, name: str):
    """x̂ = (f · s) W_dec + b_dec, and the same features are active."""
    w, x = weights(architecture), torch.randn(20, D, generator=torch.Generator().manual_seed(2))
    scaling = 0.5 + torch.rand(N, generator=torch.Generator().manual_seed(1))
    cfg = folder_of(tmp_path, architecture, {**w, name: scaling}, finetuning_scaling_factor=True)
    sae, plain = saelens.read(tmp_path), dense(cfg, w, x)
    torch.testing.assert_close(sae.encode(x).to_dense(), plain[0] * scaling, atol=2e-5, rtol=1e-4)
    expected = dense(cfg, w | {"W_dec": w["W_dec"] * scaling[:, None]}, x)[1]
    torch.testing.assert_close(sae(x), expected, atol=5e-5, rtol=1e-4)
    cfg = folder_of(tmp_path, architecture, {**w, name: torch.ones(N)})
    torch.testing.assert_close(saelens.read(tmp_path)(x), plain[1], atol=2e-5, rtol=1e-4)
    folder_of(tmp_path, architecture, {**w, name: scaling}, finetuning_scaling_factor=False)
    with pytest.raises(SaescopeError, match="scaling_factor is not 1"):
        saelens.read(tmp_path)


def test_the_scale_of_a_checkpoint(tmp_path: Path):
    cfg = folder_of(tmp_path, "standard", normalize_activations="expected_average_only_in")
    x = torch.randn(20, D)
    with pytest.warns(UserWarning, match="raw activations"):
        sae = saelens.read(tmp_path)
    torch.testing.assert_close(sae(x), dense(cfg, weights("standard"), x)[1], atol=2e-5, rtol=1e-4)
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": 0.25}')
    expected = dense(cfg, weights("standard"), x * 0.25)[1] / 0.25
    torch.testing.assert_close(saelens.read(tmp_path)(x), expected, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("matching_pursuit", {}, "one at a time"),
        ("temporal", {}, "attends over the tokens"),
        ("other", {}, "unknown architecture 'other'"),
        ("standard", {"metadata": [1]}, r"metadata is \[1\]"),
        ("standard", {"activation_fn_kwargs": "k"}, "activation_fn_kwargs is 'k'"),
        ("topk", {"k": True}, "k is True"),
        ("topk", {"k": N + 1}, f"k = {N + 1} exceeds d_sae = {N}"),
        ("topk", {"k": None}, "k is None"),
        ("standard", {"d_in": "many"}, "d_in is 'many'"),
        ("standard", {"d_in": D + 1}, "W_enc has shape"),
        ("transcoder", {"d_out": None}, "d_out is None"),
        ("standard", {"normalize_activations": "covariance_whitening"}, "covariance_whitening"),
        ("standard", {"normalize_activations": "other"}, "unknown normalize_activations 'other'"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, architecture: str, changes: dict[str, Any], message: str):
    folder_of(tmp_path, architecture, weights("standard" if architecture == "other" else architecture), **changes)
    with pytest.raises(SaescopeError, match=message):
        store.load(tmp_path)


@pytest.mark.parametrize("architecture", [[], {}, None, 3])
def test_an_architecture_is_a_name(tmp_path: Path, architecture: Any):
    cfg = folder_of(tmp_path, "standard")
    (tmp_path / "cfg.json").write_text(json.dumps(cfg | {"architecture": architecture}))
    with pytest.raises(SaescopeError, match="architecture is"):
        store.load(tmp_path)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path):
    w = weights("standard")
    folder_of(tmp_path, "standard", {**w, "b_enc": w["b_enc"] / 0})
    with pytest.raises(SaescopeError, match="b_enc contains NaN or infinite"):
        saelens.read(tmp_path)
    folder_of(tmp_path, "jumprelu", w)
    with pytest.raises(SaescopeError, match="jumprelu has the tensors W_dec, W_enc, b_dec, b_enc, threshold; found"):
        saelens.read(tmp_path)
    (tmp_path / "sae_weights.safetensors").unlink()
    with pytest.raises(SaescopeError, match="cannot be read as safetensors"):
        saelens.read(tmp_path)
    (tmp_path / "cfg.json").write_text("{")
    with pytest.raises(SaescopeError, match="cannot be read as JSON"):
        saelens.read(tmp_path)


@pytest.mark.parametrize("variant", FIELDS)
@pytest.mark.parametrize("d_out", [12, 9])
def test_written_and_read_again(tmp_path: Path, variant: str, d_out: int):
    sae = make(variant, d_out if variant != "icfl" else 12)
    reason = saelens.export(sae, tmp_path, metadata=METADATA)
    refused = {"absbatchtopk": "selects by threshold with absolute=True", "icfl": "in several rounds"}
    if d_out == 9:
        refused |= dict.fromkeys(("topk", "abstopk"), "no transcoder with a fixed number")
    if variant in refused:
        assert reason is not None and refused[variant] in reason
        assert not list(tmp_path.iterdir())
        return
    assert reason is None
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    kind = {"topk": "topk", "abstopk": "abstopk", "relu": "standard", "gated": "gated"}
    expected = kind.get(variant, "jumprelu") if d_out == 12 else "jumprelu_transcoder"
    assert cfg["architecture"] == ("transcoder" if (variant, d_out) == ("relu", 9) else expected)
    assert cfg["metadata"]["sae_lens_version"] == "6.54.12" and METADATA.items() <= cfg["metadata"].items()
    x = rows(sae)
    read = saelens.read(tmp_path)
    code, again = sae.encode(x).to_dense(), read.encode(x).to_dense()
    torch.testing.assert_close(again, code, atol=1e-5 * float(code.abs().max()), rtol=1e-5)
    torch.testing.assert_close(read(x), sae(x), atol=1e-5 * float(x.norm(dim=1).mean()), rtol=0)


def test_a_threshold_is_repeated_as_saelens_saves_it(tmp_path: Path):
    sae = make("batchtopk")
    saelens.export(sae, tmp_path, metadata=METADATA)
    threshold = load_file(tmp_path / "sae_weights.safetensors")["threshold"]
    assert torch.equal(threshold, torch.full_like(threshold, float(0.9 / 0.8) / 0.4))


def test_a_threshold_is_exclusive(tmp_path: Path):
    sae = TopK(BatchTopKConfig(d_sae=2, k=1, apply_b_dec_to_input=False), 2)
    with torch.no_grad():
        sae.W_dec.copy_(torch.eye(2))
        sae.W_enc.copy_(torch.eye(2))
    sae.threshold_sum.fill_(1.5)
    sae.threshold_weight.fill_(1.0)
    saelens.export(sae, tmp_path, metadata=METADATA)
    x = torch.tensor([[1.5, 1.5001]])
    assert saelens.read(tmp_path).encode(x).feature.tolist() == sae.encode(x).feature.tolist() == [1]


def test_heads_are_marked(tmp_path: Path):
    sae = make("relu")
    saelens.export(sae, tmp_path, metadata={"hook_name": "blocks.1.attn.hook_z"})
    assert json.loads((tmp_path / "cfg.json").read_text())["reshape_activations"] == "hook_z"
    saelens.export(sae, tmp_path, metadata={"hook_name": "blocks.1.attn.hook_z[2]"})
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert cfg["reshape_activations"] == "none"
    assert (cfg["metadata"]["hook_name"], cfg["metadata"]["hook_head_index"]) == ("blocks.1.attn.hook_z", 2)


def test_a_large_common_mean_costs_no_digits(tmp_path: Path):
    """mean norm / spread = 1000: the export's pre-activations against fp64, on exactly representable inputs."""
    generator = torch.Generator().manual_seed(5)
    d, n = 32, 64
    mean = torch.full((d,), 300.0) + torch.randn(d, generator=generator)
    sae = TopK(TopKConfig(d_sae=n, k=5), d, input=Transform(mean, torch.tensor(3.1)))
    with torch.no_grad():
        W = torch.randn(n, d, generator=generator)
        sae.W_dec.copy_(W / W.norm(dim=1, keepdim=True))
        sae.W_enc.copy_(sae.W_dec.t())
        sae.b_dec.copy_(torch.randn(d, generator=generator))
    saelens.export(sae, tmp_path, metadata=METADATA)
    x = mean + 0.3 * torch.randn(100, d, generator=generator)
    w = {name: tensor.double() for name, tensor in load_file(tmp_path / "sae_weights.safetensors").items()}
    theirs = (x.double() - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    sae, scale = sae.requires_grad_(False), float(sae.input.scale)
    exact = (((x.double() - mean.double()) * scale - sae.b_dec.double()) @ sae.W_enc.double()) / scale
    assert float((theirs - exact).abs().max() / exact.abs().amax(1).min()) < 1e-6


@pytest.mark.parametrize("architecture", ["jumprelu", "batchtopk", "gated"])
def test_what_begins_with_an_import_has_its_support(tmp_path: Path, architecture: str):
    """A ReLU has no thresholds, and does not drop those of the file: rows have the features active that the file says."""
    folder_of(tmp_path, architecture)
    old, x = saelens.read(tmp_path).double(), torch.randn(200, D, generator=torch.Generator().manual_seed(4)).double()
    sae = ReLU(ReLUConfig(d_sae=N, sparsity={"coefficient": 1}, init={"from": str(tmp_path)}), D).double()
    initialise(sae, x)
    expected = old.encode(x).to_dense() != 0
    assert torch.equal(sae.encode(x).to_dense() != 0, expected) and 0.1 < expected.double().mean() < 0.45
