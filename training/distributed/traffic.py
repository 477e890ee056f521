"""What a rank sends in one step of training, in bytes: predicted from a config, as `Wire.sent` counts it.

With S ranks that share the features (`train.shards`), R that share the rows, N = R S, n = batch_rows / R rows and
F = d_sae / S features of a rank, and ring(B, m) = 2 B (m − 1) / m for a sum of B bytes over m ranks:

    gradients        ring(4 F (d_in + d_out + c), R) + ring(4 common, N) + p ring(4 d_in, S)
    candidates       topk, abstopk:               4 n k (S − 1)
                     batchtopk, absbatchtopk:     ring(32,768, N) + 8 (N − 1)      three rounds of counts, whatever k is
                     matryoshka:                  as its base
                     jumprelu, gated, relu:       0                                thresholds are each feature's own
    reconstructions  ring(4 n d_out, S), times the number of prefixes (matryoshka) or two (gated)
    revival          ring(4 n d_out, S) + 4 n min(k_aux, dead) (S − 1), in steps in which a feature is dead (AuxK)
    dead             ring(8 F, R)

c counts the numbers of a feature beside its two rows: 1 (b_enc), and 1 of jumprelu (θ), 2 of gated (r_mag, b_mag). `common`
are the parameters of no feature: d_out (b_dec), and d_in d_out with a skip path. p is 1 where b_dec is taken from the input
(2 for gated, 0 for transcoders). `dead` is the most dead features that a rank holds. AuxK of gated passes as a third pass
(candidates 4 n k_aux (S − 1), and one more reconstruction and p). Scalars (L0, norms, what is logged) are below 1 kB and
left out; so are checkpoints, which each rank writes itself, and held-out evaluation.

Rows cross no wire: each rank reads those it sees.
"""

from sae.variants.gated import GatedConfig
from sae.variants.jumprelu import JumpReLUConfig
from sae.variants.matryoshka import MatryoshkaConfig
from sae.variants.topk import CountConfig
from training.config.schema import Config
from training.distributed.selection import BITS


def bytes_per_step(config: Config, d_in: int, d_out: int, n_ranks: int, n_dead: int = 0) -> dict[str, int]:
    """Bytes that a rank sends in a step at full k, by what they are for.

    Args:
        config: of one SAE.
        d_in: width of the rows that are encoded.
        d_out: width of those that are reconstructed.
        n_ranks: in all.
        n_dead: most dead features that a rank holds.
    """
    sae, S = config.sae, config.train.shards
    R, F = n_ranks // S, config.sae.d_sae // S
    n = config.data.batch_rows // R
    passes = 2 if isinstance(sae, GatedConfig) else 1
    of_input = int(sae.apply_b_dec_to_input and not config.site.cross)
    auxk = getattr(sae, "auxk", None)
    revives = auxk is not None and auxk.coefficient > 0 and n_dead > 0 and S > 1
    k_aux = (auxk.k or max(1, d_in // 2)) if auxk is not None else 0
    beside = 1 + (1 if isinstance(sae, JumpReLUConfig) else 2 if isinstance(sae, GatedConfig) else 0)
    common = d_out * (1 + d_in) if sae.skip else d_out
    one = _ring(4 * n * d_out, S)
    n_prefixes = len(sae.prefixes_at(0)) if isinstance(sae, MatryoshkaConfig) else 1
    sent = {
        "gradients": _ring(4 * F * (d_in + d_out + beside), R) + _ring(4 * common, n_ranks)
        + of_input * passes * _ring(4 * d_in, S),
        "candidates": _candidates(sae, n, n_ranks, S) if isinstance(sae, CountConfig) else 0,
        "reconstructions": passes * n_prefixes * one, "revival": 0, "dead": _ring(8 * F, R),
    }
    if revives and passes == 1:
        sent["revival"] = one + 4 * n * min(k_aux, n_dead) * (S - 1)
    elif revives:
        sent["candidates"] += 4 * n * k_aux * (S - 1)
        sent["reconstructions"] += one
        sent["gradients"] += of_input * _ring(4 * d_in, S)
    return sent


def _candidates(sae: CountConfig, n: int, n_ranks: int, shards: int) -> int:
    if sae.over_batch:
        return sum(_ring(8 << bits, n_ranks) for bits in BITS) + 8 * (n_ranks - 1)
    return 4 * n * sae.k * (shards - 1)


def _ring(n_bytes: int, m: int) -> int:
    return 2 * n_bytes * (m - 1) // m
