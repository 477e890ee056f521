"""A prompt as features by tokens: which features fire where, and at each token which fire most."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from analysis.render.feature import Link, reference
from analysis.render.text import attribute, count, inner, number
from analysis.render.tokens import REST, level

if TYPE_CHECKING:
    from analysis.labels.names import Name
    from sae.code import SparseCode


def dense(code: "SparseCode", features: Sequence[int]) -> np.ndarray:
    """The values of some features at every row, `[n_rows, n]` fp32, 0 where inactive."""
    code = code.detach().csr()
    rows, feature, value = code.rows().cpu().numpy(), code.feature.cpu().numpy(), code.value.float().cpu().numpy()
    columns = {f: j for j, f in enumerate(features)}
    out = np.zeros((code.n_rows, len(features)), dtype=np.float32)
    wanted = np.isin(feature, np.asarray(features, dtype=feature.dtype))
    for r, f, v in zip(rows[wanted], feature[wanted], value[wanted], strict=True):
        out[r, columns[int(f)]] = v
    return out


def grid(
    pieces: Sequence[str], code: "SparseCode", features: Sequence[int], names: "Mapping[int, Name]",
    link: Link = lambda _: None,
) -> str:
    """A table with a row for each feature and a column for each token; grounds are relative to the row's largest."""
    values = dense(code, features)
    head = "".join(
        f'<th scope="col" data-token="{i}"><bdi>{inner(piece or REST, spaces=True, limit=16)}</bdi></th>'
        for i, piece in enumerate(pieces)
    )
    rows = "".join(_row(feature, values[:, j], names, link) for j, feature in enumerate(features))
    size = f"{count(len(features), 'feature')} by {count(len(pieces), 'token')}"
    caption = f"{size}; each row is shaded by its own largest value"
    return (
        f'<div class="sx sx-scroll" tabindex="0" role="region" aria-label="Features by tokens"><table class="sx-grid">'
        f'<caption class="sx-hidden">{caption}</caption><thead><tr><th scope="col">feature</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _row(feature: int, values: np.ndarray, names: "Mapping[int, Name]", link: Link) -> str:
    scale = float(np.abs(values).max(initial=0.0))
    cells = "".join(_cell(float(value), scale) for value in values)
    return f'<tr data-feature="{feature}"><th scope="row">{reference(feature, names, link)}</th>{cells}</tr>'


def _cell(value: float, scale: float) -> str:
    depth = level(value, scale)
    return f'<td class="sx-{"p" if value > 0 else "n"}{depth}">{number(value)}</td>' if depth else "<td></td>"


def by_token(
    pieces: Sequence[str], code: "SparseCode", names: "Mapping[int, Name]", link: Link = lambda _: None, *, n: int = 5
) -> str:
    """A table with a row for each token: its strongest features, in order, with their values."""
    code = code.detach().csr()
    assert code.indptr is not None
    bounds, feature, value = code.indptr.cpu().numpy(), code.feature.cpu().numpy(), code.value.float().cpu().numpy()
    largest = float(np.abs(value).max(initial=0.0))
    rows = []
    for i, piece in enumerate(pieces):
        mine = slice(bounds[i], bounds[i + 1])
        order = np.argsort(-np.abs(value[mine]), kind="stable")[:n]
        found = [(int(feature[mine][j]), float(value[mine][j])) for j in order]
        cells = "".join(
            f'<td data-feature="{f}"><span class="sx-{"p" if v > 0 else "n"}{level(v, largest)}">{number(v)}</span> '
            f"{reference(f, names, link)}</td>" for f, v in found
        )
        blank = "<td></td>" * (n - len(found))
        rows.append(
            f'<tr data-token="{i}"><th scope="row" aria-label="token {i}: {attribute(piece or REST)}"><bdi>'
            f"{inner(piece or REST, spaces=True, limit=24)}"
            f"</bdi></th>{cells}{blank}</tr>"
        )
    head = '<th scope="col">token</th>' + "".join(f'<th scope="col">{j + 1}</th>' for j in range(n))
    return (
        '<div class="sx sx-scroll" tabindex="0" role="region" aria-label="Strongest features by token">'
        f'<table class="sx-list"><caption class="sx-hidden">The {n} strongest features at each token</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
