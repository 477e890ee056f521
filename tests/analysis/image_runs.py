"""A run on the inputs of a small vision network (`tests.training.toy_vision`), indexed: contexts are images."""

import contextlib
import shutil
import sys
from pathlib import Path

import training
from analysis.index import build
from tests.helpers import quick_fields

FOLDER = Path(__file__).parents[1] / "training"


def write_image_run(root: Path, name: str = "images") -> Path:
    """`root`/runs/NAME with an index; `toy_vision.py` lies in `root`, from which the module is imported."""
    shutil.copy(FOLDER / "toy_vision.py", root)
    fields = quick_fields(
        name=name, corpus={"sources": "module:toy_vision.digits", "n_ctx": 16}, site="block", sae={"d_sae": 12, "k": 2},
        data={"batch_rows": 64, "superblock_rows": 512, "block_rows": 16, "n_calib": 8}, train={"budget": "4 epochs"},
    )
    del fields["model"]
    with imported_from(root):
        training.train(fields, runs=root / "runs", quiet=True)
        build(root / "runs" / name, quiet=True)
    return root / "runs" / name


@contextlib.contextmanager
def imported_from(root: Path):
    """While open, modules of this folder are imported anew, as if a command was called from there."""
    sys.modules.pop("toy_vision", None)
    with contextlib.chdir(root):
        yield
