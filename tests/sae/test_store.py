import json
from pathlib import Path

import numpy as np
import pytest
import torch

import sae as package
from sae import store
from sae.base import SAE, Transform
from sae.errors import SaescopeError
from sae.io import files
from sae.variants import VARIANTS

D, N = 12, 40
FIELDS: dict[str, dict] = {
    "topk": {"k": 4}, "batchtopk": {"k": 4}, "relu": {}, "abstopk": {"k": 4}, "absbatchtopk": {"k": 4},
    "matryoshka": {"k": 4}, "jumprelu": {}, "gated": {}, "mdl": {},
    "icfl": {"rounds": 2, "per_round": 2},
}
ROUNDING = {"atol": 1e-4, "rtol": 1e-5}
"""Rows here are about 100 long."""


def make(variant: str, d_out: int = D) -> SAE:
    generator = torch.Generator().manual_seed(0)
    sae_class, config = VARIANTS[variant]
    mean = 30 * torch.randn(D, generator=generator)
    target = Transform(torch.randn(d_out, generator=generator), torch.tensor(0.7)) if d_out != D else None
    input = Transform(mean, torch.tensor(0.4))
    sae = sae_class(config(d_sae=N, **FIELDS[variant]), D, d_out, input=input, target=target)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        if sae.unit_norm_decoder:
            sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
    if variant in ("batchtopk", "absbatchtopk", "matryoshka"):
        sae.threshold_sum.fill_(0.9)
        sae.threshold_weight.fill_(0.8)
    return sae


def rows(sae: SAE, n: int = 64) -> torch.Tensor:
    return sae.input.mean + 4 * torch.randn(n, sae.d_in, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("variant", FIELDS)
@pytest.mark.parametrize("d_out", [D, 9])
def test_round_trip(tmp_path: Path, variant: str, d_out: int):
    if variant == "icfl" and d_out != D:
        with pytest.raises(SaescopeError, match=r"icfl .*: d_in = 12, d_out = 9"):
            make(variant, d_out)
        return
    sae = make(variant, d_out)
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    digest = store.save(sae, tmp_path / "run" / "final", provenance={"site": {"input": "blocks.1.hook_resid_post"}})
    assert all(torch.equal(tensor, before[name]) for name, tensor in sae.state_dict().items())

    loaded = store.load(tmp_path / "run")
    assert type(loaded) is type(sae) and loaded.config == sae.config and (loaded.d_in, loaded.d_out) == (D, d_out)
    assert loaded.provenance == {"site": {"input": "blocks.1.hook_resid_post"}}
    assert loaded.W_enc.t().is_contiguous()
    x = rows(sae)
    code, again = sae.encode(x), loaded.encode(x)
    assert torch.equal(code.feature, again.feature)
    torch.testing.assert_close(again.value, code.value, **ROUNDING)
    torch.testing.assert_close(loaded(x), sae(x), **ROUNDING)
    torch.testing.assert_close(loaded.W_dec.norm(dim=1), torch.ones(N))

    assert digest == store.weights_hash(sae) == store.weights_hash(loaded)
    store.save(loaded, tmp_path / "again", provenance=loaded.provenance)
    for name in ("sae.safetensors", "sae.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "run" / "final" / name).read_bytes()


def test_unit_rows_are_saved_as_they_are(tmp_path: Path):
    sae = make("topk")
    store.save(sae, tmp_path / "final", provenance={})
    assert all(torch.equal(t, files.read_tensors(tmp_path / "final" / "sae.safetensors")[n]) for n, t in sae.tensors())


def test_values_of_a_saved_form_are_lengths(tmp_path: Path):
    sae = make("relu")
    store.save(sae, tmp_path / "final", provenance={})
    loaded, x = store.load(tmp_path / "final"), rows(sae)
    pre = (loaded.input.normalise(x) - loaded.b_dec) @ loaded.W_enc + loaded.b_enc
    torch.testing.assert_close(loaded.encode(x).to_dense(), (pre / loaded.target.scale).relu(), **ROUNDING)


def test_a_feature_without_direction_is_switched_off(tmp_path: Path):
    sae = make("relu")
    with torch.no_grad():
        sae.W_dec[3] = 0
    store.save(sae, tmp_path / "final", provenance={})
    loaded, x = store.load(tmp_path / "final"), rows(sae)
    assert loaded.encode(x).counts()[3] == 0
    torch.testing.assert_close(loaded(x), sae(x), **ROUNDING)


def test_other_dtypes_come_back_as_they_were(tmp_path: Path):
    sae = make("relu").double()
    digest = store.save(sae, tmp_path / "final", provenance={})
    loaded = store.load(tmp_path / "final")
    assert loaded.W_enc.dtype == torch.float64 and store.weights_hash(loaded) == digest


def test_the_hash_tells_weights_apart():
    sae = make("topk")
    before = store.weights_hash(sae)
    with torch.no_grad():
        sae.b_enc[5] = torch.nextafter(sae.b_enc[5], torch.tensor(9.0))
    assert store.weights_hash(sae) != before


@pytest.mark.parametrize("variant", ["topk", "batchtopk"])
def test_norms_that_decide_what_is_active_are_not_folded(tmp_path: Path, variant: str):
    sae = make(variant)
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.5, 2, N)[:, None])
    with pytest.raises(SaescopeError, match=r"norms from 0\.5 to 2"):
        store.save(sae, tmp_path / "final", provenance={})
    assert not list(tmp_path.iterdir())


