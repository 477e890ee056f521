"""The mathematics of sparse autoencoders: variants, losses, metrics, kernels, saving and loading.

Axis names used in every signature of the project:

    n_rows  rows of a batch: one row is one token's activation     d_in    width of the input activation
    n_seqs  sequences of tokens                                    d_out   width of the target (d_in for an SAE)
    n_ctx   tokens per sequence                                    d_sae   number of features
    nnz     stored values of a sparse code                         k       active features per row
"""

from typing import TYPE_CHECKING

from sae.errors import SaescopeError

if TYPE_CHECKING:
    from sae.store import load

__all__ = ["SaescopeError", "load"]


def __getattr__(name: str):
    """`sae.load` without making `import sae` pay for torch."""
    if name == "load":
        from sae.store import load

        return load
    raise AttributeError(f"module 'sae' has no attribute {name!r}")
