"""Continuations of a prompt without and with steering, side by side."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from analysis.render import picture
from analysis.render.feature import Link, percent, reference
from analysis.render.text import attribute, count, inner, number, shown
from analysis.render.tokens import token_list

if TYPE_CHECKING:
    from analysis.labels.names import Name
    from analysis.steering.generate import Edit, Generated, Steered
    from analysis.steering.inputs import Drawn, SteeredInput


def compared(result: "Steered", names: "Mapping[int, Name]", link: Link = lambda _: None) -> str:
    """The edits, both continuations, and the most probable next tokens of either."""
    done = "; ".join(_edit(edit, names, link) for edit in result.edits) or "nothing"
    prompt = "".join(inner(piece, breaks=True) for piece in result.prompt)
    where = result.settings.positions
    told = where if isinstance(where, str) else f"{count(len(where), 'position')}"
    parted = "the texts are identical" if result.parted is None else f"they diverge at token {result.parted + 1}"
    return (
        f'<div class="sx"><p>{done}. <span class="sx-quiet">Positions: {told} · temperature '
        f"{result.settings.temperature:g} · seed {result.settings.seed} · {parted}</span></p>"
        f'<div class="sx-heat sx-quiet">{prompt}</div><div class="sx-two">'
        f"{_text('Baseline', result.baseline, result.parted)}{_text('Steered', result.steered, result.parted)}</div>"
        f"{_alternatives(result)}</div>"
    )


def compared_outputs(result: "SteeredInput", names: "Mapping[int, Name]", link: Link = lambda _: None) -> str:
    """The edits of one input, and the outputs without and with them."""
    done = "; ".join(_edit(edit, names, link) for edit in result.edits) or "nothing"
    where = "all" if result.positions == "all" else ", ".join(map(str, result.positions)) or "none"
    parts: list[tuple[str, Drawn]] = [("Input", result.image)] if result.image is not None else []
    parts += [("Baseline", result.baseline), ("Steered", result.steered)]
    shown_parts = "".join(f"<section><h3>{title}</h3>{_output(drawn, title)}</section>" for title, drawn in parts)
    return (
        f'<div class="sx"><p>{done}. <span class="sx-quiet">Positions: {where} · input {result.number} · the output '
        f'changes by {percent(result.change)} of its norm</span></p><div class="sx-outputs">{shown_parts}</div></div>'
    )


def _output(drawn: "Drawn", title: str) -> str:
    if not isinstance(drawn, dict):
        return picture.alone(drawn, title)
    rows = "".join(
        f'<tr><th scope="row">{shown(name, limit=40)}</th><td class="sx-num">{number(value)}</td></tr>'
        for name, value in drawn.items()
    )
    return f'<table class="sx-list"><tbody>{rows}</tbody></table>'


def _edit(edit: "Edit", names: "Mapping[int, Name]", link: Link) -> str:
    verb = f"add {number(edit.strength)} to" if edit.mode == "add" else f"hold at {number(edit.strength)}:"
    return f"{verb} {reference(edit.feature, names, link)}"


def _text(title: str, generated: "Generated", parted: int | None) -> str:
    """A continuation with the first differing token outlined."""
    spans = "".join(
        f'<bdi role="listitem" aria-label="{attribute(piece)}, probability {percent(math.exp(logprob))}" '
        f'data-v="p {percent(math.exp(logprob))}"{" class=sx-peak" if i == parted else ""}>'
        f"{inner(piece, breaks=True)}</bdi>"
        for i, (piece, logprob) in enumerate(zip(generated.pieces, generated.logprobs, strict=True)) if piece
    )
    end = ' <span class="sx-odd">end of text</span>' if generated.ended else ""
    return f'<section><h3>{title}</h3>{token_list(spans + end)}</section>'


def _alternatives(result: "Steered") -> str:
    rows = "".join(
        f'<tr><th scope="row">{shown(one.piece, spaces=True, limit=24)}</th><td class="sx-num">{percent(one.baseline)}</td>'
        f'<td class="sx-num">{percent(one.steered)}</td></tr>' for one in result.alternatives
    )
    head = "".join(
        f'<th scope="col"{kind}>{name}</th>'
        for name, kind in (("token", ""), ("baseline", ' class="sx-num"'), ("steered", ' class="sx-num"'))
    )
    return (
        '<h3>Next token after the prompt</h3><table class="sx-list" style="max-width:26rem">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )
