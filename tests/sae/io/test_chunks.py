import errno
import hashlib
import os
import shutil
from pathlib import Path

import pytest

from sae.io import chunks


@pytest.mark.parametrize("n_bytes", [0, 1, 99, 100, 101, 1234])
@pytest.mark.parametrize("n_cores", [1, 8])
def test_a_file_is_what_was_given_and_its_digest_that_of_its_chunks(
    n_bytes: int, n_cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 100)
    monkeypatch.setattr(chunks, "_PIECE", 7)
    monkeypatch.setattr(os, "cpu_count", lambda: n_cores)
    data = os.urandom(n_bytes)
    written = chunks.write_hashed(tmp_path / "a", memoryview(data))
    parts = [data[i : i + 100] for i in range(0, n_bytes, 100)]
    assert written == hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    assert (tmp_path / "a").read_bytes() == data and chunks.digest(tmp_path / "a") == written
    if n_bytes:
        (tmp_path / "a").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert chunks.digest(tmp_path / "a") != written


def test_a_disk_without_room_is_not_filled_up_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(OSError) as refused:
        chunks.write_hashed(tmp_path / "a", memoryview(bytes(10)))
    assert refused.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())
    chunks.write_hashed(tmp_path / "a", memoryview(bytes(9)))
