"""A feature as HTML, in parts and as a card, for the dashboard, notebooks and exported files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

from analysis.render import names as named
from analysis.render import tokens
from analysis.render.text import attribute, count, number, plain, shown

if TYPE_CHECKING:
    from analysis.index.types import Example, Feature, Group, Neighbour, Side, Token, TokenShare
    from analysis.labels.names import Name
    from analysis.labels.store import Label

Link = Callable[[int], str | None]
"""Maps a feature to its URL; None for no link."""
KINDS = {"decoder": "Nearest decoder directions", "coactivation": "Fire together"}


@dataclass(frozen=True)
class Section:
    """One group of examples on one side."""

    side: "Side"
    group: "Group"
    examples: Sequence["Example"]


@dataclass(frozen=True)
class Card:
    """Everything that a feature's page shows; displayed by notebooks."""

    feature: "Feature"
    sections: Sequence[Section] = ()
    neighbours: Mapping[str, Sequence["Neighbour"]] = field(default_factory=dict)
    """Neighbours by `decoder` and by `coactivation`."""
    label: "Label | None" = None
    note: str = ""
    tags: Sequence[str] = ()
    names: "Mapping[int, Name]" = field(default_factory=dict)
    """Names of the features that are mentioned."""
    provenance: Mapping[str, str] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        from analysis.render.css import CSS

        return f"<style>{CSS}</style>{card(self)}"


def card(shown_card: Card, link: Link = lambda _: None) -> str:
    """Render the full card: facts, histogram, tokens and neighbours on the left, examples on the right."""
    from analysis.render.figures import histogram

    feature = shown_card.feature
    drawing = "" if feature.dead else f"<h3>Values when active</h3>{histogram.svg(feature)}"
    near = "".join(
        neighbours(kind, found, shown_card.names, link) for kind, found in shown_card.neighbours.items() if found
    )
    groups = "".join(group(section, feature) for section in shown_card.sections if section.examples)
    return (
        f'<article class="sx" aria-label="Feature {feature.feature}"><div class="sx-card">'
        f"<header>{header(feature, shown_card.label, shown_card.tags, shown_card.note)}</header>"
        f"<div>{drawing}{promoted(feature)}{near}</div>"
        f"<div>{groups or empty(feature)}</div></div>{judged(shown_card.label)}{provenance(shown_card.provenance)}"
        "</article>"
    )


def header(
    feature: "Feature", label: "Label | None" = None, tags: Sequence[str] = (), note: str = "", *, brief: bool = False
) -> str:
    """Number, label, tags and note, plus the statistics unless `brief`."""
    name = f'<div class="sx-label">{shown(label.text, limit=300)}</div>{verdict(label)}' if label else ""
    chips = "".join(f'<span class="sx-tag">{shown(tag)}</span>' for tag in tags)
    remark = f'<p class="sx-quiet">{shown(note, limit=2000)}</p>' if note else ""
    return f"<h2>Feature {feature.feature}</h2>{name}{chips}{remark}{'' if brief else facts(feature)}"


def verdict(label: "Label") -> str:
    """A label's author and score."""
    if label.author != "auto":
        return '<div class="sx-quiet">your label</div>'
    origin = f"label by {shown(label.model, limit=200)}" if label.model else "automatic label"
    if label.score is None:
        why = "" if label.model else ": too few examples"
        return f'<div class="sx-quiet">{origin}, not scored{why}</div>'
    beside = "" if label.baseline is None else f" (another feature’s label on the same examples: {label.baseline:.2f})"
    n = count(len(label.judged), "held-out example")
    return f'<div class="sx-quiet">{origin} · balanced accuracy {label.score:.2f} on {n}{beside}</div>'


def facts(feature: "Feature") -> str:
    """Density as k of N with its interval, and moments of the active values."""
    if feature.dead:
        return f'<p class="sx-quiet">Never active in {count(feature.n_rows, "token")}.</p>'
    # if training keeps decoder norms at 1, they are not informative
    long = feature.decoder_norm is not None and abs(feature.decoder_norm - 1) > 1e-4
    items = [
        ("fires on", f"{feature.n_active:,} of {count(feature.n_rows, 'token')}"),
        ("density (95 % interval)",
         f"{percent(feature.density)} ({percent(feature.density_low)} – {percent(feature.density_high)})"),
        ("largest", number(feature.max)),
        *([("smallest", number(feature.min)), ("negative", percent(feature.n_negative / feature.n_active))]
          if feature.n_negative else []),
        ("mean when active", number(feature.mean)), ("standard deviation", number(feature.std)),
        ("skew", number(feature.skew)), ("excess kurtosis", number(feature.kurtosis)),
        *([("decoder norm", number(feature.decoder_norm))] if long else []),
    ]
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in items)
    return f'<dl class="sx-facts">{cells}</dl>'


