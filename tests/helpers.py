"""What journeys through the command share: a config that trains in a second, and the command run here or as a process."""

import contextlib
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sae.cli import main

ROOT = Path(__file__).parents[1]
HOOK = "blocks.0.hook_resid_post"


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def write_corpus(folder: Path, n_files: int = 60, n_chars: int = 150, seed: int = 0) -> Path:
    """Small text files of made-up words; the byte tokenizer of native models makes a token of each character."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    for i in range(n_files):
        words = ("".join(rng.choices("etaoinshr", k=rng.randint(2, 6))) for _ in range(n_chars))
        (folder / f"{i:03d}.txt").write_text(" ".join(words)[:n_chars])
    return folder


def quick_fields(**sections: Any) -> dict[str, Any]:
    """A config that trains in about a second; a dict is laid on its section, anything else replaces it.

    Its paths (corpus/, cache/) are relative, so that a folder can be copied with all that was made in it.
    """
    fields: dict[str, Any] = {
        "name": "quick",
        "model": {"name": "native:tiny", "device": "cpu", "dtype": "float32", "batch_seqs": 8},
        "corpus": {"sources": "text:corpus/*.txt", "n_ctx": 32, "n_tokens": 4096, "held_out": 0.2},
        "cache": {"dtype": "float32", "shard_rows": 1024},
        "site": HOOK,
        "data": {"batch_rows": 128, "superblock_rows": 1024, "n_calib": 8},
        "sae": {"variant": "topk", "d_sae": 64, "k": 4},
        "train": {"budget": "1 epochs", "device": "cpu", "kernels": "reference", "dead_window": "1k tokens",
                  "checkpoint_every": "10%"},
        "eval": {"n_rows": 256, "n_tokens": 128},
    }
    for key, value in sections.items():
        both = isinstance(value, dict) and isinstance(fields.get(key), dict)
        fields[key] = {**fields[key], **value} if both else value
    if str(fields["corpus"]["sources"]).startswith("acts:"):
        del fields["corpus"]["n_tokens"]
    return fields


def write_config(folder: Path, **sections: Any) -> Path:
    """`folder`/quick.yaml with that config (JSON is YAML), and its corpus."""
    if not (folder / "corpus").exists():
        write_corpus(folder / "corpus")
    path = folder / "quick.yaml"
    path.write_text(json.dumps(quick_fields(**sections), indent=1))
    return path


def run_sae(folder: Path, *argv: str | Path) -> Outcome:
    """The command `sae` in this process, in `folder`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(arg) for arg in argv])
        except SystemExit as leaving:  # argparse
            code = leaving.code if isinstance(leaving.code, int) else 1
    return Outcome(code, out.getvalue(), err.getvalue())


def train(folder: Path, *arguments: str | Path) -> Outcome:
    """`sae train quick.yaml` in `folder`, in this process."""
    return run_sae(folder, "train", "quick.yaml", *arguments)


def start_sae(folder: Path, *argv: str | Path, **variables: str) -> "subprocess.Popen[str]":
    """The command as a process that runs alongside."""
    command = [sys.executable, "-c", "import sys; from sae.cli import main; sys.exit(main())", *map(str, argv)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: "subprocess.Popen[str]") -> Outcome:
    """How such a process ends; waits for it."""
    with process:
        out, err = process.communicate(timeout=120)
    return Outcome(process.returncode, out, err)


def refusal(outcome: Outcome, command: str = "train") -> str:
    """The one sentence with which the command refused; fails if it ended otherwise."""
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err, outcome.err
    lines = [line for line in outcome.err.splitlines() if line.startswith(f"sae {command}: ")]
    assert len(lines) == 1 and outcome.err.rstrip().endswith(lines[0]), f"not one sentence at the end: {outcome.err}"
    assert lines[0].endswith((".", "?")), lines[0]
    return lines[0].removeprefix(f"sae {command}: ")


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` that has a final name, with its content."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    names = {str(p.relative_to(folder)): p for p in paths}
    return {name: path.read_bytes() for name, path in names.items() if ".partial" not in name and ".lock" not in name}


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """While open, nothing below `folder` can be written: mounted so for root, whom no mode stops; else by its mode."""
    if os.geteuid():
        folder.chmod(0o555)
        undo = partial(folder.chmod, 0o755)
    else:
        for options in (["--bind", str(folder)], ["-o", "remount,bind,ro"]):
            if subprocess.run(["mount", *options, str(folder)], capture_output=True).returncode:
                pytest.skip("root may not mount here")
        undo = partial(subprocess.run, ["umount", "--lazy", str(folder)], check=True)
    try:
        yield
    finally:
        undo()
