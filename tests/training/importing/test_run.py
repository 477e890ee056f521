"""An imported SAE is a run: it computes what it did, its figures are those of the formulas, and everything opens it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae.errors import SaescopeError
from sae.io.files import read_json
from tests.helpers import HOOK, write_corpus
from tests.training.imported import OUT, D, dense, gemma_scope_folder, imported, saelens_folder, weights
from training.commands import import_
from training.config import reading as configs
from training.config.schema import Config
from training.display import Display
from training.finish import Result
from training.importing.run import Judged, judged
from training.model.load import load_model
from training.run import train

SAES = ("standard", "jumprelu", "topk", "abstopk", "gated", "gemma-scope")
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder")


def source(folder: Path, architecture: str) -> Path:
    return gemma_scope_folder(folder) if architecture == "gemma-scope" else saelens_folder(folder, architecture)


def given(architecture: str) -> dict[str, Tensor]:
    return weights("jumprelu" if architecture == "gemma-scope" else architecture)


def reopened(run: Result) -> tuple[Config, Judged]:
    """What the run's figures are of, opened anew."""
    config = configs.read(run.folder / "config.yaml")[0]
    return config, judged(config, load_model("native:tiny"), Display(quiet=True))


def rows_of(run: Result) -> tuple[Tensor, Tensor]:
    """x and target of the rows that FVE is of."""
    config, found = reopened(run)
    return config.site.rows({hook: rows.float() for hook, rows in found.rows.acts.items()})


@pytest.mark.parametrize("architecture", SAES + TRANSCODERS)
def test_figures_are_those_of_the_formulas(tmp_path: Path, architecture: str) -> None:
    options = {"model": "native:tiny", "hook": HOOK} if architecture == "gemma-scope" else {}
    run = imported(tmp_path, source(tmp_path / "theirs", architecture), **options)
    x, target = rows_of(run)
    x_hat = dense(architecture, given(architecture), x)
    torch.testing.assert_close(run.sae(x).double(), x_hat, atol=2e-5, rtol=1e-4)
    held = run.summary["heldout"]
    fve = 1 - (target.double() - x_hat).square().sum() / (target - target.mean(0)).double().square().sum()
    assert held["n_rows"] == len(x)
    assert held["fve"] == pytest.approx(float(fve), abs=1e-5)
    assert held["fve_interval"][0] <= held["fve"] <= held["fve_interval"][1]
    assert held["ce_clean"] > 0 and held["ce_recovered_mean_interval"][0] < held["ce_recovered_mean_interval"][1]


def test_cross_entropy_is_that_of_the_model_with_the_formula_in_it(tmp_path: Path) -> None:
    run = imported(tmp_path, saelens_folder(tmp_path / "theirs", "standard"))
    found = reopened(run)[1]
    tokens = found.tokens
    assert tokens is not None and tokens.tokens.tokens is not None
    ids = torch.from_numpy(tokens.tokens.tokens[tokens.seqs]).long()
    keep = tokens.mask.keep(tokens.seqs, 32).view(ids.shape)
    mean = found.mask.source.rows(HOOK, found.mask.calib, 32)[found.mask.keep(found.mask.calib, 32)].double().mean(0)
    model = load_model("native:tiny")

    def ce(new: object) -> float:
        def replace(acts: Tensor) -> Tensor:
            out = acts.clone()
            out[keep] = new(acts[keep]).to(acts)  # type: ignore[operator]
            return out

        with model.splice(HOOK, replace):
            logits = model.logits(ids)[:, :-1].double()
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))

    clean, by_mean = ce(lambda x: x), ce(lambda x: mean.expand(len(x), -1))
    spliced = ce(lambda x: dense("standard", given("standard"), x))
    held = run.summary["heldout"]
    assert held["ce_n_tokens"] == ids[:, 1:].numel()
    assert held["ce_spliced"] == pytest.approx(spliced, abs=1e-5)
    assert held["ce_recovered_mean"] == pytest.approx((by_mean - spliced) / (by_mean - clean), abs=1e-3)


