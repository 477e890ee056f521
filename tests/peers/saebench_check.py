"""Our core figures beside SAEBench's, of the same SAEs, model and tokens. Exit code 1 where they differ and should not.

    python -m tests.peers.saebench_check --saebench .peers/saebench/bin/python [--out benchmarks/saebench.json]

SAEBench 0.6.0 runs in an environment of its own and by its own functions (`saebench_run`), on a tiny GPT-2 with random
weights that both sides read from one folder, and on two SAEs trained here, one of signed codes. No token is masked there,
so that figures that both have must be equal:

    CE of the model, with the SAE spliced in and with the site ablated to zero, token by token; KL, token by token
    CE recovered against zero; L0; density of features

and where SAEBench is wrong, the difference is the one that its formula has, worked out on a sheet of paper:

    x = (1, 2), (3, 6)    x̂ = (1, 2), (3, 5)     variance 5, error 0.5 a row: explained variance 0.9, mse 0.5
    explained variance    1 − 0.5 / (25 − 12.5²): the mean of all squares, 12.5, is taken for the mean, and squared
    mse                   0.25, and 0.125 of the same rows twice: the error of each row is divided by their number, twice
    density               a feature that is only ever negative never fires
    bits                  one feature, active in half of the rows, at 10 or 60: 1 + ½ bits. SAEBench counts zeros among the
                          values and takes 100 for the largest: the bins hold 3/4 and 1/4, so 1 + ½ · 0.811
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import training
from analysis.evals.common.context import Context, open_context
from analysis.evals.metrics import core
from analysis.mdl.description_length import count_levels, entropy
from sae.code import from_dense
from tests.helpers import write_corpus

HOOK = "blocks.0.hook_resid_post"
DIGITS = 2e-5
"""Relative error allowed between two sums in fp32."""
SAES = {"topk": {"variant": "topk", "d_sae": 96, "k": 6}, "abstopk": {"variant": "abstopk", "d_sae": 96, "k": 6}}


def write_model(folder: Path) -> None:
    """A GPT-2 of two blocks with random weights, and a tokenizer of bytes that has no BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=257, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3,
                        bos_token_id=None, eos_token_id=256)
    GPT2LMHeadModel(config).save_pretrained(folder)
    vocab = {piece: i for i, piece in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "<eos>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)


def train(root: Path, name: str, sae: dict[str, Any]) -> Path:
    """An SAE of the model's first block; no row is masked."""
    fields = {
        "name": name, "model": {"name": f"local:{root / 'model'}", "device": "cpu", "dtype": "float32", "batch_seqs": 8},
        "corpus": {"sources": f"text:{root / 'corpus'}/*.txt", "n_ctx": 32, "n_tokens": 20_000, "held_out": 0.3},
        "cache": {"dir": str(root / "cache"), "dtype": "float32"}, "site": HOOK,
        "data": {"batch_rows": 128, "superblock_rows": 4096, "n_calib": 16, "outlier_multiple": None}, "sae": sae,
        "train": {"budget": "2 epochs", "device": "cpu", "kernels": "reference"}, "eval": {"n_rows": 960, "n_tokens": 930},
    }
    training.train(fields, runs=root / "runs", quiet=True)
    return root / "runs" / name


class Lines:
    """What was compared; printed as it comes."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def equal(self, sae: str, what: str, ours: float, theirs: float, error: float | None = None) -> None:
        """Two figures that should agree; `error` is the largest over tokens, where there are many."""
        error = abs(ours - theirs) / max(abs(theirs), 1e-12) if error is None else error
        self._add(sae, what, ours, theirs, error <= DIGITS, f"{error:.1e}")

    def wrong(self, sae: str, what: str, ours: float, theirs: float, known: float) -> None:
        """A figure of SAEBench's that is wrong: it must be what its formula gives by hand."""
        self._add(sae, what, ours, theirs, math.isclose(theirs, known, rel_tol=1e-4, abs_tol=1e-6), f"by hand {known:.4g}")

    def _add(self, sae: str, what: str, ours: float, theirs: float, good: bool, note: str) -> None:
        self.rows.append({"sae": sae, "figure": what, "ours": ours, "saebench": theirs, "as_expected": good, "note": note})
        mark = "" if good else "   NOT AS EXPECTED"
        sys.stdout.write(f"{sae:10s} {what:34s} {ours:>12.6g} {theirs:>12.6g}  {note}{mark}\n")


def compare(lines: Lines, name: str, context: Context, folder: Path) -> None:
    """One SAE's figures."""
    theirs = json.loads((folder / f"{name}.json").read_text())
    single = load_file(folder / f"{name}.safetensors")
    sae, rows, costs = context.trained.sae, context.rows, context.costs(context.sae)
    found = core.run(context, sae, core.Settings()).metrics
    for what, key in (("clean", "ce_loss_without_sae"), ("spliced", "ce_loss_with_sae"), ("zero", "ce_loss_with_ablation")):
        ours, other = costs.nats[what], single[key].double().numpy()
        error = float(np.abs(ours - other).max() / other.mean())
        lines.equal(name, f"CE {what}, token by token", float(ours.mean()), theirs[key], error)
    # of every position but the last, which predicts nothing that is there
    kl, other = costs.nats["kl"], single["kl_div_with_sae"][:, :-1].double().numpy()
    error = float(np.abs(kl - other).max() / other.mean())
    lines.equal(name, "KL, token by token", float(kl.mean()), float(other.mean()), error)
    value = {key: metric.value or 0.0 for metrics in found.values() for key, metric in metrics.items()}
    # ablating this model's random weights helps it, so `core` leaves CE recovered undefined; the formulas still agree
    recovered = (value["ce_zero"] - value["ce_spliced"]) / (value["ce_zero"] - value["ce_clean"])
    lines.equal(name, "CE recovered against zero", recovered, theirs["ce_loss_score"])
    lines.equal(name, "L0", value["l0"], theirs["l0"])
    density = context.code(sae).counts().double() / len(rows)
    positive = from_dense(context.code(sae).to_dense().clamp_min(0)).counts().double() / len(rows)
    gap = float((single["density"].double() - density).abs().max())
    if name == "topk":
        lines.equal(name, "density, feature by feature", float(density.sum()), float(single["density"].sum()), gap)
    else:
        lines.wrong(name, "Σ density of signed codes", float(density.sum()), float(single["density"].sum()),
                    float(positive.sum()))
    x, x_hat = rows.x.double(), sae.decode(context.code(sae)).double()
    squared = (x - x_hat).square().sum(1)
    squares = float(x.square().mean())
    wrong = 1 - float(squared.mean()) / (float(x.square().sum(1).mean()) - squares**2)
    lines.wrong(name, "explained variance", value["fve"], theirs["explained_variance"], wrong)
    lines.wrong(name, "mse", value["mse"], theirs["mse"], float(squared.mean()) / len(rows))


def compare_by_hand(lines: Lines, folder: Path) -> None:
    """The cases on paper."""
    theirs = json.loads((folder / "hand.json").read_text())
    x, x_hat = torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    from tests.analysis.evals.rows import rows_of

    ours = core.fidelity(rows_of(x, n_documents=1), x_hat, torch.zeros(2))
    lines.wrong("by hand", "explained variance", ours["fve"].value or 0.0, theirs["once"]["explained_variance"],
                1 - 0.5 / (25 - 12.5**2))
    lines.wrong("by hand", "mse", ours["mse"].value or 0.0, theirs["once"]["mse"], 0.25)
    lines.wrong("by hand", "mse of the rows twice", ours["mse"].value or 0.0, theirs["twice"]["mse"], 0.125)
    lines.wrong("by hand", "density, the negative feature", 0.5, theirs["once"]["density"][1], 0.0)
    code = from_dense(torch.tensor([0.0, 0.0, 10.0, 60.0] * 8)[:, None])
    quarter = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    lines.wrong("by hand", "bits of one feature", entropy(count_levels([code], 10.0)), theirs["mdl"], 1 + quarter / 2)


def main() -> int:
    """Train, let SAEBench measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saebench", required=True, help="the Python that has SAEBench")
    parser.add_argument("--out", type=Path, help="write what was compared as JSON")
    args = parser.parse_args()
    lines = Lines()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_model(root / "model")
        write_corpus(root / "corpus", n_files=120, n_chars=200)
        contexts = {name: open_context(train(root, name, sae), "full") for name, sae in SAES.items()}
        for name, context in contexts.items():
            (root / "saes" / name).mkdir(parents=True)
            for file in ("cfg.json", "sae_weights.safetensors"):
                shutil.copy(context.trained.folder / file, root / "saes" / name / file)
        spliced = next(iter(contexts.values())).spliced
        assert spliced.tokens.eligible.all() and spliced.tokens.tokens is not None
        tokens = torch.from_numpy(spliced.tokens.tokens[spliced.seqs].astype(np.int32))
        save_file({"tokens": tokens}, root / "tokens.safetensors")
        script = Path(__file__).with_name("saebench_run.py")
        subprocess.run([args.saebench, str(script), str(root)], check=True)
        for name, context in contexts.items():
            # the rows of those sequences
            assert np.array_equal(np.unique(context.rows.seq), np.sort(context.spliced.seqs))
            compare(lines, name, context, root)
        compare_by_hand(lines, root)
    if args.out:
        from sae.io.files import write_json

        write_json(args.out, {"saebench": "0.6.0", "rows": lines.rows})
    return 0 if all(row["as_expected"] for row in lines.rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
