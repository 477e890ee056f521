"""Parse feature edits: `44=0, 920+12.5, 7-3` holds 44 at zero, adds 12.5 to 920 and subtracts 3 from 7."""

import re
from typing import TYPE_CHECKING

from sae.errors import SaescopeError

if TYPE_CHECKING:
    from analysis.steering.generate import Edit

_EDIT = re.compile(r"#?(\d{1,12})\s*([+=\-−])\s*([+\-−]?\d{1,12}(?:\.\d{1,12})?)")


def edits(text: str, d_sae: int) -> "list[Edit]":
    """Parse a list of edits, in order.

    Args:
        text: edits separated by commas.
        d_sae: number of features.

    Raises:
        SaescopeError: a part is not an edit, or its feature doesn't exist.
    """
    return [_edit(part.strip(), d_sae) for part in text.split(",") if part.strip()]


def _edit(part: str, d_sae: int) -> "Edit":
    from analysis.steering.generate import Edit

    found = _EDIT.fullmatch(part)
    if found is None:
        raise SaescopeError(f"“{part}” is not an edit; write 44=0 to hold feature 44 at 0, or 920+12.5 to add 12.5 to 920.")
    feature, sign, size = int(found[1]), found[2], float(found[3].replace("−", "-"))
    if feature >= d_sae:
        raise SaescopeError(f"There is no feature {feature}; this run has 0 to {d_sae - 1}.")
    return Edit(feature, -size if sign in "-−" else size, "clamp" if sign == "=" else "add")
