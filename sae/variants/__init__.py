"""The variants: one small file each, and a table of them."""

from pydantic import BaseModel

from sae.base import SAE, SAEConfig
from sae.errors import SaescopeError
from sae.variants.gated import Gated, GatedConfig
from sae.variants.icfl import ICFL, ICFLConfig
from sae.variants.imported import Imported, ImportedConfig
from sae.variants.jumprelu import JumpReLU, JumpReLUConfig
from sae.variants.matryoshka import Matryoshka, MatryoshkaConfig
from sae.variants.mdl import MDL, MDLConfig
from sae.variants.relu import ReLU, ReLUConfig
from sae.variants.topk import AbsBatchTopKConfig, AbsTopKConfig, BatchTopKConfig, TopK, TopKConfig

VARIANTS: dict[str, tuple[type[SAE], type[SAEConfig]]] = {
    "topk": (TopK, TopKConfig),
    "batchtopk": (TopK, BatchTopKConfig),
    "relu": (ReLU, ReLUConfig),
    "abstopk": (TopK, AbsTopKConfig),
    "absbatchtopk": (TopK, AbsBatchTopKConfig),
    "matryoshka": (Matryoshka, MatryoshkaConfig),
    "jumprelu": (JumpReLU, JumpReLUConfig),
    "gated": (Gated, GatedConfig),
    "mdl": (MDL, MDLConfig),
    "icfl": (ICFL, ICFLConfig),
}
"""Variants that can be trained."""

READABLE: dict[str, tuple[type[SAE], type[SAEConfig]]] = VARIANTS | {"imported": (Imported, ImportedConfig)}
"""Variants that can be loaded."""


def variant_config(fields: dict) -> type[BaseModel]:
    """The config class that `fields["variant"]` names.

    Raises:
        SaescopeError: no such variant; the message lists the variants.
    """
    name = fields.get("variant")
    if name not in READABLE:
        raise SaescopeError(f"sae.variant: no variant called {name!r}; the variants are {', '.join(VARIANTS)}.")
    return READABLE[name][1]
