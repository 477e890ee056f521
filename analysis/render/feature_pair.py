"""Two features side by side as HTML: statistics, promoted tokens, examples and similarity."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from analysis.render import tokens
from analysis.render.feature import LOGITS, Link, bar, compare_link, percent, reference
from analysis.render.text import count, number, shown

if TYPE_CHECKING:
    from analysis.index.queries.feature_pair import Compared
    from analysis.index.queries.other_sae import Nearest
    from analysis.index.types import Example, Feature, Neighbour, Token
    from analysis.labels.names import Name


def summary(found: "Compared", a: str, b: str) -> str:
    """The two features' similarity in one line.

    Args:
        found: the comparison.
        a: the first feature's number and name as HTML (`reference`).
        b: the second's.
    """
    items = [("cosine of decoder directions", number(found.cosine))]
    if found.both is not None:
        items += [
            ("Jaccard index of their tokens", number(found.jaccard)), ("correlation of values", number(found.pearson)),
            ("same token", count(found.both.total_rows, "time")),
            ("same context", count(found.both.total_contexts, "context")),
        ]
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in items)
    told = " · ".join(
        f"where {one} fires, {other} does {percent(share)} of the time"
        for one, other, share in ((a, b, found.share_a), (b, a, found.share_b)) if share is not None)
    if found.both is None:
        told = f"{a} and {b} were indexed over different text, so their co-activation is unknown"
    return f'<div class="sx"><dl class="sx-facts">{cells}</dl><p class="sx-quiet">{told}</p></div>'


def facts(a: "Feature", b: "Feature") -> str:
    """Statistics of both in two columns; bars are relative to the larger."""
    rows: list[tuple[str, str, str, float | None, float | None]] = [
        ("fires on", f"{a.n_active:,}", f"{b.n_active:,}", float(a.n_active), float(b.n_active)),
        ("density", percent(a.density), percent(b.density), a.density, b.density),
        ("95 % interval", _interval(a), _interval(b), None, None),
        ("contexts", f"{a.n_contexts:,}", f"{b.n_contexts:,}", float(a.n_contexts), float(b.n_contexts)),
        *(_row(name, x, y) for name, x, y in (
            ("largest", a.max, b.max), *([("smallest", a.min, b.min)] if a.n_negative or b.n_negative else []),
            ("mean when active", a.mean, b.mean), ("standard deviation", a.std, b.std), ("skew", a.skew, b.skew),
            ("excess kurtosis", a.kurtosis, b.kurtosis))),
    ]
    body = "".join(_facts_row(*row) for row in rows)
    return (
        '<div class="sx"><table class="sx-list"><caption class="sx-hidden">Statistics of both features</caption>'
        f'<thead><tr><td></td><th scope="col" class="sx-num">#{a.feature}</th><td></td>'
        f'<th scope="col" class="sx-num">#{b.feature}</th><td></td></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _interval(feature: "Feature") -> str:
    return f"{percent(feature.density_low)} – {percent(feature.density_high)}"


def _row(name: str, x: float | None, y: float | None) -> tuple[str, str, str, float | None, float | None]:
    return name, number(x), number(y), x, y


def _facts_row(name: str, x: str, y: str, size_x: float | None, size_y: float | None) -> str:
    largest = max(abs(size_x or 0.0), abs(size_y or 0.0))
    cells = "".join(
        f'<td class="sx-num">{escape(text)}</td><td style="width:22%;padding-left:.6rem">'
        f"{bar(size, largest) if size is not None and largest else ''}</td>" for text, size in ((x, size_x), (y, size_y)))
    return f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'


def promoted(a: "Feature", b: "Feature") -> str:
    """Promoted and suppressed tokens of both, with shared tokens highlighted."""
    parts = [
        _pair(title, first, second)
        for title, first, second in (("Promotes", a.promoted, b.promoted), ("Suppresses", a.suppressed, b.suppressed))
        if first or second
    ]
    return f'<div class="sx">{"".join(parts)}</div>' if parts else ""


def _pair(title: str, first: "Sequence[Token]", second: "Sequence[Token]") -> str:
    shared = {token.id for token in first} & {token.id for token in second}
    lists = "".join(f"<p>{' '.join(_token(token, shared) for token in found) or '–'}</p>" for found in (first, second))
    said = f' <span class="sx-quiet" style="font-weight:400">{count(len(shared), "token")} in both</span>' if shared else ""
    unit = f' <span class="sx-quiet" style="font-weight:400">{LOGITS}</span>'
    return f'<h3>{title}{unit}{said}</h3><div class="sx-two">{lists}</div>'


def _token(token: "Token", shared: set[int]) -> str:
    mark = " sx-both" if token.id in shared else ""
    return f'<span class="sx-tag{mark}">{shown(token.text, spaces=True, limit=24)} {number(token.value)}</span>'


def examples(found: "Sequence[Example]", feature: "Feature", name: str) -> str:
    """The strongest examples of one of the two; `name` is HTML."""
    scale = max(abs(feature.max), abs(feature.min))
    rows = "".join(tokens.example(one, scale) for one in found) or '<p class="sx-quiet">Never fires.</p>'
    return f'<div class="sx"><h3>{name}</h3>{rows}</div>'


def nearest(title: str, found: "Nearest", names: "Mapping[int, Name]", link: Link, beside: Link) -> str:
    """The nearest features in another SAE.

    Args:
        title: the other run's title as HTML.
        found: the features.
        names: names of the other run's features.
        link: URL of a feature.
        beside: URL of the side-by-side comparison.
    """
    kinds = (
        ("Cosine of decoder directions", found.by_cosine, found.no_cosine or "no direction is similar"),
        ("Correlation of values on the same tokens", found.by_correlation, found.no_correlation or "no correlation found"),
    )
    parts = "".join(
        f'<div><p class="sx-quiet">{name}</p>{_near(near, why, names, link, beside)}</div>' for name, near, why in kinds)
    return f'<section class="sx"><h3>{title}</h3><div class="sx-two">{parts}</div></section>'


def _near(found: "Sequence[Neighbour]", why: str, names: "Mapping[int, Name]", link: Link, beside: Link) -> str:
    if not found:
        return f'<p class="sx-quiet">None: {escape(why)}.</p>'
    rows = "".join(
        f'<tr><th scope="row">{reference(one.feature, names, link)}</th><td style="width:25%">{bar(one.score, 1.0)}</td>'
        f'<td class="sx-num">{number(one.score)}</td>{compare_link(one.feature, beside)}</tr>' for one in found)
    return f'<table class="sx-list"><tbody>{rows}</tbody></table>'
