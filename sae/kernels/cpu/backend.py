"""The cpu backend: torch for the encoder's matrix product, compiled loops for everything sparse.

*Encode.* Scores `x @ W_enc` are computed in chunks of rows. bf16 scores only nominate candidates: these are re-scored in
fp32, and the margin is widened until the measured error of the scores cannot have hidden a better one. So values are exact
in fp32, and so is the selection. Ties go to the lowest feature.

*Backward.* One autograd function for the whole pass. A stable counting sort of the active entries by feature gives all
weight, bias and value gradients without atomics and in a fixed order: results are bitwise reproducible, for any number of
threads.

*Density.* Above `BREAK_EVEN` the same results come from dense products; `last_route` says which was used.

A row with a NaN or infinite pre-activation raises a SaescopeError. fp64 tensors go to the reference backend.
"""

from typing import Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from sae.code import SparseCode
from sae.errors import SaescopeError
from sae.kernels.cpu.backward import Autoencode, lock
from sae.kernels.cpu.checks import check_code, check_prefixes, check_shapes, takes
from sae.kernels.cpu.optimizer import step_params
from sae.kernels.cpu.select import RESCORE_SHARE, Encoder
from sae.kernels.cpu.state import Buffers, Part, Pass, decode, indptr_of
from sae.kernels.interface import Autoencoded, ParamState, Revival, Select
from sae.kernels.reference import Reference, agreed

BREAK_EVEN = 0.1
"""Density of active features above which dense products are faster than the sparse loops."""


def bf16_is_fast() -> bool:
    """Whether this CPU has bf16 matrix instructions."""
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return torch.backends.mkldnn.is_available() and any(probe is not None and bool(probe()) for probe in probes)


