"""Backward pass: the fused sparse backward, the dense one, and the autograd function."""

import contextlib

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae.code import SparseCode
from sae.kernels.cpu import loops as cpu_loops
from sae.kernels.cpu import runtime
from sae.kernels.cpu.state import SCORE_BYTES, Buffers, Gradients, Part, Pass, decode, ordered_sum, sum_rows


def lock() -> contextlib.AbstractContextManager:
    """The process-wide lock, looked up at each call because a forked child gets its own."""
    return runtime.LOCK


# -- forward and backward, sparse or dense ----------------------------------------------------------------------------


def reconstruct(
    buffers: Buffers, done: Pass, b_dec: Float[Tensor, " d_out"]
) -> Float[Tensor, "n_prefixes n_rows d_out"]:
    """Reconstruction from each prefix."""
    if not done.dense:
        return decode(done.code, done.w_dec, b_dec, done.ends)
    out = b_dec.detach().repeat(len(done.ends), done.code.n_rows, 1)
    for lo, hi in row_chunks(done):
        acts = written_out(buffers, done, lo, hi)
        for level, (begin, end) in enumerate(done.blocks()):
            if level:
                out[level, lo:hi] = out[level - 1, lo:hi]
            with runtime.columns(out.shape[2]):
                out[level, lo:hi].addmm_(acts[:, begin:end], done.w_dec[begin:end])
    return out


