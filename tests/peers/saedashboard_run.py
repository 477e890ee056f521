"""Run in SAEDashboard's own environment: its feature data for some batches of features from stored activations.

    python saedashboard_run.py FOLDER N_BATCHES FEATURES_PER_BATCH

FOLDER holds what `tests.peers.saedashboard_times` wrote: `tokens.npy`, `sae/` (as SAELens reads it), `cached/` with the
activations as SAEDashboard caches them, `shape.json`. The model has random weights and is never run: SAEDashboard asks
it for its hook names, its unembedding and its tokenizer only.
"""

import json
import sys
import time
from pathlib import Path


def main() -> None:
    import numpy as np
    import torch
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner
    from sae_lens import SAE, HookedSAETransformer
    from transformer_lens import HookedTransformerConfig

    folder, n_batches, per_batch = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(2)
    shape = json.loads((folder / "shape.json").read_text())
    config = HookedTransformerConfig(
        n_layers=shape["n_layers"], d_model=shape["d_model"], n_ctx=shape["n_ctx"], d_head=64, d_vocab=shape["d_vocab"],
        act_fn="silu", d_mlp=64, device="cpu",
    )
    model = HookedSAETransformer(config)
    encoder = SAE.load_from_disk(str(folder / "sae"), device="cpu")
    # rows have unit norm already; SAELens refuses to fold those of a TopK SAE, and SAEDashboard always asks for it
    encoder.fold_W_dec_norm = lambda: None
    tokens = torch.from_numpy(np.load(folder / "tokens.npy").astype("int64"))

    def seconds(features: list[int]) -> float:
        vis = SaeVisConfig(
            hook_point=shape["hook"], features=features, minibatch_size_features=per_batch,
            minibatch_size_tokens=shape["minibatch"], cache_dir=folder / "cached",
        )
        began = time.perf_counter()
        SaeVisRunner(vis).run(encoder, model, tokens)
        return time.perf_counter() - began

    step = shape["d_sae"] // n_batches
    times = [seconds(list(range(i * step, i * step + per_batch))) for i in range(n_batches)]
    print(json.dumps({"seconds": times, "per_batch": per_batch, "n_threads": torch.get_num_threads()}))  # noqa: T201


main()
