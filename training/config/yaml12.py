"""YAML 1.2, where `1e-4` is a number and `off` is a string."""

import io
from typing import Any

from sae.errors import SaescopeError, first_line

N_SHOWN = 200
"""Most characters of a text shown in an error."""


def _yaml() -> Any:
    from ruamel.yaml import YAML

    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # declared as None
    return yaml


def load_yaml(text: str, where: str) -> Any:
    """Parse YAML 1.2 into plain values; `where` names the text in error messages."""
    from ruamel.yaml import YAMLError

    try:
        return _yaml().load(text)
    except YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SaescopeError(f"{_short(where)}{at}: not valid YAML: {' '.join(str(problem).split())}.") from None
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
        # for example an integer with thousands of digits, deeply nested brackets, or a mapping as a key
        raise SaescopeError(f"{_short(where)}: not valid YAML: {first_line(error)}.") from None


def _short(where: str) -> str:
    return where if len(where) <= N_SHOWN else f"{where[:N_SHOWN]}…"


def dump_yaml(values: Any) -> str:
    """Write plain values as YAML, keeping the order of mappings."""
    out = io.StringIO()
    _yaml().dump(values, out)
    return out.getvalue()
