"""A trained run, its index, and the dense codes that everything is compared with."""

from pathlib import Path

import pytest
import torch

from analysis.index import Index, build
from tests.analysis.index.brute_force import Dense, dense_of
from tests.helpers import train, write_config


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run."""
    root = tmp_path_factory.mktemp("indexed")
    write_config(root)
    outcome = train(root, "--quiet")
    assert outcome.code == 0, outcome.err
    return root


@pytest.fixture(scope="package")
def index(folder: Path) -> Index:
    """Its index."""
    return build(folder / "runs/quick", quiet=True)


@pytest.fixture(scope="package")
def dense(folder: Path, index: Index) -> Dense:
    """Every value of it, in fp32, from the SAE itself."""
    assert torch.get_num_threads() >= 1
    return dense_of(folder)
