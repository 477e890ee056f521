"""What becomes of the output: an encoding that lacks characters, and a pipe that nobody reads."""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sae.cli import main
from tests.helpers import ROOT, write_config

SAE = [sys.executable, "-c", "import sys; from sae.cli import main; sys.exit(main())"]


def code_of(*argv: str) -> int:
    try:
        return main(list(argv))
    except SystemExit as leaving:  # argparse
        return int(leaving.code or 0)


@contextlib.contextmanager
def in_ascii(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.BytesIO]:
    """A standard output as under PYTHONIOENCODING=ascii."""
    out = io.BytesIO()
    stream = io.TextIOWrapper(out, encoding="ascii")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        yield out
    stream.detach()


@pytest.mark.parametrize("argv", [["train", "--fields"], ["mdl", "--help"], ["train", "--help"]], ids=" ".join)
def test_texts_are_printed_in_ascii(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with in_ascii(monkeypatch) as out:
        assert code_of(*argv) == 0
    assert out.getvalue().isascii() and len(out.getvalue()) > 200


def test_a_training_reports_in_ascii(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(tmp_path, name="naïve")
    monkeypatch.chdir(tmp_path)
    with in_ascii(monkeypatch) as out:
        assert code_of("train", "quick.yaml") == 0
    assert b"na?ve" in out.getvalue() and (tmp_path / "runs/naïve/summary.json").exists()


@pytest.mark.parametrize("argv", [["mdl", "--help"], ["train", "--fields"], ["--version"]], ids=" ".join)
def test_a_closed_pipe_ends_quietly(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert code_of(*argv) == 141
        print("and what comes after it goes nowhere", file=stream)


def test_a_process_whose_output_nobody_reads_says_nothing() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    for argv in (["--version"], ["mdl", "--help"]):
        sae = subprocess.Popen([*SAE, *argv], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert sae.stdout is not None and sae.stderr is not None
        sae.stdout.close()
        with sae:
            # argparse itself passes over what it cannot write
            assert sae.stderr.read() == b"" and sae.wait(60) in (0, 141)
