"""SAELens SAEs that no variant here can train: loaded for inference, or to start training from."""

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
    """Config of a SAELens SAE that matches no variant here."""

    variant: Literal["imported"] = "imported"
    architecture: str
    """Architecture in SAELens."""
    k: Count | None = Field(default=None, gt=0)
    """Keep the k largest of each row; null: those above their threshold."""
    absolute: bool = False
    """Rank by |pre| and keep the sign (abstopk)."""
    row_norm: RowNorm = "none"
    """Per-row normalisation before encoding, undone after decoding."""
    denormalise: bool = True
    """Undo the normalisation after decoding. False for transcoders, whose output is not in the input's units."""


@final
class Imported(SAE):
    """A SAELens SAE for inference, or to start training from."""

    config: ImportedConfig
    unit_norm_decoder: ClassVar[bool] = False
    threshold: Tensor

    def add_tensors(self) -> None:
        """Add thresholds, unless k is fixed."""
        if self.config.k is None:
            self.register_buffer("threshold", torch.zeros(self.d_sae))

    @property
    def has_offsets(self) -> bool:
        """Rows are decoded around an offset per row."""
        return self.config.skip or (self.config.row_norm != "none" and self.config.denormalise)

    def select(self) -> Select:
        """The k largest, or those above their threshold."""
        if self.config.k is None:
            return Select("threshold", threshold=self.threshold)
        return Select("topk", k=self.config.k, absolute=self.config.absolute)

    def encode_traced(self, x: Float[Tensor, "n_rows d_in"]) -> SparseCode:
        """As in the base class, with gradients through the row statistics; the code carries offsets if rows have them."""
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
        """As in the base class, on normalised rows."""
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
            f"A {self.config.architecture} imported from SAELens cannot be trained; train a variant with init.from instead."
        )

    def fold_norms(self, norms: Float[Tensor, " d_sae"]) -> None:
        """Scale thresholds, which are in activation units."""
        if self.config.k is None:
            self.threshold.mul_(norms)

    def unfit_as_start(self) -> str | None:
        """As in the base class; also if the weights need per-row normalisation."""
        if self.config.row_norm != "none":
            return (
                f"it is a SAELens {self.config.architecture} with normalize_activations {self.config.row_norm}, which no "
                "variant here supports"
            )
        return super().unfit_as_start()


def row_statistics(
    x: Float[Tensor, "n_rows d"], kind: RowNorm
) -> tuple[Float[Tensor, "n_rows d"], Float[Tensor, "n_rows 1"], Float[Tensor, "n_rows 1"]]:
    """Normalise each row as SAELens does, and return spread and centre to undo it: x ≈ row · spread + centre.

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
