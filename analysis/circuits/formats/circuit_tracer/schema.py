"""Schema of circuit-tracer and Neuronpedia graph files, and their node numbering (schema_version 1).

    node_id     "LAYER_FEATURE_POSITION", errors "LAYER_-1_POSITION", tokens "E_TOKEN_POSITION"; logits above the last layer
    feature     for features the Cantor pairing of layer and feature; for others a token, a position, or negative

From circuit-tracer 0.4.1 (`circuit_tracer/frontend/graph_models.py`) and Neuronpedia's published JSON schema
(`apps/webapp/app/api/graph/graph-schema.json`). Older circuit-tracers named an error "0_LAYER_POSITION", which is also
the name of a feature in layer 0. Both allow unknown keys, and these are kept.
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
    """Where the graph is from. `saescope` is our own key: what nodes and numbers mean in our exports."""

    slug: str
    scan: str
    """Model id."""
    transcoder_list: list[str] = []
    prompt_tokens: list[str]
    prompt: str
    schema_version: int
    saescope: dict[str, Any] | None = None


class QParams(_Part):
    """Initial view of a page."""

    pinnedIds: list[str] = []
    supernodes: list[list[Any]] = []
    linkType: str = "both"
    clickedId: str = ""
    sg_pos: str = ""


class Node(_Part):
    """A node. `influence` is cumulative, so smaller means more influential; `activation` is a feature's value.

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
    """A whole graph file."""

    metadata: Metadata
    qParams: QParams = Field(default_factory=QParams)
    nodes: list[Node]
    links: list[Link]


def paired(layer: int, feature: int) -> int:
    """Cantor pairing of layer and feature."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def unpaired(number: int) -> tuple[int, int]:
    """Inverse of `paired`: layer and feature."""
    diagonal = (math.isqrt(8 * number + 1) - 1) // 2
    feature = number - diagonal * (diagonal + 1) // 2
    return diagonal - feature, feature
