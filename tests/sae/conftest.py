"""What tests of the SAEs ask for by name."""

from collections.abc import Iterator

import pytest

from tests.sae import toy


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small steps gain nothing from threads, and lose much where other processes run."""
    with toy.one_thread():
        yield
