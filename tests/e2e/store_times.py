"""One training from a cache on disk, and from the same cache in an S3 store on loopback: equal bytes, and tokens/s of both.

    python -m tests.e2e.store_times

The server (moto, in Python) and the training share this machine's cores, so that the store's figures are a lower bound.
"""

import argparse
import os
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.e2e.kills import compare
from tests.training.storage.server import s3_server

N_CTX, D = 256, 576


def made(folder: Path, n_rows: int, shard_rows: int) -> None:
    """A cache of random rows, there or in the store that the folder mirrors."""
    import torch

    from training.activations.cache import fill
    from training.corpus.tokens import write_tokens
    from training.storage.mirror import store_tokens

    n_seqs = n_rows // N_CTX
    ids, eligible = np.zeros((n_seqs, N_CTX), np.int32), np.ones((n_seqs, N_CTX), bool)
    seqs, facts = np.arange(n_seqs), dict[str, Any](random=0)
    segments, labels = np.stack([seqs * N_CTX, np.full(n_seqs, N_CTX), seqs], 1), [{"label": str(seq)} for seq in seqs]
    tokens = write_tokens(folder, ids, seqs % 20 == 19, eligible, segments, labels, facts)
    store_tokens(folder)

    def rows(seqs: np.ndarray) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(int(seqs[0]))
        return {"acts": torch.randn(len(seqs), N_CTX, D, generator=generator).bfloat16()}

    fill(tokens, rows, {"acts": D}, dtype="bfloat16", shard_rows=shard_rows)


def trained(folder: str, runs: Path, block_rows: int) -> float:
    """Train from a cache; tokens per second."""
    from training.run import train

    config = {
        "name": "run", "model": None, "corpus": {"sources": f"acts:{folder}", "n_ctx": N_CTX}, "site": "acts",
        "data": {"batch_rows": 2048, "superblock_rows": 32_768, "block_rows": block_rows},
        "sae": {"variant": "topk", "d_sae": 2048, "k": 16}, "train": {"budget": "2 epochs"},
    }
    return float(train(config, runs=runs, quiet=True).summary["timing"]["tokens_per_s"])


def read(given: str, block_rows: int) -> float:
    """Superblocks one after the other, nothing trained: rows per second."""
    from training.activations.batches import Batches
    from training.activations.cache import CacheSource
    from training.activations.calibration import KeepMask
    from training.activations.own_rows import place_of
    from training.config.schema import DataConfig
    from training.corpus.tokens import open_tokens

    folder = place_of(given)
    tokens, source = open_tokens(folder), CacheSource(folder, ["acts"])
    mask = KeepMask(source, tokens, DataConfig(mask_hooks=("acts",)))
    batches = Batches(
        source, tokens, mask, ["acts"], seed=0, batch_rows=2048, superblock_rows=32_768, block_rows=block_rows
    )
    began = time.monotonic()
    n = sum(len(batches.superblock(0, i).rows) for i in range(batches.n_superblocks))
    return n / (time.monotonic() - began)


def main(n_rows: int) -> None:
    """Both places, with blocks of 32 rows and of whole sequences."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = int(one.getsockname()[1])
    with tempfile.TemporaryDirectory() as root, s3_server(port) as server:
        os.environ.update(server.variables | {"SAESCOPE_HOME": f"{root}/home"})
        from training.storage.mirror import mirror_of

        url = f"{server.make_bucket('bucket')}/cache"
        places = {"disk": f"{root}/cache", "store": url}
        for folder in (Path(root) / "cache", mirror_of(url)):
            made(folder, n_rows, 16_384)
        trained(places["disk"], Path(root) / "warm-up", N_CTX)
        for block_rows in (32, N_CTX):
            weights = {}
            for place, folder in places.items():
                runs = Path(root) / f"runs-{place}"
                speed = trained(folder, runs, block_rows)
                weights[place] = {p.name: p.read_bytes() for p in (runs / "run/final").iterdir()}
                weights[place].pop("sae.json")  # names the folder of its rows
                alone = read(folder, block_rows)
                sys.stdout.write(f"{place}, blocks of {block_rows} rows: {speed:,.0f} tokens/s, read alone {alone:,.0f}\n")
                shutil.rmtree(runs)
            compare(weights["disk"], weights["store"])
        sys.stdout.write("weights are byte-identical\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=131_072)
    main(parser.parse_args().rows)
