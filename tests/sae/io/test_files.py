import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sae.errors import SaescopeError
from sae.io import files

TENSORS = {
    "half": torch.arange(3, dtype=torch.bfloat16), "weights": torch.randn(4, 5), "count": torch.tensor(7),
    "flag": torch.tensor([True, False]), "fine": torch.randn(2, dtype=torch.float64), "empty": torch.zeros(0, 3),
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_tensors_are_read_back_by_the_library(tmp_path: Path):
    files.write_tensors(tmp_path / "t.safetensors", TENSORS, {"b": "2", "a": "1"})
    read = load_file(tmp_path / "t.safetensors")
    assert set(read) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)
    with safe_open(tmp_path / "t.safetensors", "pt") as file:
        assert file.metadata() == {"a": "1", "b": "2"}


def test_tensor_order_and_layout_do_not_change_the_bytes(tmp_path: Path):
    files.write_tensors(tmp_path / "a", TENSORS, {"a": "1", "b": "2"})
    turned = {name: t.t().contiguous().t() if t.ndim == 2 else t for name, t in reversed(TENSORS.items())}
    files.write_tensors(tmp_path / "b", turned, {"b": "2", "a": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_failed_write_leaves_what_was_there(tmp_path: Path):
    files.write_bytes(tmp_path / "f", b"old")
    with pytest.raises(KeyError), files.atomic_file(tmp_path / "f") as file:
        file.write(b"new")
        raise KeyError
    assert (tmp_path / "f").read_bytes() == b"old"
    assert names(tmp_path) == ["f"]


def test_a_failed_folder_leaves_what_was_there(tmp_path: Path):
    with files.atomic_dir(tmp_path / "d") as partial:
        (partial / "x").write_text("old")
    with pytest.raises(KeyError), files.atomic_dir(tmp_path / "d") as partial:
        (partial / "x").write_text("new")
        raise KeyError
    assert (tmp_path / "d" / "x").read_text() == "old"
    with files.atomic_dir(tmp_path / "d") as partial:
        (partial / "y").write_text("newer")
    assert names(tmp_path) == ["d"] and names(tmp_path / "d") == ["y"]


def test_leftovers_of_a_killed_process_are_removed_and_live_ones_kept(tmp_path: Path):
    code = (
        "import sys, time; from pathlib import Path; from sae.io import files\n"
        "with files.atomic_dir(Path(sys.argv[1])) as p:\n"
        "    (p / 'half').write_text('half'); print('writing', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "d")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "writing\n"
        with files.atomic_dir(tmp_path / "d") as partial:
            (partial / "x").write_text("whole")
        assert sorted(p.suffix for p in tmp_path.iterdir()) == ["", ".partial"]
        child.send_signal(signal.SIGKILL)
    with files.atomic_dir(tmp_path / "d") as partial:
        (partial / "x").write_text("whole")
    assert names(tmp_path) == ["d"]


def test_a_full_disk_is_one_sentence():
    with (
        pytest.raises(SaescopeError, match=r"/dev/full: the disk is full \([0-9,]+ bytes free\)"),
        files.refusing_full_disk(Path("/dev/full")), Path("/dev/full").open("wb", buffering=0) as file,
    ):
        file.write(b"x")


def test_other_errors_pass_unchanged():
    with pytest.raises(PermissionError), files.refusing_full_disk(Path("/dev/full")):
        raise PermissionError


@pytest.mark.parametrize("text", ["{", "[1]", "\udcff"])
def test_garbled_json_is_one_sentence(tmp_path: Path, text: str):
    (tmp_path / "f.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SaescopeError, match=r"f\.json: "):
        files.read_json(tmp_path / "f.json")


def test_equal_objects_make_equal_json():
    data = files.json_bytes({"b": 1, "a": "é"})
    assert data == files.json_bytes({"a": "é", "b": 1}) == '{\n  "a": "é",\n  "b": 1\n}\n'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.json_bytes({"a": float("nan")})
