"""An index of refined codes: its values are those of the refined SAE, and of texts that are read beside it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.corpus_rows import open_rows
from analysis.export.cards import provenance
from analysis.index import Index, build, open_index
from analysis.prompt import encode_text
from analysis.trained import open_trained
from sae.errors import SaescopeError
from tests.helpers import HOOK, refusal, run_sae, train, write_config

REFINE = 2


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("refined")
    write_config(root)
    assert train(root, "--quiet").code == 0
    assert run_sae(root, "index", "runs/quick", "--quiet").code == 0
    made = run_sae(root, "index", "runs/quick", "--name", "refined", "--refine", str(REFINE))
    assert made.code == 0, made.err
    return root / "runs/quick"


@pytest.fixture
def index(run: Path) -> Index:
    return open_index(run / "index/refined")


def test_it_holds_refined_codes_and_says_so(run: Path, index: Index) -> None:
    plain = open_index(run / "index/default")
    assert (index.refine, plain.refine) == (REFINE, 0)
    assert "2 steps" in provenance(index)["codes"] and "codes" not in provenance(plain)
    rows = open_rows(open_trained(run))
    acts, keep = rows.read(np.arange(index.n_seqs))
    code = open_trained(run).sae.encode(acts[HOOK][keep].float(), refine=REFINE)
    got = torch.cat([index.code(seq).to_dense() for seq in range(index.n_seqs)])[keep]
    torch.testing.assert_close(got, code.to_dense(), atol=1e-3, rtol=1e-3)
    assert index.manifest["fidelity"]["fve"] > plain.manifest["fidelity"]["fve"] + 0.02
    assert index.n_values <= plain.n_values


def test_a_text_is_read_as_the_index_was_made(run: Path, index: Index) -> None:
    """A context of the corpus, read as a prompt, has the values that the index has."""
    seq = int(np.flatnonzero(index.arrays["kept"].sum(1) > 20)[0])
    tokens = torch.tensor(index.tokens[seq].tolist())
    stored = index.code(seq).to_dense()
    refined, plain = (open_trained(run, refine=n).code_of_tokens(tokens) for n in (index.refine, 0))
    both = refined.kept & torch.tensor(index.arrays["kept"][seq].tolist())
    torch.testing.assert_close(refined.code.to_dense()[both], stored[both], atol=2e-3, rtol=2e-3)
    assert not torch.allclose(plain.code.to_dense()[both], stored[both], atol=1e-2, rtol=1e-2)
    text = "the tree is in the rain"
    said = encode_text(run, text, refine=index.refine)
    again = open_trained(run, refine=index.refine).code_of_tokens(torch.tensor(said.tokens)).code
    assert torch.equal(said.code.value, again.value)
    assert not torch.equal(said.code.value, encode_text(run, text).code.value)


def test_it_is_kept_as_long_as_it_is_asked_for_alike(run: Path, index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    build(run, name="refined", refine=REFINE)
    assert "is up to date" in capsys.readouterr().err
    build(run, name="again", quiet=True)
    build(run, name="again", refine=1)
    assert "made_from" not in (said := capsys.readouterr().err) and "settings.refine was None, is 1" in said
    assert open_index(run / "index/again").refine == 1
    assert f"sae index {run} --refine 2" in str(stale(index))


def stale(index: Index) -> str | None:
    """What the index says once its run has been trained again."""
    there = index.manifest["made_from"]
    index.manifest["made_from"] = there | {"weights_sha256": "0"}
    try:
        return index.stale
    finally:
        index.manifest["made_from"] = there


def test_bad_asks_are_refused(run: Path, tmp_path: Path) -> None:
    place = run.parents[1]
    assert "--refine -1 is negative" in refusal(run_sae(place, "index", "runs/quick", "--refine", "-1"), "index")
    write_config(place, name="across", site={"input": "blocks.1.hook_resid_mid", "target": "blocks.1.hook_mlp_out"})
    assert train(place, "--quiet").code == 0
    said = refusal(run_sae(place, "index", "runs/across", "--refine", "1"), "index")
    assert "runs/across: refine = 1" in said and "transcoder" in said
    assert not (place / "runs/across/index").exists()
    with pytest.raises(SaescopeError, match="transcoder"):
        open_trained(place / "runs/across", refine=3)