def firing(feature: "Feature", fires_on: "Sequence[TokenShare]") -> str:
    """The tokens that a feature fires on, and how often it fires."""
    if feature.dead:
        return f'<p class="sx-firing">Never active in {count(feature.n_rows, "token")}.</p>'
    tokens_said = f"fires on {named.chips(fires_on)}<br>" if fires_on else ""
    return (
        f'<p class="sx-firing">{tokens_said}<span class="sx-quiet">{feature.n_active:,} of '
        f"{count(feature.n_rows, 'token')}, {percent(feature.density)}</span></p>"
    )


def percent(share: float) -> str:
    """Format a share in percent with three significant digits, without exponent."""
    return f"{100 * share:.2f} %" if share >= 0.01 or not share else f"{100 * share:.{_places(100 * share)}f} %"


def _places(value: float) -> int:
    """Decimals for three significant digits of a value below one."""
    return next(places for places in range(3, 20) if value >= 10.0 ** (2 - places) or places == 19)


LOGITS = "direct logits of the direction"
"""Describes the numbers next to promoted tokens."""
LOGITS_AT_LENGTH = (
    "The direction through final norm and unembedding, minus the mean over the vocabulary. The norm scales it to the "
    "length of a full residual stream: in a text, a feature value v adds about v ÷ (norm of that stream) times this."
)


def promoted(feature: "Feature") -> str:
    """The tokens whose logits a positive value raises and lowers most; for negative values swap them."""
    lists = [("Promotes", feature.promoted), ("Suppresses", feature.suppressed)]
    return "".join(_tokens(title, found) for title, found in lists if found)


def _tokens(title: str, found: Sequence["Token"]) -> str:
    largest = max(abs(token.value) for token in found)
    rows = "".join(
        f'<tr><th scope="row">{shown(token.text, spaces=True, limit=24)}</th>'
        f'<td style="width:40%">{bar(token.value, largest)}</td><td class="sx-num">{number(token.value)}</td></tr>'
        for token in found
    )
    return (
        f'<h3 title="{attribute(LOGITS_AT_LENGTH, spaces=False, limit=None)}">{title} '
        f'<span class="sx-quiet" style="font-weight:400">{LOGITS}</span></h3>'
        f'<table class="sx-list"><caption class="sx-hidden">{title} these tokens: {LOGITS}. {LOGITS_AT_LENGTH}</caption>'
        f"<tbody>{rows}</tbody></table>"
    )


def bar(value: float, largest: float) -> str:
    """A bar with length relative to the largest value; negative ones are striped."""
    width = 100 * min(1.0, abs(value) / largest) if largest else 0
    return f'<span class="sx-bar sx-bar-{"p" if value >= 0 else "n"}" style="width:{width:.0f}%"></span>'


def group(section: Section, feature: "Feature", *, reach: tuple[int, int] | None = None) -> str:
    """A group of examples with its title and number of tokens; `reach` as for `tokens.example`."""
    scale = max(abs(feature.max), abs(feature.min))
    rows = "".join(tokens.example(one, scale, reach=reach) for one in section.examples)
    return (
        f'<section><h3>{escape(group_title(section, signed=bool(feature.n_negative)))} '
        f'<span class="sx-quiet" style="font-weight:400">{escape(group_origin(section))}</span></h3>{rows}</section>'
    )


def group_title(section: Section, *, signed: bool) -> str:
    """Title of a group."""
    name = section.group.name
    titles = {"top": "Strongest", "random": "Random active", "near": "Near misses: its tokens, but inactive",
              "range": "Values in the range"}
    title = titles.get(name) or (f"Quantile {name[1:]} of 10" if name[:1] == "q" and name[1:].isdecimal() else plain(name))
    return f"{title}, {'positive' if section.side == '+' else 'negative'} side" if signed else title