class Cpu:
    """torch and compiled loops; see `sae.kernels.Backend` for the operations."""

    name = "cpu"

    def __init__(self, precision: str = "auto") -> None:
        if precision not in ("auto", "fp32", "bf16"):
            raise SaescopeError(f"kernels: no precision called {precision!r}; choose auto, fp32 or bf16.")
        self.precision: str = precision
        self.half: bool = precision == "bf16" or (precision == "auto" and bf16_is_fast())
        """Whether encoder scores are computed in bf16."""
        self.last_route: Literal["sparse", "dense", "reference"] = "sparse"
        """How the last pass ran: `dense` if the density was above BREAK_EVEN, `reference` in fp64."""
        self._reference = Reference()
        self._buffers = Buffers()

    def __reduce__(self) -> tuple:
        """Copies and pickles have no buffers."""
        return Cpu, (self.precision,)

    # -- the operations -----------------------------------------------------------------------------------------------

    def keeps_all(self, n_rows: int, d_sae: int) -> bool:
        """Never: data-dependent sizes cost no device sync here."""
        del n_rows, d_sae
        return False

    @torch.no_grad()
    def encode(
        self, x: Float[Tensor, "n_rows d_in"], W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, " d_sae"],
        select: Select,
    ) -> SparseCode:
        """Select from `x @ W_enc + b_enc`."""
        check_shapes(x=x, W_enc=W_enc, b_enc=b_enc)
        if not takes(x=x, W_enc=W_enc, b_enc=b_enc):
            return self._reference.encode(x, W_enc, b_enc, select)
        with lock():
            return self._code(x.detach().contiguous(), feature_major(W_enc), b_enc, select, W_enc)

    @torch.no_grad()
    def decode(
        self, code: SparseCode, W_dec: Float[Tensor, "d_sae d_out"], b_dec: Float[Tensor, " d_out"]
    ) -> Float[Tensor, "n_rows d_out"]:
        """`Σ value · W_dec[feature] + b_dec` per row."""
        check_code(code, W_dec.shape[0])
        check_shapes(W_dec=W_dec, b_dec=b_dec)
        if not takes(value=code.value, W_dec=W_dec, b_dec=b_dec):
            return self._reference.decode(code, W_dec, b_dec)
        with lock():
            return decode(code, W_dec.detach().contiguous(), b_dec, (W_dec.shape[0],))[0]

    def autoencode(
        self, x: Float[Tensor, "n_rows d_in"], W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_out"], b_dec: Float[Tensor, " d_out"], select: Select,
        *, b_pre: Float[Tensor, " d_in"] | None = None, prefixes: tuple[int, ...] | None = None,
        auxk: Revival | None = None,
    ) -> Autoencoded:
        """Encode `x − b_pre`, select, decode each prefix; `code.value` and the reconstructions are differentiable.

        AuxK is the same pass over the compacted set of dead features. Both share one backward, which adds the dead
        features' gradient rows to the full gradients, so no second dense gradient is allocated.
        """
        dead = None if auxk is None else auxk.dead
        check_shapes(x=x, W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec, b_pre=b_pre, dead=dead)
        ends = check_prefixes(prefixes, W_dec.shape[0])
        if not takes(x=x, W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec, b_pre=b_pre):
            self.last_route = "reference"
            return self._reference.autoencode(
                x, W_enc, b_enc, W_dec, b_dec, select, b_pre=b_pre, prefixes=prefixes, auxk=auxk
            )
        with lock(), torch.no_grad():
            rows = (x.detach() if b_pre is None else x.detach() - b_pre.detach()).contiguous()
            done = self._pass(rows, feature_major(W_enc), b_enc, W_dec, select, ends, W_enc)
            part = None if auxk is None else self._part(rows, W_enc, b_enc, W_dec, auxk, select.absolute)
        self.last_route = "dense" if done.dense else "sparse"
        value, x_hat, aux_hat = Autoencode.apply(self._buffers, done, part, x, W_enc, b_enc, W_dec, b_dec, b_pre)
        if auxk is not None and aux_hat is None:
            aux_hat = x.new_zeros(x.shape[0], W_dec.shape[1])
        code = done.code
        code = SparseCode(code.feature, value, code.n_rows, code.d_sae, code.indptr, code.k)
        return Autoencoded(code, x_hat, aux_hat)

    @torch.no_grad()
    def optimizer_step(
        self, params: list[ParamState], *, step: int, lr: float, betas: tuple[float, float], eps: float,
        clip: float | None, rates: Float32[Tensor, "2"] | None = None,
    ) -> Float[Tensor, ""]:
        """One pass over each matrix: clipping, Adam, unit rows, and the bf16 copy for the next encode.

        Takes the parameters' gradients (`param.grad` is None afterwards) and reuses their memory in the next backward.
        """
        live = [p for p in params if p.param.grad is not None]
        if rates is not None or not live or not all(takes(param=p.param, grad=p.param.grad) for p in live):
            return self._reference.optimizer_step(live, step=step, lr=lr, betas=betas, eps=eps, clip=clip, rates=rates)
        with lock():
            return step_params(self._buffers, live, step, lr, betas, eps, clip, self.half)

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _code(
        self, x: Float[Tensor, "n_rows d_in"], w: Float[Tensor, "d_sae d_in"], b_enc: Float[Tensor, " d_sae"],
        select: Select, W_enc: Tensor | None,
    ) -> SparseCode:
        """Select from `x @ w.T + b_enc`; `W_enc` is the tensor that w is a view of, if its bf16 copy may be cached."""
        half = None
        if self.half and (select.mode == "threshold" or select.k <= RESCORE_SHARE * w.shape[0]):
            half = self._buffers.half_of(w, W_enc)
        return Encoder(self._buffers, x, w, b_enc.detach().contiguous(), half).code(select)

    def _pass(
        self, rows: Float[Tensor, "n_rows d_in"], w_enc: Float[Tensor, "d_sae d_in"], b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_out"], select: Select, ends: tuple[int, ...], W_enc: Tensor | None,
    ) -> Pass:
        """Encode and select; the autograd function decodes."""
        code = agreed(self._code(rows, w_enc, b_enc, select, W_enc), select.agree)
        dense = code.feature.numel() > BREAK_EVEN * code.n_rows * code.d_sae
        return Pass(rows, w_enc, W_dec.detach().contiguous(), code, indptr_of(code), ends, dense)

    def _part(
        self, rows: Float[Tensor, "n_rows d_in"], W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_out"], auxk: Revival, absolute: bool,
    ) -> Part | None:
        """The pass over the dead features; None if there are none."""
        ids = auxk.dead.nonzero().squeeze(-1)
        if ids.numel() == 0:
            return None
        select = Select("topk", k=min(auxk.k, ids.numel()), absolute=absolute, agree=auxk.agree)
        w_enc = W_enc.detach().t()[ids].contiguous()
        return Part(ids, self._pass(rows, w_enc, b_enc.detach()[ids], W_dec.detach()[ids], select, (ids.numel(),), None))


def feature_major(W: Float[Tensor, "d d_sae"]) -> Float[Tensor, "d_sae d"]:
    """The contiguous transpose; no copy for weights in the usual layout."""
    return W.detach().t().contiguous()
