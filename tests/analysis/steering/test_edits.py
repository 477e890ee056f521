"""Edits as people type them."""

import pytest

from analysis.steering.edits import edits
from analysis.steering.generate import Edit
from sae.errors import SaescopeError


def test_adding_taking_away_and_holding() -> None:
    assert edits("44=0, 920+12.5,7-3", 1000) == [
        Edit(44, 0.0, "clamp"), Edit(920, 12.5, "add"), Edit(7, -3.0, "add")]
    assert edits(" #44 = −2 , ", 1000) == [Edit(44, -2.0, "clamp")]
    assert edits("", 1000) == []


@pytest.mark.parametrize("text", ["44", "44=", "=3", "44*3", "44=1e999", "44=nan", "1000+1", "-3+4", "<b>=1", "44+0x10"])
def test_what_is_none_is_said(text: str) -> None:
    with pytest.raises(SaescopeError):
        edits(text, 1000)
