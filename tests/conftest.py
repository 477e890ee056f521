"""How the suite is dealt to workers: tests that share fixtures stay together, and what takes longest begins first."""

from pathlib import PurePath
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

LONGEST = (
    "sae/kernels/test_gpu.py", "dashboard/", "sae/kernels/test_gpu_ahead_of_time.py", "training/test_train.py", "e2e/",
    "analysis/reproduce/", "training/",
)
"""Files and folders below tests/ whose tests take longest, in order."""
TOGETHER = ("dashboard/", "analysis/index/")
"""Folders whose tests share a server, a browser, a trained run or an index."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the longest first."""
    root = config.rootpath / "tests"

    def rank(item: pytest.Item) -> int:
        place = PurePath(item.path).relative_to(root).as_posix()
        return next((i for i, prefix in enumerate(LONGEST) if place.startswith(prefix)), len(LONGEST))

    items.sort(key=rank)


class TogetherScheduling(LoadScopeScheduling):
    """One worker for all tests of a folder of TOGETHER, or else of a file; in the order collected."""

    def _split_scope(self, nodeid: str) -> str:
        place = nodeid.partition("::")[0].removeprefix("tests/")
        return next((folder for folder in TOGETHER if place.startswith(folder)), place)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """What deals the tests where there are several workers."""
    return TogetherScheduling(config, log)