def test_package_load(tmp_path: Path):
    store.save(make("topk"), tmp_path / "final", provenance={})
    assert package.load(str(tmp_path)).d_sae == N


def saved(tmp_path: Path) -> Path:
    store.save(make("topk"), tmp_path / "final", provenance={})
    return tmp_path / "final"


def edit(folder: Path, change) -> None:
    manifest = json.loads((folder / "sae.json").read_text())
    change(manifest)
    (folder / "sae.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format="other"), "format is 'other'"),
        (lambda m: m.update(format_version=2), "format version 2 cannot be read"),
        (lambda m: m["config"].update(variant="dense"), "no variant called 'dense'; this code has topk"),
        (lambda m: m["config"].update(kk=3), "config.kk cannot be used"),
        (lambda m: m["config"].update(d_sae=N + 1), "does not match sae.json"),
        (lambda m: m.update(d_in=D + 1), "does not match sae.json"),
        (lambda m: m.update(d_in="many"), "does not match sae.json"),
        (lambda m: m.pop("d_out"), "entry 'd_out' is missing"),
        (lambda m: m.pop("config"), "no variant called None"),
        (lambda m: m.update(weights_sha256="0" * 64), "sha256 differs"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path: Path, change, message: str):
    folder = saved(tmp_path)
    edit(folder, change)
    with pytest.raises(SaescopeError, match=message):
        store.load(folder)


def test_garbled_weights_are_refused(tmp_path: Path):
    folder = saved(tmp_path)
    whole = (folder / "sae.safetensors").read_bytes()
    (folder / "sae.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(SaescopeError, match="sha256 differs"):
        store.load(folder)
    (folder / "sae.safetensors").write_bytes(whole[:-4])
    with pytest.raises(SaescopeError, match="cannot be read as safetensors"):
        store.load(folder)
    (folder / "sae.safetensors").unlink()
    with pytest.raises(SaescopeError, match=r"sae\.safetensors: cannot be read"):
        store.load(folder)


def test_a_missing_manifest_is_named(tmp_path: Path):
    folder = saved(tmp_path)
    (folder / "sae.json").unlink()
    with pytest.raises(SaescopeError, match=r"sae\.json: cannot be read"):
        store.load(folder)


def test_where_nothing_lies(tmp_path: Path):
    with pytest.raises(SaescopeError, match="no such folder"):
        store.load(tmp_path / "none")
    with pytest.raises(SaescopeError, match="no SAE found"):
        store.load(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(SaescopeError, match="has no final/ yet"):
        store.load(tmp_path)


@pytest.mark.parametrize("device", ["cuda:99", "cdua", torch.device("cuda:99")])
def test_a_device_that_is_not_there(tmp_path: Path, device: str | torch.device) -> None:
    store.save(make("topk"), tmp_path / "final", provenance={})
    with pytest.raises(SaescopeError, match="is not available to torch"):
        package.load(tmp_path, device=device)
    assert package.load(tmp_path, device="auto").d_sae == N


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_of_any_shape_and_kind_are_encoded(variant: str) -> None:
    sae, x = make(variant), 30 * torch.randn(6, D, generator=torch.Generator().manual_seed(1))
    rows = sae.encode(x)
    array = x.numpy()
    array.flags.writeable = False
    for same in (x.view(2, 3, D), x.double(), array, array.astype(">f4"), array.reshape(1, 2, 3, D)):
        code = sae.encode(same)
        assert torch.equal(code.feature, rows.feature) and torch.equal(code.value, rows.value)
    assert sae.encode(x[0]).n_rows == 1
    assert torch.equal(sae(x.view(2, 3, D)), sae(x).view(2, 3, D))


@pytest.mark.parametrize(
    ("x", "facts"),
    [
        (torch.zeros(3, D + 1), rf"\[3, {D + 1}\].*size {D}"),
        (torch.zeros(()), rf"\[\].*size {D}"),
        (torch.zeros(3, D, dtype=torch.int64), "Tensor of int64"),
        (np.zeros((3, D), dtype=np.int32), "ndarray of int32"),
        (np.zeros((3, D - 1)), rf"\[3, {D - 1}\].*size {D}"),
    ],
)
def test_what_cannot_be_encoded(x: torch.Tensor | np.ndarray, facts: str) -> None:
    with pytest.raises(SaescopeError, match=facts):
        make("topk").encode(x)
    with pytest.raises(SaescopeError, match=facts):
        make("topk")(x)


def test_a_code_of_another_sae() -> None:
    other = VARIANTS["topk"][0](VARIANTS["topk"][1](d_sae=8, k=2), D)
    with pytest.raises(SaescopeError, match="8 features, this SAE has 40"):
        make("topk").decode(other.encode(torch.ones(2, D)))


def test_saving_replaces_an_sae_and_nothing_else(tmp_path: Path):
    sae = make("topk")
    (tmp_path / "mine").mkdir()
    for folder in ("mine", "mine"):
        store.save(sae, tmp_path / folder, provenance={})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("x")
    (tmp_path / "notes" / "sae.json").write_text("{}")
    (tmp_path / "file").write_text("x")
    for name in ("notes", "file"):
        with pytest.raises(SaescopeError, match=name):
            store.save(sae, tmp_path / name, provenance={})
    assert (tmp_path / "notes" / "thesis.txt").exists() and (tmp_path / "file").read_text() == "x"
