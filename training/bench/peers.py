"""Training steps of other libraries, run in an environment that has them: a worker for `sae bench kernels --peers`.

The environment only needs torch and the library, so this file imports nothing else from this project. Each line on stdin is
a JSON request, each line on stdout its answer: `{"start": PEER, "setup": FILE, "precision"}` → `{"version"}` or
`{"missing"}`; `{"step": batch}` → `{"ms", "loss"}`; `{"peak": true}` → `{"mib"}`. With precision bf16, forward and backward
run under autocast, which is what each library does if configured so.

Every library runs its own published training step on the weights and batches of the setup file: forward, loss, backward,
clipping, Adam, counters.
"""

import importlib.metadata
import json
import resource
import sys
import time
import types
from pathlib import Path
from typing import Any

import torch


class SAELens:
    """SAELens: `SAETrainer._train_step` of a `TopKTrainingSAE`."""

    package = "sae-lens"

    def __init__(self, setup: dict[str, Any]) -> None:
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        W_enc, W_dec = setup["W_enc"], setup["W_dec"]
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(
            d_in=W_enc.shape[0], d_sae=W_enc.shape[1], k=setup["k"], device=setup["device"], dtype="float32",
            apply_b_dec_to_input=True, decoder_init_norm=1.0,
        ))
        with torch.no_grad():
            sae.W_enc.copy_(W_enc)
            sae.W_dec.copy_(W_dec)
            sae.b_enc.zero_()
            sae.b_dec.zero_()
        n_rows = setup["batches"].shape[1]
        trainer = SAETrainerConfig(
            total_training_samples=n_rows * 10_000, train_batch_size_samples=n_rows, lr=setup["lr"],
            lr_end=setup["lr"], device=setup["device"], autocast=setup["precision"] == "bf16",
        )
        self.trainer = SAETrainer(trainer, sae, iter(()))
        self.dead = setup["dead"]

    def step(self, x: torch.Tensor) -> float:
        """Take one training step; return its loss."""
        if self.dead is not None:
            self.trainer.n_forward_passes_since_fired[self.dead] = 1e9
        out = self.trainer._train_step(self.trainer.sae, x)
        self.trainer.n_training_steps += 1
        return float(out.losses["mse_loss"].detach())


class DictionaryLearning:
    """dictionary_learning: `TopKTrainer.update`."""

    package = "dictionary-learning"

    def __init__(self, setup: dict[str, Any]) -> None:
        # the package imports nnsight for its activation buffers, which aren't used when training on given rows
        unused = types.ModuleType("nnsight")
        unused.LanguageModel = object  # type: ignore[attr-defined]
        sys.modules.setdefault("nnsight", unused)
        from dictionary_learning.trainers.top_k import TopKTrainer

        W_enc, W_dec, self.dead = setup["W_enc"], setup["W_dec"], setup["dead"]
        self.trainer = TopKTrainer(
            steps=10_000, activation_dim=W_enc.shape[0], dict_size=W_enc.shape[1], k=setup["k"], layer=0, lm_name="",
            lr=setup["lr"], warmup_steps=1, auxk_alpha=0 if self.dead is None else 1 / 32, device=setup["device"],
        )
        self.autocast = autocast(setup)
        with torch.no_grad():
            self.trainer.ae.encoder.weight.copy_(W_enc.t())
            self.trainer.ae.decoder.weight.copy_(W_dec.t())
        self.n_steps = 1  # 0 would set the decoder bias to a geometric median first

    def step(self, x: torch.Tensor) -> float:
        """Take one training step; return its loss."""
        if self.dead is not None:
            self.trainer.num_tokens_since_fired[self.dead] = 10**9
        self.n_steps += 1
        with self.autocast:
            return float(self.trainer.update(self.n_steps, x))


class Sparsify:
    """sparsify: its `Trainer`'s step on a `SparseCoder`, with Adam. It uses bf16 autocast itself."""

    package = "eai-sparsify"

    def __init__(self, setup: dict[str, Any]) -> None:
        if setup["device"] == "cpu" or setup["precision"] != "bf16":
            raise ModuleNotFoundError("its kernels run on GPUs, and its forward pass in bf16")
        from sparsify import SparseCoder, SparseCoderConfig

        W_enc, W_dec, self.dead = setup["W_enc"], setup["W_dec"], setup["dead"]
        config = SparseCoderConfig(num_latents=W_enc.shape[1], k=setup["k"])
        self.coder = SparseCoder(W_enc.shape[0], config, device=setup["device"], dtype=torch.float32)
        with torch.no_grad():
            self.coder.encoder.weight.copy_(W_enc.t())
            self.coder.W_dec.copy_(W_dec)
        self.optimizer = torch.optim.Adam(self.coder.parameters(), lr=setup["lr"], fused=True)
        self.since_fired = torch.zeros(W_enc.shape[1], dtype=torch.int64, device=setup["device"])

    def step(self, x: torch.Tensor) -> float:
        """Take one training step; return its squared error per row."""
        self.coder.set_decoder_norm_to_unit_norm()
        variance = (x - x.mean(0)).square().sum()
        out = self.coder(x, dead_mask=self.dead, total_variance=variance)
        (out.fvu if self.dead is None else out.fvu + out.auxk_loss / 32).backward()
        self.coder.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.since_fired += len(x)
        self.since_fired[out.latent_indices.flatten()] = 0
        return float(out.fvu.detach() * variance / len(x))


def autocast(setup: dict[str, Any]) -> torch.autocast:
    """Autocast to bf16, if the setup's precision is bf16."""
    kind = torch.device(setup["device"]).type
    return torch.autocast(kind, torch.bfloat16, enabled=setup["precision"] == "bf16")


def peak_mib(device: str = "cpu") -> float:
    """Peak memory of this process in MiB; on a GPU, peak memory allocated by torch."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        # not getrusage, which starts at the parent's memory when it forked this process
        kib = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(kib) / 1024
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


PEERS: dict[str, type[SAELens] | type[DictionaryLearning] | type[Sparsify]] = {
    "SAELens": SAELens, "dictionary_learning": DictionaryLearning, "sparsify": Sparsify,
}


def start(request: dict[str, Any]) -> tuple[Any, torch.Tensor | None, dict[str, Any]]:
    """Set up a peer; return it, the batches, and the answer."""
    setup = torch.load(request["setup"], weights_only=True) | {"precision": request["precision"]}
    torch.set_num_threads(setup["n_threads"])
    try:
        peer = PEERS[request["start"]](setup)
    except ModuleNotFoundError as missing:
        return None, None, {"missing": str(missing)}
    return peer, setup["batches"], {"version": importlib.metadata.version(peer.package)}


def answer(peer: Any, batches: torch.Tensor, request: dict[str, Any]) -> dict[str, Any]:
    """Answer a request: one timed step, or the peak memory so far."""
    if "peak" in request:
        return {"mib": peak_mib(str(batches.device))}
    x = batches[request["step"] % len(batches)]
    began = time.perf_counter()
    loss = peer.step(x)  # a float, so the device is synchronised
    return {"ms": (time.perf_counter() - began) * 1e3, "loss": loss}


def main() -> None:
    """Serve requests until stdin ends."""
    out, sys.stdout = sys.stdout, sys.stderr  # libraries print
    peer, batches = None, None
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            peer, batches, reply = start(request)
        else:
            reply = answer(peer, batches, request)  # type: ignore[arg-type]
        out.write(json.dumps(reply) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
