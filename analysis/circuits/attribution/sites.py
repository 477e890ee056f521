"""Sites of an attribution graph: tokens, SAEs, MLPs without an SAE, logits."""

from collections.abc import Mapping, Sequence

from analysis.circuits.graph import SiteInfo, site_names
from sae.base import SAE
from sae.store import tensors_hash
from training.site import Site

TOKENS = Site(input="blocks.0.hook_resid_pre")
"""Where token (and position) embeddings enter."""
EMBEDDING, LOGIT = "embedding", "logit"
"""`SiteInfo.variant` of the sites of tokens and logits, as in imported circuit-tracer graphs."""
NO_SAE = "none"
"""`SiteInfo.variant` of an MLP whose whole output is an error."""


def graph_sites(
    inner: Sequence[Site], saes: Mapping[Site, SAE], known: Sequence[SiteInfo] = ()
) -> tuple[SiteInfo, ...]:
    """Site records of tokens, the inner sites in order, and logits.

    Args:
        inner: sites in causal order, without tokens and logits.
        saes: SAEs by site.
        known: existing records of sites, which are reused.
    """
    own, names = {info.site: info for info in known}, site_names(inner)
    found = [own.get(site) or _info(site, saes.get(site), name) for site, name in zip(inner, names, strict=True)]
    tokens = SiteInfo(EMBEDDING, TOKENS, "", 0, EMBEDDING)
    return (tokens, *found, SiteInfo(LOGIT, Site(input="unembed.hook_out"), "", 0, LOGIT))


def _info(site: Site, sae: SAE | None, name: str) -> SiteInfo:
    if sae is None:
        return SiteInfo(name, site, "", 0, NO_SAE)
    return SiteInfo(name, site, tensors_hash(dict(sae.tensors())), sae.d_sae, sae.config.variant, skip=sae.has_offsets)
