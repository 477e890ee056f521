"""The identity dictionary: one feature per coordinate, so that circuits can be made of neurons.

Every non-zero coordinate is active, with its sign; the error is zero.
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
    """Config of the identity dictionary."""

    variant: Literal["coordinates"] = "coordinates"


@final
class Coordinates(SAE):
    """The identity dictionary: W_enc = W_dec = I, without biases."""

    @classmethod
    def of(cls, d: int, dtype: torch.dtype = torch.float32) -> "Coordinates":
        """The identity dictionary of width d."""
        sae = cls(CoordinatesConfig(d_sae=d), d)
        sae.to(dtype)
        with torch.no_grad():
            sae.W_enc.fill_diagonal_(1)
            sae.W_dec.fill_diagonal_(1)
        return sae

    def select(self) -> Select:
        """Select all non-zero coordinates."""
        return Select("threshold", absolute=True)

    def active(self, x: Float[Tensor, "n_rows d_in"]) -> SparseCode:
        """Each non-zero coordinate, unchanged."""
        return from_dense(x.to(self.W_enc.dtype))

    def decode_features(self, code: SparseCode) -> Float[Tensor, "n_rows d_out"]:
        """The coordinates as a dense tensor."""
        return code.to_dense().to(self.W_dec.dtype)

    def losses(
        self, x: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_rows d_out"], progress: Progress
    ) -> Step:
        """Not defined.

        Raises:
            SaescopeError: always.
        """
        del x, target, progress
        raise SaescopeError("The coordinates of a hook can't be trained.")


def coordinates(model: Model, sites: Iterable[Site]) -> CircuitModel:
    """A model with the identity dictionary at the given sites; sites of equal width share its matrices.

    Raises:
        SaescopeError: as `CircuitModel`.
    """
    sites = list(sites)
    dtype = torch.promote_types(model.dtype, torch.float32)
    by_width = {d: Coordinates.of(d, dtype) for d in {model.d_hook(site.output) for site in sites}}
    return CircuitModel(model, {site: by_width[model.d_hook(site.output)] for site in sites})


def mlp_activations(model: CircuitModel) -> CircuitModel:
    """A model with MLP neurons as features, in every MLP after the model's first site.

    Raises:
        SaescopeError: no MLP after that site has a hook on its neurons.
    """
    hooks = [f"blocks.{layer}.mlp.hook_post" for layer in range(model.n_layers)]
    sites = [Site(input=hook) for hook in hooks if hook in model.model.hooks()]
    first = model.sites[0]
    with_first = coordinates(model.model, [*sites, *own_sites([first])])
    later = with_first.sites[with_first.index[own_sites([first])[0]] + 1 :]
    if not later:
        raise SaescopeError(f"{model.model.name} has no hook on MLP neurons (mlp.hook_post) after {first.output}.")
    return coordinates(model.model, later)


def own_sites(sites: Iterable[Site]) -> list[Site]:
    """For each site, the site that both reads and writes its target: a hook, or a block's update."""
    return [
        Site(input=site.input, target=site.target, update="both") if site.update else Site(input=site.output)
        for site in sites
    ]


def own_coordinates(model: CircuitModel) -> CircuitModel:
    """The model with coordinates as features at its own sites."""
    return coordinates(model.model, own_sites(model.sites))