def group_origin(section: Section) -> str:
    """The number of tokens in a group and its range of values (bounds are |values|)."""
    group, sign = section.group, "−" if section.side == "-" else ""
    of = f"{len(section.examples)} of {count(group.population, 'token')}"
    if not group.name.startswith("q") and group.name != "range":
        return of
    return f"{of}, {sign}{number(group.low)} to {sign}{number(group.high)}"


def empty(feature: "Feature") -> str:
    """Placeholder if there are no examples."""
    why = "this feature never fires on the indexed text" if feature.dead else "this group has none"
    return f'<p class="sx-quiet">No examples: {why}.</p>'


def neighbours(
    kind: str, found: Sequence["Neighbour"], names: "Mapping[int, Name]", link: Link = lambda _: None,
    compare: Link = lambda _: None,
) -> str:
    """Neighbouring features with their names and similarities.

    Args:
        kind: `decoder` or `coactivation`.
        found: the neighbours, nearest first.
        names: feature names.
        link: URL of a feature.
        compare: URL of the side-by-side comparison with a feature.
    """
    largest = max((abs(one.score) for one in found), default=1.0)
    rows = "".join(
        f'<tr><th scope="row">{reference(one.feature, names, link)}</th>'
        f'<td style="width:25%">{bar(one.score, largest)}</td><td class="sx-num">{number(one.score)}</td>'
        f"{compare_link(one.feature, compare)}</tr>" for one in found
    )
    means = {"decoder": "cosine of decoder directions", "coactivation": "Jaccard index of the tokens they fire on"}
    return (
        f'<h3>{escape(KINDS.get(kind, kind))}</h3><table class="sx-list"><caption class="sx-hidden">'
        f"{escape(means.get(kind, kind))}</caption><tbody>{rows}</tbody></table>"
    )


def compare_link(feature: int, compare: Link) -> str:
    """A table cell that links to a comparison with a feature."""
    href = compare(feature)
    if href is None:
        return ""
    said = f"compare with feature {feature}"
    return f'<td class="sx-num"><a href="{escape(href, quote=True)}" title="{said}" aria-label="{said}">⇄</a></td>'


def reference(feature: int, names: "Mapping[int, Name]", link: Link) -> str:
    """A feature's number, linked if possible, and its name."""
    href = link(feature)
    text = f"#{feature}" if href is None else f'<a href="{escape(href, quote=True)}" data-f="{feature}">#{feature}</a>'
    return f"{text} {named.name(names[feature])}" if feature in names else text


def judged(label: "Label | None") -> str:
    """The examples used to score an automatic label: predicted and actual activity."""
    if label is None or not label.judged:
        return ""
    rows = "".join(
        f'<tr><td class="sx-whole sx-{"right" if one.said == one.active else "wrong"}">'
        f'{"active" if one.active else "inactive"}</td><td class="sx-whole">{"active" if one.said else "inactive"}</td><td>'
        f"{tokens.heat(one.pieces, one.values, scale=max(map(abs, one.values), default=1.0) or 1.0, peak=one.peak)}"
        "</td></tr>" for one in label.judged
    )
    return (
        f"<details><summary>How the label was scored ({count(len(label.judged), 'example')})</summary>"
        '<table class="sx-list"><thead><tr><th scope="col">is</th><th scope="col">label says</th>'
        f'<th scope="col">example</th></tr></thead><tbody>{rows}</tbody></table></details>'
    )


def provenance(facts: Mapping[str, str], *, folded: bool = True) -> str:
    """Provenance of the numbers as a table, collapsed if `folded`."""
    if not facts:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{shown(key)}</th><td>{shown(value, limit=300)}</td></tr>' for key, value in facts.items()
    )
    return (
        f'<details{"" if folded else " open"}><summary>Provenance</summary><table class="sx-list">'
        f'<caption class="sx-hidden">Provenance</caption><tbody>{rows}</tbody></table></details>'
    )


def alt(feature: "Feature", label: "Label | None" = None) -> str:
    """Alt text: a feature in one sentence."""
    name = f" “{attribute(label.text)}”" if label else ""
    if feature.dead:
        return f"Feature {feature.feature}{name} never fires in {count(feature.n_rows, 'token')}."
    return (
        f"Feature {feature.feature}{name} fires on {feature.n_active:,} of {count(feature.n_rows, 'token')}; "
        f"its largest value is {number(feature.max)}."
    )
