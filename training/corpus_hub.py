"""Rows that the library `datasets` reads: of the hub, or of local files. The only file that imports it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae.errors import SaescopeError
from training.corpus_files import files_of
from training.corpus_rows import Row
from training.document import TextSource

OFFLINE = "python-stdlib, text:PATH, jsonl:PATH and parquet:PATH need no hub"
_HUB_TIMEOUT_S = 10
_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}


def is_local(name: str) -> bool:
    """Whether the name of a dataset is a path of this machine."""
    return Path(name).expanduser().exists() or name.startswith(("/", "./", "../", "~"))


def builder(source: TextSource) -> tuple[str, list[Path] | None]:
    """What `datasets` is asked for: a name, or a way to read and the files."""
    if not is_local(source.rest):
        return source.rest, None
    files = files_of(source)
    path = Path(source.rest).expanduser()
    if path.is_dir():
        return str(path), None
    if path.suffix not in _BUILDERS:
        raise SaescopeError(f"{source.source}: cannot tell how to read {path.suffix!r}; known: {', '.join(_BUILDERS)}.")
    return _BUILDERS[path.suffix], files


def dataset_rows(source: TextSource, name: str, files: list[Path] | None) -> Iterator[Row]:
    """The rows of a dataset in its order."""
    if source.kind == "datasets" and not is_local(source.rest):
        _check_hub(source)
    with _explained(source):
        for i, fields in enumerate(_load(source, name, files)):
            yield Row(fields, f"{source.source}, row {i}", f"row {i}")


def _load(source: TextSource, name: str, files: list[Path] | None) -> Any:
    import datasets

    folder = Path(name)
    if folder.is_dir() and {"state.json", "dataset_dict.json"} & {path.name for path in folder.iterdir()}:
        saved = datasets.load_from_disk(name)
        return saved[source.split or "train"] if isinstance(saved, datasets.DatasetDict) else saved
    return datasets.load_dataset(
        name, source.subset, data_files=[str(path) for path in files] if files else None,
        split=source.split or "train", streaming=source.streaming or source.kind == "parquet", revision=source.revision,
    )


@contextlib.contextmanager
def _explained(source: TextSource) -> Iterator[None]:
    """Turn what `datasets` raises for bad input into one sentence."""
    try:
        yield
    except _unreadable() as error:
        hub = source.kind == "datasets" and not is_local(source.rest)
        hint = OFFLINE if hub else "check subset, split and the files"
        raise SaescopeError(f"{source.source} cannot be read ({_first_line(error)}); {hint}.") from None


def _unreadable() -> tuple[type[Exception], ...]:
    return ValueError, KeyError, *_http_errors()


def _check_hub(source: TextSource) -> None:
    """Ask the hub once, with a short limit: `datasets` itself would try for half a minute.

    Under HF_HUB_OFFLINE nothing is asked, and `datasets` answers from its cache or refuses at once.
    """
    from huggingface_hub import HfApi, errors
    from huggingface_hub.utils import HFValidationError

    try:
        HfApi().dataset_info(source.rest, revision=source.revision, timeout=_HUB_TIMEOUT_S)
    except errors.OfflineModeIsEnabled:
        return
    except errors.GatedRepoError:
        reason = "it is gated: accept its terms on the hub and log in with `hf auth login`"
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, HFValidationError):
        reason = "the hub has no such dataset or revision"
    except _http_errors() as error:
        reason = f"the hub does not answer: {_first_line(error)}"
    else:
        return
    raise SaescopeError(
        f"{source.source} cannot be read ({reason}); {OFFLINE}, and a dataset downloaded before is read with "
        f"HF_HUB_OFFLINE=1 and streaming: false."
    )


def _http_errors() -> tuple[type[Exception], ...]:
    """What the hub client raises for an unreachable or refusing host: its HTTP library differs between versions."""
    from huggingface_hub import errors

    http_error = next(base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
    return http_error, OSError


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
