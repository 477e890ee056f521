import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sae.errors import SaescopeError
from training.activations.folder import ActsDir


def values(n_rows: int, d: int = 3, first: int = 0) -> np.ndarray:
    return np.arange(first * d, (first + n_rows) * d, dtype=np.float32).reshape(n_rows, d)


def test_files_follow_each_other_in_the_order_of_their_names(tmp_path):
    np.save(tmp_path / "b.npy", values(5, first=4))
    np.save(tmp_path / "a.npy", values(4))
    save_file({"y": torch.from_numpy(values(2, first=12)), "x": torch.from_numpy(values(3, first=9))},
              tmp_path / "c.safetensors")
    (tmp_path / "notes.txt").write_text("ignored")
    acts = ActsDir(tmp_path)
    assert (acts.n_rows, acts.hooks) == (14, {"acts": 3})
    everything = torch.from_numpy(values(14))
    for start in range(15):
        for stop in range(start, 15):
            assert torch.equal(acts.rows("acts", start, stop), everything[start:stop])


@pytest.mark.parametrize("order", ["C", "F"])
def test_three_axes_are_consecutive_rows(tmp_path, order):
    whole = values(12)
    np.save(tmp_path / "a.npy", np.asarray(whole.reshape(3, 4, 3), order=order))
    save_file({"t": torch.from_numpy(values(8, first=12)).view(2, 4, 3)}, tmp_path / "b.safetensors")
    acts = ActsDir(tmp_path)
    assert acts.n_rows == 20
    assert torch.equal(acts.rows("acts", 3, 18), torch.from_numpy(values(20)[3:18]))


def test_precision_is_kept_but_for_fp64_and_mixtures(tmp_path):
    for name, dtype in (("f16", np.float16), ("f32", np.float32), ("f64", np.float64), ("big", ">f4")):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", values(4).astype(dtype))
    (tmp_path / "bf16").mkdir()
    save_file({"t": torch.from_numpy(values(4)).bfloat16()}, tmp_path / "bf16" / "a.safetensors")
    (tmp_path / "mixed").mkdir()
    save_file({"t": torch.from_numpy(values(2)).bfloat16()}, tmp_path / "mixed" / "a.safetensors")
    np.save(tmp_path / "mixed" / "b.npy", values(2, first=2).astype(np.float16))
    acts = ActsDir(tmp_path)
    assert list(acts.hooks) == ["bf16", "big", "f16", "f32", "f64", "mixed"]
    dtypes = {hook: acts.rows(hook, 1, 3).dtype for hook in acts.hooks}
    assert dtypes == {
        "bf16": torch.bfloat16, "big": torch.float32, "f16": torch.float16, "f32": torch.float32, "f64": torch.float32,
        "mixed": torch.float32,
    }
    for hook in acts.hooks:
        assert torch.equal(acts.rows(hook, 1, 3).float(), torch.from_numpy(values(4)[1:3]))


def test_more_files_than_stay_open(tmp_path):
    for i in range(300):
        np.save(tmp_path / f"{i:03d}.npy", values(2, first=2 * i))
    acts = ActsDir(tmp_path, hook="mine")
    assert acts.hooks == {"mine": 3}
    assert torch.equal(acts.rows("mine", 0, 600), torch.from_numpy(values(600)))


def test_the_identity_is_of_contents(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", values(4))
    one, two = (ActsDir(tmp_path / name).identity for name in ("one", "two"))
    assert one == two
    changed = values(4)
    changed[3, 2] += 1
    np.save(tmp_path / "two" / "a.npy", changed)
    assert ActsDir(tmp_path / "two").identity != one


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no .npy or .safetensors"),
        ({"a.npy": values(4), "b.npy": values(4, d=2)}, r"a\.npy has rows of width 3, .*b\.npy of 2"),
        ({"a.npy": np.arange(4.0)}, r"a\.npy has shape \[4\]; activations must be"),
        ({"a.npy": np.zeros((2, 2, 2, 2))}, r"shape \[2, 2, 2, 2\]"),
        ({"a.npy": np.zeros((4, 0))}, r"shape \[4, 0\]"),
        ({"a.npy": np.zeros((4, 2), dtype=np.int64)}, "int64; rows must be float16"),
        ({"a.npy": np.array([[{}], [1]], dtype=object)}, "pickled objects are never opened"),
        ({"one/a.npy": values(4), "two/a.npy": values(5)}, "different numbers of rows.*one 4, two 5"),
    ],
)
def test_unusable_folders_are_explained(tmp_path, files, message):
    for name, array in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, array)
    with pytest.raises(SaescopeError, match=message):
        ActsDir(tmp_path)


