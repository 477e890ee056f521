"""What lies at a path: folders, the hub's cache, and what is refused."""

import shutil
from pathlib import Path

import pytest
import torch

from sae.errors import SaescopeError
from sae.formats import gemma_scope
from tests.helpers import HOOK
from tests.training.imported import gemma_scope_folder, saelens_folder, weights
from training.importing.source import decide, open_source

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the hub's own client takes for its cache, and no network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def in_cache(cache: Path, repo: str, inside: str, folder: Path, *, branch: str = "main") -> None:
    """Lay a folder into the hub's cache as a download of one commit would."""
    place = cache / f"models--{repo.replace('/', '--')}"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / branch).write_text(COMMIT)
    shutil.copytree(folder, place / "snapshots" / COMMIT / inside)


def test_a_folder_of_the_hub(tmp_path: Path, hub_cache: Path) -> None:
    in_cache(hub_cache, "someone/saes", "layer/8", saelens_folder(tmp_path / "sae", "standard"), branch="v1")
    found = open_source("hub:someone/saes/layer/8@v1")
    assert found.place == f"hub:someone/saes/layer/8@{COMMIT}" and found.name == "saes-layer-8"
    assert found.model == "native:tiny" and found.site is not None and found.site.input == HOOK


def test_gemma_scope_of_the_hub_with_the_options_its_path_suggests(tmp_path: Path, hub_cache: Path) -> None:
    inside = "layer_20/width_16k/average_l0_71"
    in_cache(hub_cache, "google/gemma-scope-2b-pt-res", inside, gemma_scope_folder(tmp_path / "sae"))
    path = f"hub:google/gemma-scope-2b-pt-res/{inside}"
    found = open_source(path)
    assert (found.format, found.model, found.site) == ("gemma-scope", None, None)
    with pytest.raises(SaescopeError, match=r"hub:google/gemma-2-2b.*blocks\.20\.hook_resid_post"):
        decide(found, path, None, None, None)


@pytest.mark.parametrize(("path", "says"), [
    ("hub:nobody/nothing/sub", "nobody/nothing"), ("hub:alone", "ORG/NAME"), ("hub:a/b/../c", "ORG/NAME"),
])
def test_what_the_hub_does_not_have(hub_cache: Path, path: str, says: str) -> None:
    with pytest.raises(SaescopeError, match=says):
        open_source(path)


def test_a_repository_without_that_folder(tmp_path: Path, hub_cache: Path) -> None:
    in_cache(hub_cache, "someone/saes", "there", saelens_folder(tmp_path / "sae", "standard"))
    with pytest.raises(SaescopeError, match="elsewhere"):
        open_source("hub:someone/saes/elsewhere")


@pytest.mark.parametrize(("path", "model", "hook", "target"), [
    ("google/gemma-scope-2b-pt-res/layer_20/x", "hub:google/gemma-2-2b", "blocks.20.hook_resid_post", None),
    ("google/gemma-scope-9b-it-res/layer_9/x", "hub:google/gemma-2-9b-it", "blocks.9.hook_resid_post", None),
    ("google/gemma-scope-9b-pt-att/layer_3/x", "hub:google/gemma-2-9b", "blocks.3.attn.hook_z", None),
    ("google/gemma-scope-2b-pt-transcoders/layer_7/x", "hub:google/gemma-2-2b", "blocks.7.ln2.hook_normalized",
     "blocks.7.hook_mlp_out"),
    ("anything/else", None, None, None),
])
def test_what_a_path_of_gemma_scope_tells(path: str, model: str | None, hook: str | None, target: str | None) -> None:
    assert gemma_scope.guess(path) == (model, hook, target)


@pytest.mark.parametrize(("name", "means"), [
    ("gpt2-small", "hub:gpt2"), ("gpt2", "hub:gpt2"), ("gemma-2-2b", "hub:google/gemma-2-2b"),
    ("pythia-70m-deduped", "hub:EleutherAI/pythia-70m-deduped"), ("smollm2-135m", "smollm2-135m"),
    ("me/mine", "hub:me/mine"),
])
def test_models_by_the_names_that_saelens_gives_them(tmp_path: Path, name: str, means: str) -> None:
    path = str(saelens_folder(tmp_path / "sae", "standard", model_name=name))
    found = open_source(path)
    assert decide(found, path, None, None, None)[0] == means
    for same in (means, f"{means}@v1" if means.startswith("hub:") else means, "local:/somewhere"):
        assert decide(found, path, same, None, None)[0] == same
    with pytest.raises(SaescopeError, match="hub:gpt2-xl"):
        decide(found, path, "hub:gpt2-xl", None, None)


def test_a_head_is_part_of_the_hook(tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path / "sae", "standard", hook_name="blocks.0.attn.hook_z", hook_head_index=2)
    found = open_source(str(folder))
    assert found.site is not None and found.site.input == "blocks.0.attn.hook_z[2]"


def test_pickles_are_refused_unopened(tmp_path: Path) -> None:
    torch.save(weights("standard"), tmp_path / "ae.pt")
    (tmp_path / "evil.pkl").write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    with pytest.raises(SaescopeError, match=r"ae\.pt"):
        open_source(str(tmp_path))
    with pytest.raises(SaescopeError, match="file"):
        open_source(str(tmp_path / "evil.pkl"))


def test_no_folder_and_nothing_in_it(tmp_path: Path) -> None:
    with pytest.raises(SaescopeError, match="nowhere"):
        open_source(str(tmp_path / "nowhere"))
    with pytest.raises(SaescopeError, match=r"cfg\.json"):
        open_source(str(tmp_path))
    saelens_folder(tmp_path / "layer_1", "standard")
    with pytest.raises(SaescopeError, match="layer_1"):
        open_source(str(tmp_path))


def test_an_architecture_that_is_not_known(tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path / "sae", "standard")
    (folder / "cfg.json").write_text((folder / "cfg.json").read_text().replace('"standard"', '"crosscoder"'))
    with pytest.raises(SaescopeError, match="crosscoder"):
        open_source(str(folder))
