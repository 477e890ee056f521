"""Random circuits, without a model."""

from typing import Any

import numpy as np

from analysis.circuits.graph import Circuit, SiteInfo, site_names
from analysis.circuits.nodes import ANYWHERE, ERROR, OUTPUT, SKIP, Nodes
from training.site import Site

SITES = [
    Site(input="blocks.0.hook_attn_out"),
    Site(input="blocks.0.mlp.hook_in", target="blocks.0.hook_mlp_out"),
    Site(input="blocks.0.hook_resid_post"),
    Site(input="blocks.2.hook_resid_post"),
    Site(input="blocks.5.hook_attn_out"),
]
PROMPT = ("<s>", "The", " keys", " to", " the", " cabinet")


def circuit(seed: int = 0, *, n: int = 30, e: int = 60, positional: bool = True, **fields: Any) -> Circuit:
    """Features, errors and skip paths with edges upwards, some of which end nowhere."""
    rng = np.random.default_rng(seed)
    triples = {
        (int(rng.integers(len(SITES))), int(rng.integers(1, 6)) if positional else ANYWHERE, int(rng.integers(0, 40)))
        for _ in range(n)
    }
    triples |= {(s, 5 if positional else ANYWHERE, ERROR) for s in (0, 2, 3)} | {(1, 4 if positional else ANYWHERE, SKIP)}
    nodes = Nodes.of(list(triples))
    n = len(nodes)
    ends = {(int(rng.integers(n)), int(rng.integers(-1, n))) for _ in range(e)}
    up = sorted((s, t) for s, t in ends if t == OUTPUT or nodes.site[s] < nodes.site[t])
    effect, weight = rng.normal(size=n), rng.normal(size=len(up))
    facts: dict[str, Any] = {
        "name": "keys", "model": {"name": "tiny", "n_layers": 6, "d_vocab": 300},
        "sites": tuple(
            SiteInfo(name, site, f"{i:064x}", 400, "topk", run=f"runs/{name}", skip=i == 1)
            for i, (name, site) in enumerate(zip(site_names(SITES), SITES, strict=True))
        ),
        "task": {"name": "agreement", "metric": "logit difference"}, "settings": {"estimator": "ig", "n_pairs": 100},
        "prompt": PROMPT if positional else (), "nodes": nodes, "effect": effect, "low": effect - 0.1,
        "high": effect + 0.1, "value": rng.random(n), "reference": rng.random(n), "inclusion": rng.random(n),
        "source": np.array([s for s, _ in up], dtype=np.int64), "target": np.array([t for _, t in up], dtype=np.int64),
        "weight": weight, "weight_low": weight - 0.1, "weight_high": weight + 0.1,
        "edge_inclusion": np.full(len(up), np.nan), "scores": {"faithfulness": 0.61},
    }
    return Circuit(**{**facts, **fields})


def attributed(n: int = 40, seed: int = 0) -> Circuit:
    """A graph like one of circuit-tracer: tokens, two layers of features with errors, logits."""
    rng = np.random.default_rng(seed)
    triples = [(0, p, 10 + p) for p in range(4)]
    triples += [(1 + i % 2, 1 + i % 3, i) for i in range(n)] + [(s, p, -1) for s in (1, 2) for p in range(4)]
    triples += [(3, 3, 7), (3, 3, 9)]
    nodes = Nodes.of(triples)
    ends = [(s, t) for s in range(len(nodes)) for t in range(len(nodes))
            if nodes.site[s] < nodes.site[t] and nodes.position[s] <= nodes.position[t] and nodes.feature[t] >= 0
            and rng.random() < 0.5]
    logits = [i for i in range(len(nodes)) if nodes.site[i] == 3]
    source = np.array([s for s, _ in ends] + logits)
    target = np.array([t for _, t in ends] + [OUTPUT] * len(logits))
    weight = np.concatenate([rng.normal(size=len(ends)), [0.6, 0.3]])
    zero, none = np.zeros(len(nodes)), np.full(len(source), np.nan)
    sites = (
        SiteInfo("embedding", Site(input="hook_embed"), "", 0, "embedding"),
        *(SiteInfo(f"mlp-{i}", Site(input=f"blocks.{i}.hook_mlp_out"), f"{i:064x}", 99, "topk") for i in range(2)),
        SiteInfo("logit", Site(input="unembed.hook_out"), "", 0, "logit"),
    )
    return circuit(
        name="traced", sites=sites, nodes=nodes, prompt=("<s>", "The", " keys", " are"), source=source, target=target,
        weight=weight, weight_low=none, weight_high=none, edge_inclusion=none, effect=rng.normal(size=len(nodes)), low=zero,
        high=zero, value=zero, reference=zero, inclusion=np.full(len(nodes), np.nan), scores={}, settings={},
        model={"name": "tiny", "n_layers": 2, "d_vocab": 50},
    )