def test_unreadable_files_are_explained(tmp_path):
    with pytest.raises(SaescopeError, match="no such folder"):
        ActsDir(tmp_path / "missing")
    np.save(tmp_path / "a.npy", values(100))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-40])
    with pytest.raises(SaescopeError, match=r"a\.npy .*truncated"):
        ActsDir(tmp_path)
    (tmp_path / "a.npy").unlink()
    (tmp_path / "b.safetensors").write_bytes(b"hello")
    with pytest.raises(SaescopeError, match=r"b\.safetensors"):
        ActsDir(tmp_path)
    save_file({"ids": torch.zeros(3, 2, dtype=torch.int64)}, tmp_path / "b.safetensors")
    with pytest.raises(SaescopeError, match=r"tensor 'ids' is I64"):
        ActsDir(tmp_path)


def test_a_hook_that_is_not_there(tmp_path):
    np.save(tmp_path / "a.npy", values(4))
    with pytest.raises(SaescopeError, match=r"no hook 'resid'.* acts"):
        ActsDir(tmp_path).rows("resid", 0, 1)


def test_hidden_files_and_folders_are_left_alone(tmp_path):
    for name in (".ipynb_checkpoints", ".hidden", "mlp"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a-checkpoint.npy", values(4))
    (tmp_path / "mlp/._a.npy").write_bytes(b"what a Mac writes")
    np.save(tmp_path / "a.npy", values(4))
    assert ActsDir(tmp_path).hooks == {"acts": 3, "mlp": 3}


def test_names_are_counted_as_people_do(tmp_path):
    """Both hooks are of the same rows, whatever their files are called: acts_10 comes after acts_9."""
    for hook in ("in", "out"):
        (tmp_path / hook).mkdir()
    for i in range(12):
        np.save(tmp_path / "in" / f"acts_{i}.npy", values(2, first=2 * i))
        np.save(tmp_path / "out" / f"{i:02d}.npy", values(2, first=2 * i))
    acts = ActsDir(tmp_path)
    assert torch.equal(acts.rows("in", 0, 24), torch.from_numpy(values(24)))
    assert torch.equal(acts.rows("in", 0, 24), acts.rows("out", 0, 24))
    assert acts.place("in", 20).endswith("acts_10.npy, row 0")
    assert acts.identity["hooks"]["in"] == acts.identity["hooks"]["out"]
    save_file({f"t{i}": torch.from_numpy(values(2, first=2 * i)) for i in range(12)}, tmp_path / "t.safetensors")
    assert torch.equal(ActsDir(tmp_path).rows("acts", 0, 24), torch.from_numpy(values(24)))


def test_files_of_two_hooks_that_do_not_pair_are_refused(tmp_path):
    for hook, lengths in (("in", (4, 2)), ("out", (2, 4))):
        (tmp_path / hook).mkdir()
        for i, n in enumerate(lengths):
            np.save(tmp_path / hook / f"{i}.npy", values(n))
    with pytest.raises(SaescopeError, match=r"in/0\.npy has 4 rows.*out/0\.npy.*2"):
        ActsDir(tmp_path)
    for i in range(2):
        (tmp_path / "out" / f"{i}.npy").unlink()
    np.save(tmp_path / "out" / "all.npy", values(6))
    assert ActsDir(tmp_path).n_rows == 6


@pytest.mark.parametrize("link", ["in/1.npy", "out"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path, link):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "0.npy", values(4))
    (tmp_path / link).symlink_to(tmp_path / "gone")
    with pytest.raises(SaescopeError, match=f"{link} is a link to .*gone"):
        ActsDir(tmp_path)
