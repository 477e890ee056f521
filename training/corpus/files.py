"""The files of a corpus: glob patterns, labels, and reading UTF-8 text line by line.

Files ending in .gz, .bz2 or .zst are decompressed.
"""

import contextlib
import fnmatch
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from sae.errors import SaescopeError, first_line
from sae.io.paths import user_path
from training.config.text_source import TextSource
from training.corpus.document import Document

COMPRESSED = (".gz", ".bz2", ".zst")


def files_of(source: TextSource) -> list[Path]:
    """The files of a source, sorted by path. Patterns work as in a shell: see `matching`.

    Raises:
        SaescopeError: there are none, or one of them is a broken link.
    """
    path = user_path(source.rest)
    if path.is_dir() and source.kind != "datasets":
        raise SaescopeError(f"{source.source} is a folder; give its files, such as {source.source.rstrip('/')}/*.")
    pattern = path / "**" if path.is_dir() else path
    found = [path] if os.path.lexists(pattern) else matching(pattern)
    files = sorted(file for file in map(leading_somewhere, found) if file.is_file())
    if not files:
        raise SaescopeError(f"{source.source}: no such file (working directory: {Path.cwd()}); check the path.")
    return files


def matching(pattern: Path) -> list[Path]:
    """The paths that match a pattern of `*`, `?`, `[abc]` and `**`, sorted.

    As in a shell, names that start with a dot only match patterns that start with one, and `**` stands for any number
    of folders, links to folders left out; at the end, also for any file in them. (`Path.glob` differs between versions.)
    """
    return sorted(set(_walk(Path(pattern.anchor), pattern.relative_to(pattern.anchor).parts)))


def _walk(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    if not parts:
        yield folder
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _walk(folder, rest)
        for child in _children(folder, "*"):
            if child.is_dir() and not child.is_symlink():
                yield from _walk(child, parts)
            elif not rest:
                yield child
    elif any(c in part for c in "*?["):
        for child in _children(folder, part):
            yield from _walk(child, rest)
    elif os.path.lexists(folder / part):
        yield from _walk(folder / part, rest)


def _children(folder: Path, pattern: str) -> list[Path]:
    if not folder.is_dir():
        return []
    try:
        children = list(folder.iterdir())
    except OSError as error:
        raise SaescopeError(f"{folder} cannot be read ({error.strerror}).") from None
    hidden = pattern.startswith(".")
    return [c for c in children if fnmatch.fnmatchcase(c.name, pattern) and (hidden or not c.name.startswith("."))]


def leading_somewhere(path: Path) -> Path:
    """Return the path unchanged if it isn't a broken link.

    Raises:
        SaescopeError: it is a broken link; skipping it would silently drop a file.
    """
    if path.is_symlink() and not path.exists():
        raise SaescopeError(f"{path} is a link to {path.readlink()}, which doesn't exist; restore it, or remove the link.")
    return path


def names(files: Sequence[Path]) -> list[str]:
    """Labels of files: their paths relative to their common parent folder."""
    if len(files) == 1:
        return [files[0].name]
    common = os.path.commonpath([path.parent for path in files])
    return [path.relative_to(common).as_posix() for path in files]


def read_text(files: Sequence[Path], split: str) -> Iterator[Document]:
    """The documents of text files; `split` determines what a document is: `file`, `blank-line` or `line`."""
    for path, name in zip(files, names(files), strict=True):
        if split == "file":
            yield Document("".join(line for _, line in lines(path)), name)
        elif split == "line":
            yield from (Document(line.rstrip("\n"), f"{name}:{number}") for number, line in lines(path))
        else:
            yield from _paragraphs(path, name)


def _paragraphs(path: Path, name: str) -> Iterator[Document]:
    """The paragraphs of a file, separated by blank lines."""
    held: list[str] = []
    first = 1
    for number, line in lines(path):
        if line.strip():
            first = first if held else number
            held.append(line)
        elif held:
            yield Document("".join(held).rstrip("\n"), f"{name}:{first}")
            held = []
    if held:
        yield Document("".join(held).rstrip("\n"), f"{name}:{first}")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with line numbers from 1."""
    number = 0
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").replace("\r\n", "\n")
            except UnicodeDecodeError as error:
                raise SaescopeError(
                    f"{path}, line {number}: not UTF-8 ({error.reason}, byte {error.object[error.start]:#04x}); "
                    f"convert the file to UTF-8."
                ) from None


@contextlib.contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file for reading as bytes, decompressed.

    Raises:
        SaescopeError: it cannot be opened or read, is truncated, or is not compressed as its name says.
    """
    try:
        with _stream(path) as file:
            yield file
    except OSError as error:
        hint = "; download or compress it again" if path.suffix in COMPRESSED and not error.errno else ""
        raise SaescopeError(f"{path} cannot be read ({error.strerror or first_line(error)}){hint}.") from None


def _stream(path: Path) -> io.BufferedReader:
    if path.suffix not in COMPRESSED:
        return path.open("rb")
    import pyarrow

    # handles all of these, multiple frames included, without another package
    return io.BufferedReader(pyarrow.input_stream(str(path), compression="detect"))
