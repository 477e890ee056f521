"""`sae label --with` on a real index, with a server on this machine."""

import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from analysis.index import Index
from analysis.labels.store import Labels
from tests.analysis.labels.by_model.chat_server import MODEL, ChatServer
from tests.analysis.labels.by_model.speller import speller
from tests.helpers import ended, refusal, run_sae, start_sae


@pytest.fixture
def run(folder: Path, index: Index, tmp_path: Path) -> Path:
    """A copy of the run, to write labels into."""
    return Path(shutil.copytree(folder / "runs/quick", tmp_path / "quick"))


def test_the_command_tells_the_costs_first(run: Path) -> None:
    with ChatServer(speller) as server:
        command = ["label", run, "--with", server.url, "--model", MODEL, "--top", "6"]
        done = run_sae(run, *command)
        assert "--yes" in refusal(done, "label") and "6 features to label" in done.out and not server.requests
        done = run_sae(run, *command, "--yes", "--price-in", "2", "--price-out", "10")
        assert done.code == 0 and len(server.requests) == 18, done
        n_in, n_out = np.sum(server.answered, 0).tolist()
        assert f"18 requests, {n_in:,} input tokens, {n_out:,} output tokens, 0.0" in done.out
        assert "6 labels, 6 scored on" in done.out and "at 2 and 10 per million tokens" in done.out
        again = run_sae(run, *command)
        assert again.code == 0 and len(server.requests) == 18 and "6 features have a label" in again.out
        rules = run_sae(run, "label", run, "--top", "7", "--quiet")
        assert "6 features keep" in rules.out and sum(bool(one.model) for one in Labels(run).automatic()) == 6
        assert run_sae(run, "label", run, "--top", "7", "--replace", "--quiet").code == 0
        assert not any(one.model for one in Labels(run).automatic())


def test_a_killed_labelling_goes_on(run: Path) -> None:
    with ChatServer(speller, pause_s=0.02) as server:
        command = ["label", run, "--with", server.url, "--model", MODEL, "--yes", "--top", "30", "--unscored"]
        process = start_sae(run, *command)
        ends = time.monotonic() + 60
        while len(server.answered) < 8 and time.monotonic() < ends:
            time.sleep(0.01)
        process.kill()
        assert ended(process).code == -signal.SIGKILL
        kept, n_answered = len(Labels(run).automatic()), len(server.answered)
        assert 8 - 4 <= kept <= n_answered < 30
        assert run_sae(run, *command).code == 0
        assert len(Labels(run).automatic()) == 30 and len(server.answered) == n_answered + 30 - kept


@pytest.mark.parametrize(("arguments", "told"), [
    (["--with", "http://localhost:1/v1"], "--model"),
    (["--model", "x"], "--with"),
    (["--with", "native:tiny", "--model", "x"], "native:tiny"),
    (["--with", "no-such-model"], "no-such-model"),
    (["--with", "native:tiny", "--examples", "0"], "--examples"),
    (["--with", "native:tiny", "--price-in", "1"], "--price-out"),
    (["--with", "http://u:p@h", "--model", "x"], "password"),
])
def test_arguments_that_cannot_be_meant(run: Path, arguments: list[str], told: str) -> None:
    assert told in refusal(run_sae(run, "label", run, *arguments), "label")
    assert not Labels(run).automatic()
