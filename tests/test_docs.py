"""README and guides: commands and Python blocks run as written, links lead somewhere, `make` targets and configs exist.

They run in a folder with small `configs/`: the quickstart on little text, through the real model; others on a tiny one.
"""

import contextlib
import io
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from sae.cli import main
from tests.helpers import ROOT, Outcome, quick_fields, run_sae, write_corpus
from training.config.yaml12 import dump_yaml

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
LONG = re.compile(
    r"^sae (dashboard|demo|bench|reproduce|eval|circuit|import|mdl)\b|configs/(gpt2|gemma|circuits)|digits-denoiser|--with "
)
"""Commands that need a hub, server or GPU, serve a page or take minutes: other tests run them, here they are looked up."""


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


def commands(page: Path) -> list[str]:
    """The indented lines that begin with sae or make, without comments, continued lines joined."""
    text = re.sub(r"\\\n\s+", "", page.read_text())
    return [re.split(r"\s{2,}#|\s#\s", line)[0].strip() for line in re.findall(r"^ {4}((?:sae|make) .*)$", text, re.M)]


def runs_here(command: str) -> bool:
    return command.startswith("sae ") and not LONG.search(command) and "|" not in command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """configs/, acts.npy, notes.txt and acts/, as the pages assume them."""
    place = tmp_path_factory.mktemp("docs")
    write_corpus(place / "corpus")
    (place / "configs").mkdir()
    for name in ("topk", "sweep"):
        fields = quick_fields(name=name)
        fields |= {"sweep": [{"name": "a"}, {"name": "b", "sae": {"k": 2}}]} if name == "sweep" else {}
        (place / "configs" / f"{name}.yaml").write_text(dump_yaml(fields))
    small = {
        "name": "quickstart", "model": "smollm2-135m", "site": "blocks.9.hook_resid_post",
        "corpus": {"sources": "python-stdlib", "n_ctx": 64, "n_tokens": 16_384, "held_out": 0.1},
        "data": {"batch_rows": 512}, "sae": {"variant": "topk", "d_sae": 512, "k": 16},
        "train": {"budget": "1 epochs"}, "eval": {"n_rows": 1024, "n_tokens": 256},
    }
    (place / "configs" / "quickstart.yaml").write_text(dump_yaml(small))
    rows = np.random.default_rng(0).normal(size=(20_000, 32)).astype(np.float16)
    np.save(place / "acts.npy", rows)
    (place / "acts").mkdir()
    np.save(place / "acts" / "0.npy", rows)
    (place / "notes.txt").write_text("\n\n".join(f"Note {i}: {Path(__file__).read_text()[:400]}" for i in range(40)))
    done = run_sae(place, "train", "configs/quickstart.yaml", "--quiet")
    assert done.code == 0, done.err
    assert run_sae(place, "index", "runs/quickstart", "--quiet").code == 0
    return place


def sae_command(folder: Path, command: str) -> Outcome:
    return run_sae(folder, *shlex.split(command)[1:])


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_every_command_runs(folder: Path, page: Path) -> None:
    for command in commands(page):
        name = re.search(r"name=(\S+)|runs/(\S+)$", command)
        if not runs_here(command) or (name and (folder / "runs" / (name[1] or name[2])).exists() and " train " in command):
            continue
        done = sae_command(folder, command)
        repeated = "exists; add --resume" in done.err  # two pages may train the same run
        assert done.code == 0 or repeated, (command, done.err)


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_every_python_block_runs(folder: Path, page: Path) -> None:
    names: dict[str, object] = {}
    with contextlib.chdir(folder):
        for block in blocks(page, "python"):
            exec(compile(block, str(page), "exec"), names)  # a page's blocks go on from one another


def test_the_yaml_of_ones_own_rows_trains(folder: Path) -> None:
    (block,) = blocks(ROOT / "docs" / "guides" / "own-activations.md", "yaml")
    (folder / "own.yaml").write_text(block)
    done = run_sae(folder, "train", "own.yaml", "name=yaml", "sae.d_sae=64", "--quiet")
    assert done.code == 0, done.err


def test_ones_own_module_trains(folder: Path) -> None:
    page = ROOT / "docs" / "guides" / "own-modules.md"
    (folder / "my_vision.py").write_text(blocks(page, "python")[0])
    (folder / "vision.yaml").write_text(blocks(page, "yaml")[0])
    done = run_sae(folder, "train", "vision.yaml", "--quiet")
    assert done.code == 0, done.err
    assert run_sae(folder, "index", "runs/vision", "--quiet").code == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_named_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in commands(page):
        words = command.split()
        if words[0] == "make":
            target = re.sub("reproduce-.*", "reproduce-%", words[1])
            assert re.search(rf"^{re.escape(target)}:", makefile, re.M), command
            continue
        for config in re.findall(r"configs/\S+\.yaml", command):
            assert (ROOT / config).exists(), command
        with pytest.raises(SystemExit) as ended, contextlib.redirect_stdout(io.StringIO()):
            main([words[1].split("|")[0], "--help"])
        assert ended.value.code == 0, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(#[^)]*)?\)", page.read_text()):
        if not target[0].startswith("http"):
            assert (page.parent / target[0]).exists(), f"{page.name}: {target[0]}"


def test_the_readme_fits_a_few_screens() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