def row_chunks(done: Pass) -> list[tuple[int, int]]:
    """Ranges of rows whose dense activations fit the buffer."""
    n_chunk = max(1, SCORE_BYTES // (4 * done.code.d_sae))
    return [(lo, min(lo + n_chunk, done.code.n_rows)) for lo in range(0, done.code.n_rows, n_chunk)]


def written_out(buffers: Buffers, done: Pass, lo: int, hi: int) -> Float[Tensor, "n_chunk d_sae"]:
    """Dense activations of some rows."""
    acts = buffers.space("acts", (hi - lo, done.code.d_sae))
    runtime.run(cpu_loops.densify, runtime.even(hi - lo), *done.entries, lo, acts.numpy())
    return acts


def suffix_sums(
    buffers: Buffers, done: Pass, g_x_hat: Float[Tensor, "n_prefixes n_rows d_out"] | None
) -> Float[Tensor, "n_prefixes n_rows d_out"]:
    """Gradients that reach a feature: summed over its own prefix and all longer ones."""
    shape = (len(done.ends), done.code.n_rows, done.w_dec.shape[1])
    if g_x_hat is None:
        return torch.zeros(shape)
    if len(done.ends) == 1:
        return g_x_hat.contiguous()
    sums = buffers.space("suffix_sums", (shape[0] * shape[1], shape[2])).view(shape)
    sums[-1] = g_x_hat[-1]
    for level in range(len(done.ends) - 2, -1, -1):
        torch.add(g_x_hat[level], sums[level + 1], out=sums[level])
    return sums


def gradients(
    buffers: Buffers, done: Pass, g_value: Float[Tensor, " nnz"] | None,
    by_level: Float[Tensor, "n_prefixes n_rows d_out"],
) -> Gradients:
    """All gradients of a pass, from those of its values and of its reconstructions (as returned by `suffix_sums`)."""
    compute = dense_gradients if done.dense else sparse_gradients
    return compute(buffers, done, torch.empty(0) if g_value is None else g_value.contiguous(), by_level)


def sparse_gradients(
    buffers: Buffers, done: Pass, g_value: Float[Tensor, " nnz_or_none"],
    by_level: Float[Tensor, "n_prefixes n_rows d_out"],
) -> Gradients:
    """Sparse backward: one pass over the active entries, sorted by feature."""
    (d_sae, d_in), nnz = done.w_enc.shape, done.code.feature.numel()
    indptr, feature, value = done.entries
    starts, order, rows = np.zeros(d_sae + 1, np.int64), np.empty(nnz, np.int64), np.empty(nnz, np.int32)
    with runtime.timed("plan_by_feature"):
        cpu_loops.plan_by_feature(indptr, feature, value, d_sae, starts, order, rows)
    work = starts[:-1] + np.arange(d_sae)
    n_ranges = min(64, d_sae)
    bounds = [*np.searchsorted(work, np.arange(n_ranges) * (starts[-1] + d_sae) / n_ranges).tolist(), d_sae]
    g_entry = torch.zeros(nnz)
    g = Gradients(
        buffers.take_spare((d_sae, d_in)), buffers.take_spare(tuple(done.w_dec.shape)), torch.empty(d_sae),
        torch.zeros(d_in), g_entry, torch.empty(d_sae), torch.empty(d_sae, 2), torch.empty(d_sae),
    )
    levels = np.searchsorted(np.array(done.ends), np.arange(d_sae), side="right").astype(np.int32)
    levels[levels == len(done.ends)] = -1
    g_pre = runtime.run(
        cpu_loops.backward_features, bounds, starts, order, rows, value, g_value.numpy(), bool(g_value.numel()),
        by_level.numpy(), levels, done.x.numpy(), done.w_enc.numpy(), done.w_dec.numpy(), g.g_enc.numpy(),
        g.g_dec.numpy(), g.g_bias.numpy(), g_entry.numpy(), *stats_of(g),
    )
    g.g_pre = ordered_sum(g_pre)
    return g


def stats_of(g: Gradients) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row statistics as numpy arrays for the loops."""
    assert g.enc2 is not None and g.dec2 is not None and g.radial is not None
    return g.enc2.numpy(), g.dec2.numpy(), g.radial.numpy()


def dense_gradients(
    buffers: Buffers, done: Pass, g_value: Float[Tensor, " nnz_or_none"],
    by_level: Float[Tensor, "n_prefixes n_rows d_out"],
) -> Gradients:
    """Dense backward, in chunks of rows."""
    d_sae = done.code.d_sae
    g = Gradients(
        buffers.take_spare(tuple(done.w_enc.shape)).zero_(), buffers.take_spare(tuple(done.w_dec.shape)).zero_(),
        torch.zeros(d_sae), torch.zeros(done.x.shape[1]), torch.zeros(done.code.feature.numel()),
    )
    has_value = bool(g_value.numel())
    for lo, hi in row_chunks(done):
        acts = written_out(buffers, done, lo, hi)
        for level, (begin, end) in enumerate(done.blocks()):
            with runtime.columns(by_level.shape[2]):
                g.g_dec[begin:end].addmm_(acts[:, begin:end].t(), by_level[level, lo:hi])
        g_acts = acts.zero_()  # features beyond the last prefix only get the gradient of their values
        for level, (begin, end) in enumerate(done.blocks()):
            with runtime.columns(end - begin):
                g_acts[:, begin:end] = by_level[level, lo:hi] @ done.w_dec[begin:end].t()
        runtime.run(
            cpu_loops.pick_entries, runtime.even(hi - lo), *done.entries, lo, g_acts.numpy(), g_value.numpy(),
            has_value, g.g_entry.numpy(),
        )
        with runtime.columns(done.x.shape[1]):
            g.g_enc.addmm_(g_acts.t(), done.x[lo:hi])
        g.g_bias += g_acts.sum(0)
    with runtime.columns(1):  # one thread, because the summation order of a matrix-vector product depends on their number
        g.g_pre = -(g.g_bias @ done.w_enc)
    return g


def add_part(done: Pass, g: Gradients, part: Part, of_part: Gradients) -> None:
    """Add the gradients of a pass over some features to those of the full pass."""
    ids = part.ids
    g.g_bias.index_add_(0, ids, of_part.g_bias)
    g.g_pre += of_part.g_pre
    if g.enc2 is None:
        g.g_enc.index_add_(0, ids, of_part.g_enc)
        g.g_dec.index_add_(0, ids, of_part.g_dec)
        return
    runtime.run(
        cpu_loops.add_rows, runtime.even(ids.numel()), ids.numpy(), of_part.g_enc.numpy(), of_part.g_dec.numpy(),
        g.g_enc.numpy(), g.g_dec.numpy(), done.w_dec.numpy(), *stats_of(g),
    )


def input_gradient(done: Pass, g: Gradients) -> Float[Tensor, "n_rows d_in"]:
    """∂x = Σ ∂value · W_enc[:, feature]."""
    code = SparseCode(done.code.feature, g.g_entry, done.code.n_rows, done.code.d_sae, done.code.indptr, done.code.k)
    return decode(code, done.w_enc, torch.zeros(done.x.shape[1]), (done.code.d_sae,))[0]


# -- autograd ---------------------------------------------------------------------------------------------------------


class Autoencode(torch.autograd.Function):
    """(value, x_hat, aux_hat) of a pass and of one over the dead features (`part`), with a joint backward."""

    @staticmethod
    def forward(ctx, buffers, done, part, x, W_enc, b_enc, W_dec, b_dec, b_pre):  # noqa: ARG004
        """Decode the codes, which are already selected."""
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(W_enc, W_dec)  # so autograd checks that they are not modified before backward
        ctx.buffers, ctx.done, ctx.part = buffers, done, part
        with lock():
            aux_hat = None if part is None else reconstruct(buffers, part.done, torch.zeros(W_dec.shape[1]))[0]
            # detach: an output referenced by its own node would never be freed
            return done.code.value.detach(), reconstruct(buffers, done, b_dec), aux_hat

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g_value, g_x_hat, g_aux_hat):
        """Compute all gradients."""
        _, W_dec = ctx.saved_tensors
        buffers, done, part, needs = ctx.buffers, ctx.done, ctx.part, ctx.needs_input_grad[3:]
        with lock():
            by_level = suffix_sums(buffers, done, g_x_hat)
            g = gradients(buffers, done, g_value, by_level)
            g_x = input_gradient(done, g) if needs[0] else None
            g_b_dec = sum_rows(by_level[0]) if needs[4] else None
            if g_aux_hat is not None:
                of_part = gradients(buffers, part.done, None, g_aux_hat[None].contiguous())
                add_part(done, g, part, of_part)
                g_x = g_x + input_gradient(part.done, of_part) if needs[0] else None
        g_W_enc = g.g_enc.t()
        buffers.forget_stats()
        if g.enc2 is not None and g.dec2 is not None and g.radial is not None:
            buffers.keep_stats(g_W_enc, W_dec, g.enc2, g.radial)
            buffers.keep_stats(g.g_dec, W_dec, g.dec2, g.radial)
        grads = (g_x, g_W_enc, g.g_bias, g.g_dec, g_b_dec, g.g_pre)
        del g
        return None, None, None, *(grad if need else None for grad, need in zip(grads, needs, strict=True))
