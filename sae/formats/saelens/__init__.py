"""The format of SAELens 6: writing a folder that its `SAE.load_from_disk` opens, and reading any of its folders.

    h = ((norm(x) − b_dec · [apply_b_dec_to_input]) W_enc + b_enc        x̂ = denorm(f W_dec + b_dec)
    standard f = relu(h)     jumprelu f = relu(h) [h > θ]     topk f = relu(topk(h))     abstopk f = h on topk(|h|)
    gated    f = [g + b_gate > 0] relu(g exp(r_mag) + b_mag)  with g = norm(x) W_enc: a jumprelu over W_enc exp(r_mag)
             with θ = max(0, b_mag − b_gate exp(r_mag)), which is how it is read where rows are normalised one by one

Transcoders never subtract b_dec and never undo norm; skip transcoders add W_skip x. Training checkpoints differ in
what is folded: `topk_threshold`, `activation_scaler.json`, decoder norms. What reconstructs the update of a block from
its input is written as a skip transcoder of the block's output, whose skip path passes the input on.

Written files hold everything in the model's units: decoder rows have unit norm, no normalisation is left to do.
"""

from sae.formats.saelens.names import CONFIG, SAELENS_VERSION, SCALER, WEIGHTS
from sae.formats.saelens.reading import of_tensors, read
from sae.formats.saelens.writing import export, folded, unfoldable

__all__ = [
    "CONFIG", "SAELENS_VERSION", "SCALER", "WEIGHTS", "export", "folded", "of_tensors", "read", "unfoldable",
]
