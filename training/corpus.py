"""Where text comes from: the built-in corpus, files, any `datasets` name, and weighted mixtures of them.

The only file that imports `datasets`. Equal sources and seed give equal documents in equal order.
"""

import contextlib
import difflib
import hashlib
import json
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sae.errors import SaescopeError

OFFLINE = "python-stdlib, text:PATH, jsonl:PATH and parquet:PATH need no hub"
_KINDS = ("text", "jsonl", "parquet", "datasets", "acts")
_TEXT_SPLITS = (None, "file", "blank-line", "line")
_HUB_TIMEOUT_S = 10
_ROW_FACTS = ("field", "label_field", "chat_roles", "split", "subset", "revision")
_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}


class Document(NamedTuple):
    """A text, or a conversation, and where it came from."""

    text: str
    """For a conversation its messages one after another, unrendered."""
    label: str
    """Where it came from: a file, a file and line, the value of a label field, a row number."""
    group: str = ""
    """Documents of one group fall on the same side of the held-out split; empty: the text is its own group."""
    messages: tuple[dict[str, str], ...] | None = None
    """A conversation's messages: role and content each."""
    roles: tuple[str, ...] = ()
    """The roles whose tokens are trained on; the others are context."""

    @property
    def split_key(self) -> str:
        """What the held-out split hashes."""
        return self.group or self.text


class TextSource(BaseModel):
    """One source of text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    source: str
    """`python-stdlib`, `text:PATH`, `jsonl:PATH`, `parquet:PATH` (a path may hold `*` and `**`), `datasets:NAME` (of
    the hub, or a local folder or file), or `acts:DIR` (activations of your own, no text)."""
    weight: float = Field(default=1.0, gt=0)
    """Share of a mixture's documents that come from here, relative to the other weights."""
    field: str = "text"
    """Column or key that holds the text, or with `chat_roles` the messages."""
    label_field: str | None = None
    """Column or key whose value labels a document; null labels it by file and row."""
    subset: str | None = None
    """Configuration of a `datasets` source."""
    split: str | None = None
    """Of `datasets:` the split, by default `train`. Of `text:` what a document is: `file`, `blank-line` or `line`."""
    streaming: bool = True
    """Whether a `datasets` source is read as it arrives (true) or downloaded whole first."""
    revision: str | None = None
    """Branch, tag or commit of a `datasets` source."""
    chat_roles: tuple[str, ...] | None = None
    """Roles of a conversation to train on, such as [assistant]; `field` then holds messages of role and content."""

    @model_validator(mode="after")
    def _known(self) -> "TextSource":
        if self.kind not in ("python-stdlib", *_KINDS) or (self.kind in _KINDS and not self.rest):
            near = difflib.get_close_matches(self.source.partition(":")[0], ["python-stdlib", *_KINDS], n=1)
            hint = f", did you mean {near[0]}{':...' if near[0] in _KINDS else ''}?" if near else ""
            raise ValueError(
                f"{self.source!r} is no source{hint}; write python-stdlib, text:PATH, jsonl:PATH, parquet:PATH, "
                f"datasets:NAME or acts:DIR"
            )
        self._check_fields()
        return self

    def _check_fields(self) -> None:
        if self.kind != "datasets" and (self.subset is not None or self.revision is not None):
            raise ValueError(f"subset and revision belong to datasets:NAME, not to {self.source}")
        if self.kind in ("python-stdlib", "jsonl", "parquet") and self.split is not None:
            raise ValueError(f"split belongs to text: and datasets:, not to {self.source}")
        if self.kind == "text" and self.split not in _TEXT_SPLITS:
            raise ValueError(f"split of a text: source is file, blank-line or line, not {self.split!r}")
        if self.chat_roles is not None and (self.kind in ("python-stdlib", "text") or not self.chat_roles):
            raise ValueError("chat_roles names at least one role and belongs to jsonl:, parquet: and datasets:")

    @property
    def kind(self) -> str:
        """What stands before the colon."""
        return self.source.partition(":")[0]

    @property
    def rest(self) -> str:
        """What stands behind the colon: a path or a name."""
        return self.source.partition(":")[2]


def documents(sources: Sequence[TextSource], seed: int = 0) -> Iterator[Document]:
    """The documents of a mixture, each drawn from a source with a probability in proportion to its weight.

    Weights speak of documents, not of tokens. When a source is exhausted the others go on in their proportions.
    Documents without any text are passed over.

    Args:
        sources: one or more; with several, labels begin with the source.
        seed: of the draws, and of the order of python-stdlib.

    Raises:
        SaescopeError: a source is missing, empty or unreadable.
    """
    # all are opened before the first is read, so that a missing file is known at once
    streams = [_nonempty(_valid(_read(source, seed)), source) for source in sources]
    if len(streams) == 1:
        yield from streams[0]
        return
    rng, weights = random.Random(seed), [source.weight for source in sources]
    while any(weights):
        i = _draw(weights, rng.random())
        document = next(streams[i], None)
        if document is None:
            weights[i] = 0.0
        else:
            yield document._replace(label=f"{sources[i].source}: {document.label}")