def test_the_run_says_where_it_is_from_and_makes_nothing_up(tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path / "theirs", "topk")
    run = imported(tmp_path, folder)
    origin = run.summary["imported"]
    assert origin["from"] == "theirs" and set(origin["files"]) == {"cfg.json", "sae_weights.safetensors"}
    assert origin["cfg"]["architecture"] == "topk" and "norm" in origin["mask"]
    assert [run.summary[key] for key in ("n_steps", "n_rows_trained", "dead", "timing")] == [None] * 4
    written = configs.load_yaml((run.folder / "config.yaml").read_text(), "config.yaml")
    assert not {"optim", "train"} & set(written)
    assert set(written["sae"]) == {"variant", "d_sae", "k", "apply_b_dec_to_input", "skip"}
    facts = read_json(run.folder / "final" / "sae.json")["provenance"]
    model = load_model("native:tiny")
    assert facts["made_from"]["model"] == model.identity and facts["config"]["model"]["name"] == "native:tiny"
    assert facts["site"]["input"] == HOOK and facts["imported"]["files"] == origin["files"]


def test_importing_again_makes_the_same_bytes_in_the_saes_files(tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path / "theirs", "jumprelu")
    one, two = (imported(tmp_path, folder, name=name).folder for name in ("one", "two"))
    for name in ("final/sae.safetensors", "final/sae.json", "sae_weights.safetensors", "cfg.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_a_run_exported_to_saelens_comes_back_as_the_same_function(tmp_path: Path) -> None:
    first = imported(tmp_path, saelens_folder(tmp_path / "theirs", "jumprelu"), name="first")
    alone = tmp_path / "exported"
    alone.mkdir()
    for name in ("cfg.json", "sae_weights.safetensors"):
        (alone / name).write_bytes((first.folder / name).read_bytes())
    again = imported(tmp_path, alone, name="again")
    x = rows_of(first)[0]
    torch.testing.assert_close(again.sae(x), first.sae(x), atol=2e-5, rtol=1e-5)


def test_a_gemma_scope_transcoder(tmp_path: Path) -> None:
    run = imported(tmp_path, gemma_scope_folder(tmp_path / "layer_1"), model="native:tiny", hook=HOOK, target=OUT)
    x, target = rows_of(run)
    x_hat = dense("gemma-scope", weights("jumprelu"), x)
    fve = 1 - (target.double() - x_hat).square().sum() / (target - target.mean(0)).double().square().sum()
    assert run.summary["heldout"]["fve"] == pytest.approx(float(fve), abs=1e-5)


def test_without_its_model_a_run_has_no_figures_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = saelens_folder(tmp_path / "theirs", "standard", model_name="nobody/nothing")
    run = imported(tmp_path, folder)
    assert run.summary["heldout"] == {} and "nobody/nothing" in run.summary["imported"]["not_evaluated"]
    x = torch.randn(20, D, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(run.sae(x).double(), dense("standard", weights("standard"), x), atol=2e-5, rtol=1e-4)


REFUSED = [
    ("cfg", {"hook": "blocks.1.hook_resid_post"}, ["blocks.1.hook_resid_post", HOOK]),
    ("cfg", {"model": "hub:gpt2"}, ["hub:gpt2", "native:tiny"]),
    ("cfg", {"target": OUT}, [OUT, "standard"]),
    ("nothing", {}, ["--model"]),
    ("nothing", {"model": "native:tiny"}, ["--hook"]),
    ("nothing", {"model": "native:tiny", "hook": "blocks.0.hook_resid_past"}, ["blocks.0.hook_resid_past", HOOK]),
    ("nothing", {"model": "native:tiny", "hook": "blocks.0.mlp.hook_pre"}, ["32", "128", "blocks.0.mlp.hook_pre"]),
    ("nothing", {"model": "native:tyni", "hook": HOOK}, ["tyni"]),
]


@pytest.mark.parametrize(("names", "options", "facts"), REFUSED)
def test_a_model_or_hook_that_does_not_fit(tmp_path: Path, names: str, options: dict, facts: list[str]) -> None:
    silent = {"model_name": None, "hook_name": None} if names == "nothing" else {}
    folder = saelens_folder(tmp_path / "theirs", "standard", **silent)
    with pytest.raises(SaescopeError) as refused:
        imported(tmp_path, folder, **options)
    assert all(fact in str(refused.value) for fact in facts), refused.value
    assert not list((tmp_path / "runs").glob("*/*")) if (tmp_path / "runs").exists() else True


def test_a_transcoder_without_a_target(tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path / "theirs", "transcoder", hook_name_out=None)
    with pytest.raises(SaescopeError, match="--target"):
        imported(tmp_path, folder)
    assert imported(tmp_path, folder, target=OUT).sae.provenance["site"]["target"] == OUT


def test_a_name_that_is_taken(tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path / "theirs", "standard")
    imported(tmp_path, folder)
    with pytest.raises(SaescopeError, match=r"runs/theirs exists"):
        imported(tmp_path, folder)


@pytest.mark.parametrize("override", ["sae.k=3", "optim.lr=1", "model.name=native:tiny", "corpus.n_token=5"])
def test_what_an_import_cannot_set(tmp_path: Path, override: str) -> None:
    with pytest.raises(SaescopeError, match=override.partition("=")[0].split(".")[1]):
        imported(tmp_path, saelens_folder(tmp_path / "theirs", "standard"), override)


def test_the_command_prints_the_figures_and_what_is_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saelens_folder(tmp_path / "theirs", "standard")
    corpus = write_corpus(tmp_path / "corpus")
    argv = [
        str(folder), "--corpus", f"text:{corpus}/*.txt", "--runs", str(tmp_path / "runs"), "--name", "mine",
        "corpus.n_ctx=32", "corpus.n_tokens=4096", "corpus.held_out=0.2", "eval.n_tokens=0", "eval.n_rows=256",
        f"cache.dir={tmp_path / 'cache'}",
    ]
    assert import_(argv) == 0
    printed = capsys.readouterr().out
    held = read_json(tmp_path / "runs" / "mine" / "summary.json")["heldout"]
    assert f"{held['fve']:.3f}" in printed and f"sae index {tmp_path / 'runs' / 'mine'}" in printed
    assert "ce_spliced" not in held
    assert import_([str(folder), "--runs", str(tmp_path / "runs"), "--no-eval", "--quiet"]) == 0
    assert "--no-eval" in read_json(tmp_path / "runs" / "theirs" / "summary.json")["imported"]["not_evaluated"]


def test_rows_that_saelens_normalises_one_by_one(tmp_path: Path) -> None:
    """No variant here does that: it is read for inference, and its config is a run's like any other."""
    folder = saelens_folder(tmp_path / "theirs", "standard")
    cfg = folder / "cfg.json"
    cfg.write_text(cfg.read_text().replace('"normalize_activations": "none"', '"normalize_activations": "layer_norm"'))
    run = imported(tmp_path, folder)
    x, target = rows_of(run)
    centre, spread = x.double().mean(1, keepdim=True), x.double().std(1, keepdim=True)
    x_hat = dense("standard", given("standard"), (x.double() - centre) / (spread + 1e-5)) * spread + centre
    fve = 1 - (target - x_hat).square().sum() / (target - target.mean(0)).double().square().sum()
    assert run.summary["heldout"]["fve"] == pytest.approx(float(fve), abs=1e-5)
    config = configs.read(run.folder / "config.yaml")[0]
    assert config.sae == run.sae.config and config.sae.variant == "imported"
    with pytest.raises(SaescopeError, match="imported"):
        train(run.folder / "config.yaml", ["name=again", "data.batch_rows=128"], runs=tmp_path / "runs", quiet=True)


@pytest.mark.parametrize("architecture", [*SAES[:5], *TRANSCODERS])
def test_its_config_reads_back_as_it_was(tmp_path: Path, architecture: str) -> None:
    run = imported(tmp_path, saelens_folder(tmp_path / "theirs", architecture), "data.block_rows=16", evaluate=False)
    config = configs.read(run.folder / "config.yaml")[0]
    assert config.sae == run.sae.config and config.data.block_rows == 16
    assert run.sae.provenance["site"] == config.site.model_dump()


def test_ranked_features_with_decoder_rows_of_several_lengths(tmp_path: Path) -> None:
    w = weights("topk")
    w["W_dec"][0] *= 3
    with pytest.raises(SaescopeError, match="norms from 1 to 3"):
        imported(tmp_path, saelens_folder(tmp_path / "theirs", "topk", w))
    assert not (tmp_path / "runs" / "theirs").exists()
