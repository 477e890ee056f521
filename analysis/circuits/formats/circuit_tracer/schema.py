"""What a graph file of circuit-tracer and Neuronpedia holds, and how it numbers nodes (schema_version 1).

    node_id     "LAYER_FEATURE_POSITION", "LAYER_-1_POSITION" of an error, "E_TOKEN_POSITION", logits above the last layer
    feature     of a feature the Cantor pairing of layer and feature; of others a token, a position, or below zero

Facts from circuit-tracer 0.4.1 (`circuit_tracer/frontend/graph_models.py`) and from Neuronpedia's published JSON schema
(`apps/webapp/app/api/graph/graph-schema.json`). Older circuit-tracers wrote an error as "0_LAYER_POSITION", which is also
the name of a feature of layer 0. Keys that these do not know are allowed by both and are kept here.
"""

import math
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1
FEATURE, ERROR_TYPE, EMBEDDING, LOGIT, SKIP_TYPE = (
    "cross layer transcoder", "mlp reconstruction error", "embedding", "logit", "skip path"
)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")


class Metadata(_Part):
    """Where the graph is from. `saescope` is our own key: what the nodes and numbers of an export of ours mean."""

    slug: str
    scan: str
    """The model."""
    transcoder_list: list[str] = []
    prompt_tokens: list[str]
    prompt: str
    schema_version: int
    saescope: dict[str, Any] | None = None


class QParams(_Part):
    """What a page shows at first."""

    pinnedIds: list[str] = []
    supernodes: list[list[Any]] = []
    linkType: str = "both"
    clickedId: str = ""
    sg_pos: str = ""


class Node(_Part):
    """A node; `influence` is cumulative, so that less is more, and `activation` a feature's value.

    `effect` to `inclusion` are our own keys, as in `Circuit`.
    """

    node_id: str
    feature: int | None = Field(lt=2**63)
    layer: str | int
    ctx_idx: int = Field(ge=0, lt=2**31)
    feature_type: str
    token_prob: float = 0.0
    is_target_logit: bool = False
    run_idx: int = 0
    reverse_ctx_idx: int = 0
    jsNodeId: str
    clerp: str = ""
    influence: float | None = None
    activation: float | None = None
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    reference: float | None = None
    inclusion: float | None = None


class Link(_Part):
    """An edge; `low` to `inclusion` are our own keys."""

    source: str
    target: str
    weight: float
    low: float | None = None
    high: float | None = None
    inclusion: float | None = None


class Graph(_Part):
    """A whole file."""

    metadata: Metadata
    qParams: QParams = Field(default_factory=QParams)
    nodes: list[Node]
    links: list[Link]


def paired(layer: int, feature: int) -> int:
    """Two natural numbers as one (Cantor's pairing function)."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def unpaired(number: int) -> tuple[int, int]:
    """Layer and feature of a pairing."""
    diagonal = (math.isqrt(8 * number + 1) - 1) // 2
    feature = number - diagonal * (diagonal + 1) // 2
    return diagonal - feature, feature