def finer(sources: Sequence[TextSource]) -> str | None:
    """How to make more and shorter documents of a text, where whole files are documents; None where they are not."""
    whole = [source.source for source in sources if source.kind == "text" and source.split in (None, "file")]
    if not whole:
        return None
    how = f"'corpus.sources={{source: {whole[0]}, split: blank-line}}'"
    return f"let paragraphs be documents ({how if len(sources) == 1 else f'split: blank-line for {whole[0]}'})"


def identity(sources: Sequence[TextSource]) -> dict[str, Any]:
    """Facts that name the content, for manifests: digests of files, the Python version, a dataset's name and revision.

    Paths are left out, so that files that moved are the same corpus.
    """
    return {"sources": [_identity(source) for source in sources]}


def _identity(source: TextSource) -> dict[str, Any]:
    facts: dict[str, Any] = {"kind": source.kind, "weight": source.weight}
    if source.kind == "python-stdlib":
        from training.stdlib import stdlib_identity

        return {**facts, **stdlib_identity()}
    keys = ("split",) if source.kind == "text" else _ROW_FACTS
    chosen = {key: getattr(source, key) for key in keys}
    if source.chat_roles is not None:
        chosen["chat_roles"] = list(source.chat_roles)
    if source.kind == "datasets":
        chosen["split"] = source.split or "train"
    if source.kind == "datasets" and not _is_local(source.rest):
        return {**facts, **chosen, "name": source.rest}
    return {**facts, **chosen, **_digest(_files(source))}


def _digest(files: Sequence[Path]) -> dict[str, Any]:
    """One sha256 over the digests of files, in order."""
    whole = hashlib.sha256()
    for path in files:
        with _opened(path) as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return {"n_files": len(files), "sha256": whole.hexdigest()}


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise SaescopeError(f"{path} cannot be read ({error.strerror}).") from None


def _draw(weights: Sequence[float], uniform: float) -> int:
    """The index at which the cumulated weights pass `uniform` times their sum."""
    left = uniform * sum(weights)
    for i, weight in enumerate(weights):
        left -= weight
        if left < 0:
            return i
    return max(i for i, weight in enumerate(weights) if weight)


def _valid(documents: Iterable[Document]) -> Iterator[Document]:
    """Without empty ones, and with lone surrogates, which no tokenizer takes, as question marks."""
    for document in documents:
        if document.text.strip():
            yield document._replace(text=_encodable(document.text), messages=_encodable_messages(document.messages))


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _encodable_messages(messages: tuple[dict[str, str], ...] | None) -> tuple[dict[str, str], ...] | None:
    if messages is None:
        return None
    return tuple({key: _encodable(value) for key, value in message.items()} for message in messages)


def _nonempty(documents: Iterator[Document], source: TextSource) -> Iterator[Document]:
    first = next(documents, None)
    if first is None:
        raise SaescopeError(f"{source.source} holds no text at all; give a corpus with some.")
    yield first
    yield from documents


def _read(source: TextSource, seed: int) -> Iterator[Document]:
    if source.kind == "python-stdlib":
        return _read_stdlib(seed)
    if source.kind == "text":
        return _read_text(_files(source), source.split or "file")
    if source.kind == "jsonl":
        return _from_rows(_jsonl_rows(_files(source)), source)
    if source.kind == "parquet":
        return _from_rows(_dataset_rows(source, "parquet", _files(source)), source)
    if source.kind == "datasets":
        return _from_rows(_dataset_rows(source, *_builder(source)), source)
    raise SaescopeError(f"{source.source} holds activations, not text; it stands alone and needs no model.")


def _read_stdlib(seed: int) -> Iterator[Document]:
    from training.stdlib import stdlib_pieces

    for text, label, module in stdlib_pieces(seed):
        yield Document(text, label, group=f"python-stdlib/{module}")


# --- files


