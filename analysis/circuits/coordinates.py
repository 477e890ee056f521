"""The dictionary that changes nothing: one feature per coordinate. With it everything here works on neurons.

Every coordinate that is not zero is active, with its sign; nothing is left as an error.
"""

from collections.abc import Iterable
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from analysis.circuits.model import CircuitModel
from sae.base import SAE, Progress, SAEConfig, Step
from sae.code import SparseCode, from_dense
from sae.errors import SaescopeError
from sae.kernels import Select
from training.model.language_model import Model
from training.site import Site


class CoordinatesConfig(SAEConfig):
    """Config of the coordinates of a hook."""

    variant: Literal["coordinates"] = "coordinates"


@final
class Coordinates(SAE):
    """W_enc = W_dec = 1, without biases."""

    @classmethod
    def of(cls, d: int, dtype: torch.dtype = torch.float32) -> "Coordinates":
        """Those of a hook of this width."""
        sae = cls(CoordinatesConfig(d_sae=d), d)
        sae.to(dtype)
        with torch.no_grad():
            sae.W_enc.fill_diagonal_(1)
            sae.W_dec.fill_diagonal_(1)
        return sae

    def select(self) -> Select:
        """All that are not zero."""
        return Select("threshold", absolute=True)

    def active(self, x: Float[Tensor, "n_rows d_in"]) -> SparseCode:
        """Each coordinate as it is."""
        return from_dense(x.to(self.W_enc.dtype))

    def decode_features(self, code: SparseCode) -> Float[Tensor, "n_rows d_out"]:
        """Each value in its place."""
        return code.to_dense().to(self.W_dec.dtype)

    def losses(
        self, x: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_rows d_out"], progress: Progress
    ) -> Step:
        """Not defined.

        Raises:
            SaescopeError: always.
        """
        del x, target, progress
        raise SaescopeError("The coordinates of a hook are not trained.")


def coordinates(model: Model, sites: Iterable[Site]) -> CircuitModel:
    """A model taken apart into coordinates at some sites, all of whose widths share their matrices.

    Raises:
        SaescopeError: as `CircuitModel`.
    """
    sites = list(sites)
    dtype = torch.promote_types(model.dtype, torch.float32)
    by_width = {d: Coordinates.of(d, dtype) for d in {model.d_hook(site.output) for site in sites}}
    return CircuitModel(model, {site: by_width[model.d_hook(site.output)] for site in sites})


def mlp_activations(model: CircuitModel) -> CircuitModel:
    """The model taken apart into the activations of its MLPs, of all that run after the first of its sites.

    Raises:
        SaescopeError: no MLP behind that site shows its activations.
    """
    hooks = [f"blocks.{layer}.mlp.hook_post" for layer in range(model.n_layers)]
    sites = [Site(input=hook) for hook in hooks if hook in model.model.hooks()]
    first = model.sites[0]
    with_first = coordinates(model.model, [*sites, *own_sites([first])])
    later = with_first.sites[with_first.index[own_sites([first])[0]] + 1 :]
    if not later:
        raise SaescopeError(f"{model.model.name} shows no activations of an MLP (mlp.hook_post) behind {first.output}.")
    return coordinates(model.model, later)


def own_sites(sites: Iterable[Site]) -> list[Site]:
    """For each site one whose input is the same target: an output of a block, or its update."""
    return [
        Site(input=site.input, target=site.target, update="both") if site.update else Site(input=site.output)
        for site in sites
    ]


def own_coordinates(model: CircuitModel) -> CircuitModel:
    """The model with the coordinates of its sites in place of their features."""
    return coordinates(model.model, own_sites(model.sites))
