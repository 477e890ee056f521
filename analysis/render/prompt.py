"""A prompt's features: a grid of features by tokens, and the top features of each token."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from analysis.render.feature import Link, reference
from analysis.render.text import attribute, count, inner, number
from analysis.render.tokens import REST, level

if TYPE_CHECKING:
    from analysis.labels.names import Name
    from analysis.prompt import Top
    from sae.code import SparseCode


def dense(code: "SparseCode", features: Sequence[int]) -> np.ndarray:
    """Dense values of some features, `[n_rows, n]` fp32, 0 where inactive."""
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
    link: Link = lambda _: None, *, scale: Mapping[int, float], selected: int | None = None,
) -> str:
    """A table with a row per feature and a column per token, shaded relative to each feature's scale.

    Args:
        pieces: the tokens' text.
        code: code with a row per token.
        features: features to show, in order.
        names: feature names.
        link: URL of a feature.
        scale: value with the darkest shade, a feature's largest in a corpus; 0 for its largest in this prompt.
        selected: the feature to highlight.
    """
    values = dense(code, features)
    head = "".join(
        f'<th scope="col" data-token="{i}"><bdi>{inner(piece or REST, spaces=True, limit=16)}</bdi></th>'
        for i, piece in enumerate(pieces)
    )
    rows = "".join(
        _row(feature, values[:, j], names, link, scale[feature], feature == selected) for j, feature in enumerate(features))
    size = f"{count(len(features), 'feature')} by {count(len(pieces), 'token')}"
    caption = f"{size}; each value is shaded by its share of the feature’s largest value in the corpus"
    return (
        f'<div class="sx sx-scroll" tabindex="0" role="region" aria-label="Features by tokens"><table class="sx-grid">'
        f'<caption class="sx-hidden">{caption}</caption><thead><tr><th scope="col">feature</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _row(feature: int, values: np.ndarray, names: "Mapping[int, Name]", link: Link, scale: float, selected: bool) -> str:
    scale = scale or float(np.abs(values).max(initial=0.0))
    cells = "".join(_cell(float(value), scale) for value in values)
    here = " aria-current=true" if selected else ""
    return f'<tr data-feature="{feature}"{here}><th scope="row">{reference(feature, names, link)}</th>{cells}</tr>'


def _cell(value: float, scale: float) -> str:
    depth = level(value, scale)
    return f'<td class="sx-{"p" if value > 0 else "n"}{depth}">{number(value)}</td>' if depth else "<td></td>"


def by_token(
    pieces: Sequence[str], found: "Sequence[Sequence[Top]]", names: "Mapping[int, Name]", link: Link = lambda _: None,
) -> str:
    """A table with a row per token: its features with values, closest to their own maximum first.

    Args:
        pieces: the tokens' text.
        found: the features of each token; numbers may differ.
        names: feature names.
        link: URL of a feature.
    """
    n = max((len(one) for one in found), default=0)
    rows = []
    for i, (piece, tops) in enumerate(zip(pieces, found, strict=True)):
        cells = "".join(
            f'<td data-feature="{one.feature}"><span class="sx-{"p" if one.value > 0 else "n"}{level(one.share, 1.0)}">'
            f"{number(one.value)}</span> {reference(one.feature, names, link)}</td>" for one in tops
        )
        blank = "<td></td>" * (n - len(tops))
        rows.append(
            f'<tr data-token="{i}"><th scope="row" aria-label="token {i}: {attribute(piece or REST)}"><bdi>'
            f"{inner(piece or REST, spaces=True, limit=24)}"
            f"</bdi></th>{cells}{blank}</tr>"
        )
    head = '<th scope="col">token</th>' + "".join(f'<th scope="col">{j + 1}</th>' for j in range(n))
    return (
        '<div class="sx sx-scroll" tabindex="0" role="region" aria-label="Strongest features by token">'
        f'<table class="sx-list"><caption class="sx-hidden">The {n} features at each token that are closest to their own '
        f"maximum</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
