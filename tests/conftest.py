"""How the suite is dealt to workers: tests that share fixtures stay together, and what takes longest begins first."""

from pathlib import PurePath

import pytest

LONGEST = (
    "sae/kernels/test_gpu.py", "sae/kernels/test_gpu_ahead_of_time.py", "dashboard/", "training/test_train.py", "e2e/",
)
"""Files and folders below tests/ whose tests take longest, in order."""
TOGETHER = ("dashboard/", "analysis/index/", "analysis/reproduce/")
"""Folders whose tests share a server, a browser, a trained run or an index."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the longest first, and name for `pytest --dist loadgroup` the group each test belongs to."""
    root = config.rootpath / "tests"

    def place(item: pytest.Item) -> str:
        return PurePath(item.path).relative_to(root).as_posix()

    def rank(item: pytest.Item) -> int:
        return next((i for i, prefix in enumerate(LONGEST) if place(item).startswith(prefix)), len(LONGEST))

    items.sort(key=rank)
    for item in items:
        group = next((folder for folder in TOGETHER if place(item).startswith(folder)), place(item))
        item.add_marker(pytest.mark.xdist_group(group))
