"""Absorption and sparse probes of SAEBench 0.6.0 beside ours, function by function, on the same stored numbers.

    python -m tests.peers.saebench_features --saebench .peers/saebench/bin/python

SAEBench needs packages that exclude ours, so it runs in an environment of its own. `ours` writes activations, codes and a
probe; `theirs` gives its `FeatureAbsorptionCalculator` a model that returns these activations and an SAE that returns these
codes, and its `train_sklearn_probe` these labels; here the two are compared. Exit code 1 if they differ where they should
not. Where they should (signed codes), the case is printed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

BOUND = 1e-4


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


# -- theirs: runs in their environment --------------------------------------------------------------------------------

THEIRS = '''
import json, sys
import torch
from safetensors.torch import load_file
from sae_bench.evals.absorption.feature_absorption_calculator import FeatureAbsorptionCalculator
from sae_bench.evals.sparse_probing.probe_training import get_top_k_mean_diff_mask, train_sklearn_probe

data = load_file(sys.argv[1])


class StoredModel:
    """Returns the stored activation of the word that a prompt ends with."""

    def to_tokens(self, prompt):
        return torch.zeros(1, 3)

    def run_with_cache(self, prompts, names_filter):
        rows = [int(prompt.rsplit("w", 1)[1].split(":")[0]) for prompt in prompts]
        return None, {names_filter[0]: data["x"][rows][:, None].expand(-1, 2, -1)}


class StoredSAE:
    """Returns the stored code of a stored activation."""

    device = "cpu"

    def __init__(self, values):
        self.W_dec, self.values = data["W_dec"], values

    def encode(self, x):
        return self.values[torch.cdist(x, data["x"]).argmin(1)]


out = {}
for name in ("unsigned", "signed"):
    calculator = FeatureAbsorptionCalculator(model=StoredModel(), icl_word_list=["w0"], max_icl_examples=0)
    found = calculator.calculate_absorption(
        StoredSAE(data[name]), [f"w{i}" for i in range(len(data["x"]))], data["probe"], data["main"].tolist(), 0,
        show_progress=False)
    out[name] = {
        "full": [float(word.is_full_absorption) for word in found.word_results],
        "fraction_0.6": [float(word.absorption_fraction) for word in found.word_results]}
train, test = data["train"].bool(), ~data["train"].bool()
for k in (1, 2, 5):
    mask = get_top_k_mean_diff_mask(data["unsigned"][train], data["labels"][train], k)
    _, accuracy = train_sklearn_probe(
        data["unsigned"][train][:, ~mask], data["labels"][train], data["unsigned"][test][:, ~mask], data["labels"][test])
    out[f"probe {k}"] = {"features": (~mask).nonzero().flatten().tolist(), "accuracy": float(accuracy)}
print(json.dumps(out))
'''


def main() -> int:
    """Compare."""
    import numpy as np
    import torch
    from safetensors.torch import save_file
    from scipy.sparse import csr_array

    from analysis.evals.absorption.score import absorbed, parts_of
    from analysis.evals.probes.sparse import mean_difference, ranked, sparse_probe

    parser = argparse.ArgumentParser("saebench_features")
    parser.add_argument("--saebench", required=True, help="the python of an environment with sae-bench==0.6.0")
    python = parser.parse_args().saebench
    g = torch.Generator().manual_seed(0)
    n, d, d_sae = 400, 24, 64
    W = torch.nn.functional.normalize(torch.randn(d_sae, d, generator=g), dim=1)
    probe = torch.nn.functional.normalize(torch.randn(d, generator=g), dim=0)
    W[:8] = torch.nn.functional.normalize(W[:8] + 1.5 * probe, dim=1)
    signed = torch.randn(n, d_sae, generator=g) * (torch.rand(n, d_sae, generator=g) < 0.15)
    unsigned = signed.abs()
    x = unsigned @ W + 0.1 * torch.randn(n, d, generator=g)
    y = unsigned[:, 3] + 0.5 * unsigned[:, 9] + 0.2 * torch.randn(n, generator=g) > 0.3
    data = {"x": x, "W_dec": W, "probe": probe, "main": torch.tensor([0, 1]), "unsigned": unsigned, "signed": signed,
            "labels": y.long(), "train": (torch.arange(n) % 4 > 0).long()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.safetensors"
        save_file({name: one.contiguous() for name, one in data.items()}, path)
        run = subprocess.run([python, "-c", THEIRS, str(path)], capture_output=True, text=True, check=False)
    if run.returncode:
        say(run.stderr[-3000:])
        return 1
    theirs = json.loads(run.stdout.strip().splitlines()[-1])
    ok = True
    for name, values in (("unsigned", unsigned), ("signed", signed)):
        codes = csr_array(values.double().numpy())
        parts = parts_of(codes, x.double().numpy(), probe.double().numpy(), W.double().numpy(), np.array([0, 1]),
                         np.ones(d_sae, dtype=bool))
        ours = absorbed(parts)
        for figure in ("full", "fraction_0.6"):
            a, b = ours[figure], np.array(theirs[name][figure])
            far = np.abs(a - b) > BOUND
            say(f"{name:9} {figure:13} ours {a.mean():.4f}  SAEBench {b.mean():.4f}  rows that differ {int(far.sum())}")
            negative = (values[:, :2] < 0).any(1).numpy()
            # 0.6.0 takes a main feature with a negative value for a silent one
            ok &= name == "signed" or not far.any()
            if figure == "full" and (far & negative & (b == 1)).any():
                row = int(np.flatnonzero(far & negative & (b == 1))[0])
                say(f"  row {row}: main features have the values {values[row, :2].tolist()}, active but negative; SAEBench "
                    f"calls it full absorption, we do not")
    train = data["train"].bool().numpy()
    codes, labels = csr_array(unsigned.double().numpy()), y.numpy()
    for k in (1, 2, 5):
        difference = mean_difference(codes[train], labels[train][:, None], np.ones((int(train.sum()), 1), dtype=bool))[0]
        features = ranked(difference, k)
        right = (sparse_probe(codes[train], labels[train], features).logits(codes[~train]).numpy() > 0) == labels[~train]
        other = theirs[f"probe {k}"]
        same = sorted(features.tolist()) == other["features"]
        say(f"probe k = {k}: ours {right.mean():.4f}  SAEBench {other['accuracy']:.4f} (its classes are not weighted)  "
            f"{'same' if same else 'other'} features")
        ok &= same and abs(right.mean() - other["accuracy"]) < 0.06
    say("ok" if ok else "DIFFERENT")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
