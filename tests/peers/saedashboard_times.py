"""`sae index` beside SAEDashboard, both from the same stored activations of 300k tokens, all features.

    python -m tests.peers.saedashboard_times RUN --python .peers/saedashboard/bin/python [--batches 2] [--out FILE]

The run's cache is cut to 300,000 tokens and written once more as SAEDashboard stores activations (`.pt`, fp32). Ours is
timed after a first run has compiled its loops; it includes loading the model, for the tokens that features promote.
SAEDashboard runs every batch of features in the same way, at its own default size, so a few batches spread over all
features are timed and multiplied by their number; `--batches 0` runs them all.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.corpus_rows import open_rows
from analysis.index import build
from analysis.trained import open_trained
from sae.io.files import write_json

N_TOKENS, MINIBATCH, PER_BATCH = 300_000, 64, 256


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--python", required=True)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    build(args.run, name="peers", n_rows=2048, quiet=True, again=True)
    times = []
    for _ in range(2):
        began = time.perf_counter()
        build(args.run, name="peers", n_rows=N_TOKENS, quiet=True, again=True)
        times.append(time.perf_counter() - began)
    with tempfile.TemporaryDirectory(dir=args.run.parent) as root:
        shape = store_for_them(args.run, Path(root))
        n_all = -(-shape["d_sae"] // PER_BATCH)
        n_batches = args.batches or n_all
        script = Path(__file__).with_name("saedashboard_run.py")
        command = [args.python, str(script), root, str(n_batches), str(PER_BATCH)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        theirs = json.loads(done.stdout.splitlines()[-1])
    whole = statistics.mean(theirs["seconds"]) * n_all
    figures = {
        "n_tokens": shape["n_tokens"], "d_sae": shape["d_sae"], "d_in": shape["d_model"],
        "n_threads": torch.get_num_threads(),
        "ours_s": min(times), "ours_s_all": times, "theirs_batches_s": theirs["seconds"], "their_batches": n_all,
        "their_features_per_batch": PER_BATCH, "theirs_s": whole, "extrapolated": n_batches < n_all,
        "ratio": whole / min(times),
    }
    print(json.dumps(figures, indent=2))  # noqa: T201
    if args.out is not None:
        write_json(args.out, figures)


def store_for_them(run: Path, folder: Path) -> dict[str, Any]:
    """Tokens, activations and SAE of a run as SAEDashboard takes them."""
    trained = open_trained(run)
    rows = open_rows(trained, n_rows=N_TOKENS)
    (hook,), tokens = trained.site.hooks, rows.tokens  # SAEDashboard knows SAEs of one hook
    assert tokens is not None
    np.save(folder / "tokens.npy", tokens)
    (folder / "sae").mkdir()
    for name in ("cfg.json", "sae_weights.safetensors"):
        (folder / "sae" / name).write_bytes((run / name).read_bytes())
    (folder / "cached").mkdir()
    for i, start in enumerate(range(0, len(tokens), MINIBATCH)):
        seqs = np.arange(start, min(start + MINIBATCH, len(tokens)))
        acts = rows.data.source.rows(hook, seqs, rows.n_ctx).float().view(len(seqs), rows.n_ctx, -1)
        torch.save({hook: acts}, folder / "cached" / f"model_activations_{i}.pt")
    model = rows.model()
    shape = {
        "hook": hook, "n_ctx": rows.n_ctx, "d_model": acts.shape[-1], "d_vocab": model.d_vocab, "minibatch": MINIBATCH,
        "n_layers": int(hook.split(".")[1]) + 1, "d_sae": trained.sae.d_sae, "n_tokens": tokens.size,
    }
    (folder / "shape.json").write_text(json.dumps(shape))
    return shape


if __name__ == "__main__":
    main()
