"""Other libraries' training steps, run by an environment that has them: a worker for `sae bench kernels --peers`.

It needs torch and the library only, so this file imports nothing else of this project. Each line on stdin is a JSON
request, each line on stdout its answer: `{"start": PEER, "setup": FILE}` → `{"version"}` or `{"missing"}`;
`{"step": batch}` → `{"ms", "loss"}`; `{"peak": true}` → `{"mib"}`.

Every peer takes its own training step as published, on the weights and batches of the setup file: forward, loss,
backward, clipping, Adam, counters.
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
            d_in=W_enc.shape[0], d_sae=W_enc.shape[1], k=setup["k"], device="cpu", dtype="float32",
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
            lr_end=setup["lr"], device="cpu",
        )
        self.trainer = SAETrainer(trainer, sae, iter(()))
        self.dead = setup["dead"]

    def step(self, x: torch.Tensor) -> float:
        """One training step; its loss."""
        if self.dead is not None:
            self.trainer.n_forward_passes_since_fired[self.dead] = 1e9
        out = self.trainer._train_step(self.trainer.sae, x)
        self.trainer.n_training_steps += 1
        return float(out.losses["mse_loss"].detach())


class DictionaryLearning:
    """dictionary_learning: `TopKTrainer.update`."""

    package = "dictionary-learning"

    def __init__(self, setup: dict[str, Any]) -> None:
        # the package imports nnsight for its activation buffers, which training on given rows does not touch
        unused = types.ModuleType("nnsight")
        unused.LanguageModel = object  # type: ignore[attr-defined]
        sys.modules.setdefault("nnsight", unused)
        from dictionary_learning.trainers.top_k import TopKTrainer

        W_enc, W_dec, self.dead = setup["W_enc"], setup["W_dec"], setup["dead"]
        self.trainer = TopKTrainer(
            steps=10_000, activation_dim=W_enc.shape[0], dict_size=W_enc.shape[1], k=setup["k"], layer=0, lm_name="",
            lr=setup["lr"], warmup_steps=1, auxk_alpha=0 if self.dead is None else 1 / 32, device="cpu",
        )
        with torch.no_grad():
            self.trainer.ae.encoder.weight.copy_(W_enc.t())
            self.trainer.ae.decoder.weight.copy_(W_dec.t())
        self.n_steps = 1  # 0 would set the decoder bias to a geometric median first

    def step(self, x: torch.Tensor) -> float:
        """One training step; its loss."""
        if self.dead is not None:
            self.trainer.num_tokens_since_fired[self.dead] = 10**9
        self.n_steps += 1
        return float(self.trainer.update(self.n_steps, x))


def peak_mib() -> float:
    """The most memory this program has held, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # not getrusage: that begins with what the parent held when it started this process
        kib = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(kib) / 1024
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


PEERS: dict[str, type[SAELens] | type[DictionaryLearning]] = {"SAELens": SAELens, "dictionary_learning": DictionaryLearning}


def start(request: dict[str, Any]) -> tuple[Any, torch.Tensor | None, dict[str, Any]]:
    """The peer, the batches, and the answer."""
    setup = torch.load(request["setup"], weights_only=True)
    torch.set_num_threads(setup["n_threads"])
    try:
        peer = PEERS[request["start"]](setup)
    except ModuleNotFoundError as missing:
        return None, None, {"missing": str(missing)}
    return peer, setup["batches"], {"version": importlib.metadata.version(peer.package)}


def answer(peer: Any, batches: torch.Tensor, request: dict[str, Any]) -> dict[str, Any]:
    """One timed step, or the peak memory so far."""
    if "peak" in request:
        return {"mib": peak_mib()}
    x = batches[request["step"] % len(batches)]
    began = time.perf_counter()
    loss = peer.step(x)
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
