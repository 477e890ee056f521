"""Feature cards: everything that pages, notebooks and exports show about a feature, from the index and the labels."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.labels.names import Names
from analysis.render.feature import Card, Section
from analysis.render.text import cell, count
from sae.errors import SaescopeError

if TYPE_CHECKING:
    from analysis.index import Index
    from analysis.labels.store import Labels

N_NEIGHBOURS = 10
EXPORTABLE = 500
"""Maximum number of cards per file, so that a browser can open it."""
GROUPS = ("top", "q10", "q8", "q6", "q4", "q2", "random", "near")
"""Default example groups of a card: every second tenth, from strong to weak."""
EVERY_GROUP = ("top", *(f"q{i}" for i in range(10, 0, -1)), "random", "near")


def card(
    index: "Index", feature: int, labels: "Labels | None" = None, *, n_top: int = 10, n_each: int = 3,
    groups: Sequence[str] = GROUPS,
) -> Card:
    """Build a feature's card; as the last line of a notebook cell, it is displayed.

    Args:
        index: an open index.
        feature: the feature's number.
        labels: the run's labels, if they should be shown.
        n_top: number of top examples.
        n_each: number of examples in each other group.
        groups: which groups to show, in order.

    Raises:
        SaescopeError: there is no such feature or group.
    """
    found = index.feature(feature)
    sections = [
        Section(side, group, index.examples(feature, group.name, side, n_top if group.name == "top" else n_each))
        for side in index.sides for name in groups for group in index.groups(feature, side)
        if group.name == name and group.population
    ]
    neighbours = {kind: index.neighbours(feature, kind)[:N_NEIGHBOURS] for kind in ("decoder", "coactivation")}
    every = Names(index, labels.names() if labels else {})
    names = {one.feature: every[one.feature] for near in neighbours.values() for one in near}
    return Card(
        found, sections, neighbours, labels.get(feature) if labels else None, labels.note(feature) if labels else "",
        labels.tags(feature) if labels else [], names, provenance(index),
    )


def cards(index: "Index", features: Sequence[int], labels: "Labels | None" = None) -> list[Card]:
    """Build several cards, in the given order.

    Raises:
        SaescopeError: there are no features, or more than `EXPORTABLE`.
    """
    if not features or len(features) > EXPORTABLE:
        raise SaescopeError(f"cannot export {len(features)} features to one file; choose 1 to {EXPORTABLE}.")
    return [card(index, feature, labels) for feature in features]


def provenance(index: "Index") -> dict[str, str]:
    """Provenance of an index: name → text."""
    manifest = index.manifest
    about, made_from = manifest.get("about", {}), manifest.get("made_from", {})
    facts = {
        "run": about.get("run"), "model": about.get("model"), "corpus": ", ".join(about.get("corpus") or []),
        "site": json.dumps(about["site"], ensure_ascii=False) if "site" in about else None, "variant": about.get("variant"),
        "codes": f"refined by {count(index.refine, 'step')} of pursuit" if index.refine else None,
        "index": index.name, "tokens indexed": f"{index.n_rows:,} kept of {index.n_seqs * index.n_ctx:,}",
        "weights sha256": made_from.get("weights_sha256"),
        "tokens sha256": made_from.get("rows", made_from).get("tokens_sha256"), "code": manifest.get("code"),
        "stale": index.stale,
    }
    return {key: str(value) for key, value in facts.items() if value}


def as_json(shown: Sequence[Card]) -> str:
    """Complete cards as JSON; NaN becomes null."""
    return json.dumps([_finite(asdict(one)) for one in shown], ensure_ascii=False, indent=1) + "\n"


def as_csv(shown: Sequence[Card]) -> str:
    """One row per token of each example; labels and tokens are JSON strings (docs/index-format.md, CSV files)."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["feature", "label", "side", "group", "context", "position", "token", "value", "is_peak"])
    for one in shown:
        label = cell(one.label.text) if one.label else ""
        for section in one.sections:
            for example in section.examples:
                for i, (piece, value) in enumerate(zip(example.pieces, example.values, strict=True)):
                    position = example.start + i
                    writer.writerow([
                        example.feature, label, section.side, section.group.name, example.seq, position, cell(piece),
                        value, int(position == example.position),
                    ])
    return out.getvalue()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return None if isinstance(value, float) and (value != value or value in (float("inf"), -float("inf"))) else value
