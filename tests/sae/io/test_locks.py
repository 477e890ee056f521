"""One writer at a time: who holds a lock is named, and a killed process holds none."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sae.errors import SaescopeError
from sae.io.locks import locked

HOLD = (
    "import sys, time; from pathlib import Path; from sae.io.locks import locked\n"
    "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
)


def test_the_holder_is_named_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "a" / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        for _ in range(2):  # being refused changes nothing
            with pytest.raises(SaescopeError, match=rf"process {other.pid} .*a/run"), locked(tmp_path / "a" / "run"):
                pass
        with locked(tmp_path / "a" / "other"):
            pass
        other.send_signal(signal.SIGKILL)
    with locked(tmp_path / "a" / "run"):
        assert (tmp_path / "a" / ".run.lock").read_text() == str(os.getpid())


def test_this_process_holds_it_too(tmp_path: Path) -> None:
    again = locked(tmp_path / "run")
    with locked(tmp_path / "run"), pytest.raises(SaescopeError, match=rf"process {os.getpid()} "):
        again.__enter__()
    with locked(tmp_path / "run"), locked(tmp_path / "other"):
        pass


def test_an_error_inside_lets_go(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "run"):
        raise KeyError
    with locked(tmp_path / "run"):
        pass


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(SaescopeError, match=r"run: the disk is full"), locked(tmp_path / "run"):
            pass
    with locked(tmp_path / "run"):
        pass


def test_who_waits_says_for_whom(tmp_path: Path) -> None:
    command, said = [sys.executable, "-c", HOLD, str(tmp_path / "run")], list[str]()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"

        def told(text: str) -> None:
            said.append(text)
            other.kill()

        with locked(tmp_path / "run", wait=True, say=told):
            assert len(said) == 1 and f"process {other.pid}" in said[0]
        with locked(tmp_path / "run", wait=True, say=told):
            assert len(said) == 1, "nobody else holds it"
