from pathlib import Path

import pytest

from sae.errors import SaescopeError
from sae.io.paths import user_path

ROOT = Path(__file__).parents[3]


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x") == user_path(Path("~/x")) == tmp_path / "x"
    assert user_path("a/~b") == Path("a/~b")


@pytest.mark.parametrize("text", ["~nobody-of-this-name/x", "a\0b"])
def test_what_is_no_path(text: str) -> None:
    with pytest.raises(SaescopeError):
        user_path(text)


def test_nothing_else_expands_a_tilde() -> None:
    """What does it by itself would be a second way, which another forgets."""
    found = {
        str(path.relative_to(ROOT)) for floor in ("sae", "training", "analysis", "dashboard")
        for path in (ROOT / floor).rglob("*.py") if "expanduser" in path.read_text() or "type=Path" in path.read_text()
    }
    assert found == {"sae/io/paths.py"}
