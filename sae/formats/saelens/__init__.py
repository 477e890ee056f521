"""The SAELens 6 format: write a folder that `SAE.load_from_disk` opens, and read any SAELens folder.

    h = ((norm(x) − b_dec · [apply_b_dec_to_input]) W_enc + b_enc        x̂ = denorm(f W_dec + b_dec)
    standard f = relu(h)     jumprelu f = relu(h) [h > θ]     topk f = relu(topk(h))     abstopk f = h on topk(|h|)
    gated    f = [g + b_gate > 0] relu(g exp(r_mag) + b_mag)  with g = norm(x) W_enc: a jumprelu over W_enc exp(r_mag)
             with θ = max(0, b_mag − b_gate exp(r_mag)); read as such with per-row normalisation

Transcoders never subtract b_dec and never undo norm; skip transcoders add W_skip x. Training checkpoints differ in
what is folded: `topk_threshold`, `activation_scaler.json`, decoder norms. A transcoder from a block's input to its update
is written as a skip transcoder to the block's output, whose skip path adds the input.

Exported weights are in the model's units: decoder rows have unit norm, and all normalisation is folded in.
"""

from sae.formats.saelens.names import CONFIG, SAELENS_VERSION, SCALER, WEIGHTS
from sae.formats.saelens.reading import of_tensors, read
from sae.formats.saelens.writing import export, folded, unfoldable

__all__ = [
    "CONFIG", "SAELENS_VERSION", "SCALER", "WEIGHTS", "export", "folded", "of_tensors", "read", "unfoldable",
]