def _files(source: TextSource) -> list[Path]:
    """The files of a source, by path."""
    path = Path(source.rest).expanduser()
    if path.is_dir() and source.kind != "datasets":
        raise SaescopeError(f"{source.source} is a folder; name its files, such as {source.source.rstrip('/')}/*.")
    if path.is_dir():
        found = list(path.rglob("[!.]*"))
    else:
        found = [path] if path.exists() else list(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise SaescopeError(f"{source.source}: no such file, seen from {Path.cwd()}; check the path.")
    return files


def _names(files: Sequence[Path]) -> list[str]:
    """Files as labels: their paths below the folder that all share."""
    if len(files) == 1:
        return [files[0].name]
    common = os.path.commonpath([path.parent for path in files])
    return [path.relative_to(common).as_posix() for path in files]


def _read_text(files: Sequence[Path], split: str) -> Iterator[Document]:
    for path, name in zip(files, _names(files), strict=True):
        if split == "file":
            yield Document("".join(line for _, line in _lines(path)), name)
        elif split == "line":
            yield from (Document(line.rstrip("\n"), f"{name}:{number}") for number, line in _lines(path))
        else:
            yield from _paragraphs(path, name)


def _paragraphs(path: Path, name: str) -> Iterator[Document]:
    """What lies between blank lines."""
    held: list[str] = []
    first = 1
    for number, line in _lines(path):
        if line.strip():
            first = first if held else number
            held.append(line)
        elif held:
            yield Document("".join(held).rstrip("\n"), f"{name}:{first}")
            held = []
    if held:
        yield Document("".join(held).rstrip("\n"), f"{name}:{first}")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with their numbers, from 1."""
    number = 0
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").replace("\r\n", "\n")
            except UnicodeDecodeError as error:
                raise SaescopeError(
                    f"{path}, line {number}: not UTF-8 ({error.reason}, byte {error.object[error.start]:#04x}); "
                    f"convert the file to UTF-8."
                ) from None


# --- rows


class _Row(NamedTuple):
    fields: dict[str, Any]
    where: str
    """For errors: the file and line, or the row."""
    label: str


def _jsonl_rows(files: Sequence[Path]) -> Iterator[_Row]:
    for path, name in zip(files, _names(files), strict=True):
        for number, line in _lines(path):
            if line.strip():
                yield _Row(_object(line, path, number), f"{path}, line {number}", f"{name}:{number}")


def _object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise SaescopeError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno}).") from None
    if not isinstance(value, dict):
        raise SaescopeError(f"{path}, line {number}: a JSON object was expected, found {type(value).__name__}.")
    return value


def _from_rows(rows: Iterable[_Row], source: TextSource) -> Iterator[Document]:
    """The documents of rows; a row whose text is null is passed over."""
    for row in rows:
        for name in (source.field, source.label_field):
            if name is not None and name not in row.fields:
                raise SaescopeError(f"{row.where}: no field {name!r}; it has {', '.join(row.fields) or 'none'}.")
        value = row.fields[source.field]
        label = row.label if source.label_field is None else str(row.fields[source.label_field])
        if source.chat_roles is not None and value is not None:
            messages = _messages(value, row.where, source.field)
            text = "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)
            yield Document(text, label, messages=messages, roles=source.chat_roles)
        elif isinstance(value, str):
            yield Document(value, label)
        elif value is not None:
            hint = "; for messages set chat_roles, such as [assistant]" if isinstance(value, list) else ""
            raise SaescopeError(f"{row.where}: {source.field!r} is no text but a {type(value).__name__}{hint}.")


def _messages(value: Any, where: str, field: str) -> tuple[dict[str, str], ...]:
    good = isinstance(value, list) and all(
        isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        for message in value
    )
    if not good:
        raise SaescopeError(
            f"{where}: {field!r} does not hold messages; chat_roles needs a list of objects with role and content, "
            f"both text."
        )
    return tuple({"role": message["role"], "content": message["content"]} for message in value)


# --- datasets


def _is_local(name: str) -> bool:
    return Path(name).expanduser().exists() or name.startswith(("/", "./", "../", "~"))


def _builder(source: TextSource) -> tuple[str, list[Path] | None]:
    """What `datasets` is asked for: a name, or a way to read and the files."""
    if not _is_local(source.rest):
        return source.rest, None
    files = _files(source)
    path = Path(source.rest).expanduser()
    if path.is_dir():
        return str(path), None
    if path.suffix not in _BUILDERS:
        raise SaescopeError(f"{source.source}: cannot tell how to read {path.suffix!r}; known: {', '.join(_BUILDERS)}.")
    return _BUILDERS[path.suffix], files


def _dataset_rows(source: TextSource, name: str, files: list[Path] | None) -> Iterator[_Row]:
    """The rows of a dataset in its order."""
    if source.kind == "datasets" and not _is_local(source.rest):
        _check_hub(source)
    with _explained(source):
        for i, fields in enumerate(_load(source, name, files)):
            yield _Row(fields, f"{source.source}, row {i}", f"row {i}")


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
        hub = source.kind == "datasets" and not _is_local(source.rest)
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
