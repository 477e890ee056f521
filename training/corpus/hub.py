"""Read rows with the `datasets` library, from the hub or local files. The only file that imports it."""

import contextlib
import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae.errors import SaescopeError, first_line
from sae.io.paths import user_path
from training.config.text_source import TextSource
from training.corpus.files import COMPRESSED, files_of
from training.corpus.rows import Row
from training.model import hub

OFFLINE = "python-stdlib, text:PATH, jsonl:PATH and parquet:PATH need no hub"
_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}


def is_local(name: str) -> bool:
    """Whether the name of a dataset is a local path."""
    return user_path(name).exists() or name.startswith(("/", "./", "../", "~"))


def builder(source: TextSource) -> tuple[str, list[Path] | None]:
    """Arguments for `datasets`: a dataset name, or a builder name and its files."""
    if not is_local(source.rest):
        return source.rest, None
    files = files_of(source)
    path = user_path(source.rest)
    if path.is_dir():
        return str(path), None
    suffix = path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix
    if suffix not in _BUILDERS:
        raise SaescopeError(f"{source.source}: unknown file type {suffix!r}; supported are {', '.join(_BUILDERS)}.")
    return _BUILDERS[suffix], files


def dataset_rows(source: TextSource, name: str, files: list[Path] | None) -> Iterator[Row]:
    """The rows of a dataset, in order."""
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
        name, source.subset, data_files=[glob.escape(str(path)) for path in files] if files else None,
        split=source.split or "train", streaming=source.streaming, revision=source.revision,
    )


@contextlib.contextmanager
def _explained(source: TextSource) -> Iterator[None]:
    """Turn the errors that `datasets` raises for bad input into one message."""
    try:
        yield
    except _unreadable() as error:
        remote = source.kind == "datasets" and not is_local(source.rest)
        hint = OFFLINE if remote else "check subset, split and the files"
        raise SaescopeError(f"{source.source} cannot be read ({first_line(error)}); {hint}.") from None


def _unreadable() -> tuple[type[Exception], ...]:
    from datasets.exceptions import DatasetsError

    return ValueError, KeyError, RecursionError, DatasetsError, *hub.transport_errors()


def _check_hub(source: TextSource) -> None:
    """Check that the hub has the dataset. With HF_HUB_OFFLINE, `datasets` uses its cache or fails at once."""
    _, reason = hub.ask(lambda api: api.dataset_info(source.rest, revision=source.revision, timeout=hub.TIMEOUT_S))
    if reason not in ("", hub.OFFLINE):
        raise SaescopeError(
            f"{source.source} cannot be read ({reason}); {OFFLINE}; to read a dataset downloaded before, set "
            f"HF_HUB_OFFLINE=1 and streaming: false."
        )
