"""What SAELens knows and no variant here trains: read for inference, or to start a training from."""

from dataclasses import replace
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sae.base import SAE, Progress, SAEConfig, Step
from sae.code import OffsetCode, SparseCode
from sae.errors import SaescopeError
from sae.kernels import Select
from sae.units import Count

RowNorm = Literal["none", "layer_norm", "constant_norm_rescale"]


class ImportedConfig(SAEConfig):
    """Config of an SAE that was read from SAELens and has no variant here."""

    variant: Literal["imported"] = "imported"
    architecture: str
    """SAELens' name of it."""
    k: Count | None = Field(default=None, gt=0)
    """The k largest of each row are active; null: those above their threshold."""
    absolute: bool = False
    """Rank by |pre| and keep the sign (abstopk)."""
    row_norm: RowNorm = "none"
    """How each row is normalised by its own statistics before encoding, and denormalised after decoding."""
    denormalise: bool = True
    """False for transcoders, whose output is not in the input's units."""


@final
class Imported(SAE):
    """An SAE of SAELens for inference, or to start a training from."""

    config: ImportedConfig
    unit_norm_decoder: ClassVar[bool] = False
    threshold: Tensor

    def add_tensors(self) -> None:
        """Thresholds, for what does not count."""
        if self.config.k is None:
            self.register_buffer("threshold", torch.zeros(self.d_sae))

    @property
    def has_offsets(self) -> bool:
        """Rows are decoded around points of their own."""
        return self.config.skip or (self.config.row_norm != "none" and self.config.denormalise)

    def select(self) -> Select:
        """The k largest, or those above their threshold."""
        if self.config.k is None:
            return Select("threshold", threshold=self.threshold)
        return Select("topk", k=self.config.k, absolute=self.config.absolute)

    def encode_traced(self, x: Float[Tensor, "n_rows d_in"]) -> SparseCode:
        """As for any SAE, through the statistics of each row too; where rows have offsets, the code carries them."""
        inner, spread, centre = row_statistics(x.to(self.W_enc.dtype), self.config.row_norm)
        code = self.active(inner)
        if not self.has_offsets:
            return code
        offset = self.bias().expand(len(x), -1)
        if self.config.row_norm != "none" and self.config.denormalise:
            offset = offset * spread + centre
            code = replace(code, value=code.value * spread[code.rows(), 0])
        return OffsetCode.around(code, offset + self.bypass(x) if self.config.skip else offset)

    def pre_activations(self, x: Float[Tensor, "n_rows d_in"], where: SparseCode) -> Float[Tensor, " nnz"]:
        """As for any SAE, of rows normalised by themselves."""
        inner, spread, _ = row_statistics(x.to(self.W_enc.dtype), self.config.row_norm)
        found = super().pre_activations(inner, where)
        return found * spread[where.rows(), 0] if self.config.denormalise else found

    def losses(
        self, x: Float[Tensor, "n_rows d_in"], target: Float[Tensor, "n_rows d_out"], progress: Progress
    ) -> Step:
        """Not defined.

        Raises:
            SaescopeError: always.
        """
        del x, target, progress
        raise SaescopeError(
            f"A {self.config.architecture} read from SAELens has no loss here; train a variant with init.from instead."
        )

    def fold_norms(self, norms: Float[Tensor, " d_sae"]) -> None:
        """Thresholds live in units of the activation."""
        if self.config.k is None:
            self.threshold.mul_(norms)

    def unfit_as_start(self) -> str | None:
        """Weights that only work with rows normalised one by one."""
        if self.config.row_norm != "none":
            return (
                f"it is a {self.config.architecture} of SAELens with normalize_activations {self.config.row_norm}, "
                "parts of which no variant here has"
            )
        return super().unfit_as_start()


def row_statistics(
    x: Float[Tensor, "n_rows d"], kind: RowNorm
) -> tuple[Float[Tensor, "n_rows d"], Float[Tensor, "n_rows 1"], Float[Tensor, "n_rows 1"]]:
    """Rows normalised each by itself as SAELens does, and what undoes it: x ≈ row · spread + centre.

    layer_norm: by mean and unbiased standard deviation (plus 1e-5, which is not undone). constant_norm_rescale: to
    norm √d.
    """
    zero, one = x.new_zeros(x.shape[0], 1), x.new_ones(x.shape[0], 1)
    if kind == "layer_norm":
        centre = x.mean(1, keepdim=True)
        spread = (x - centre).std(1, keepdim=True)
        return (x - centre) / (spread + 1e-5), spread, centre
    if kind == "constant_norm_rescale":
        gain = x.shape[1] ** 0.5 / x.norm(dim=1, keepdim=True)
        return x * gain, 1 / gain, zero
    return x, one, zero
