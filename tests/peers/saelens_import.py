"""An SAE trained by SAELens' own code, imported: FVE and CE recovered must be SAELens' own, and its features browse.

    python -m tests.peers.saelens_import --saelens .peers/saelens/bin/python [--folder .peers/import]

Activations of SmolLM2-135M after block 9 are written here; SAELens trains a BatchTopK of 2,304 features on them in its own
environment (`SAETrainer`, input norm estimated and folded) and saves it as it does. `sae import` makes a run of it. SAELens
then evaluates the folder on the tokens and rows that the import was judged on: `ExplainedVarianceCalculator` for
the variance explained, `get_recons_loss` over its `HookedProxyLM` for the cross-entropy with and without the SAE.

Its explained variance is our FVE: 1 − Σ‖x − x̂‖² / Σ‖x − mean‖² about the mean of the rows evaluated. Its ablation to zero
takes BOS with it, where ours leaves masked rows as they are; so ablations by our definition are run through its model too,
and its own score is printed beside. What SAELens trained is kept in the folder and used again. Exit code 1 if a figure
differs by more than `BOUNDS`.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

HOOK, MODULE = "blocks.9.hook_resid_post", "model.layers.9"
D_IN, D_SAE, K, BATCH_ROWS, N_ROWS_TRAINED = 576, 2304, 32, 1024, 409_600
FIGURES = ("fve", "l0", "ce_clean", "ce_spliced", "ce_mean", "ce_zero", "ce_recovered_mean", "ce_recovered_zero", "kl")
SHARES = ("fve", "ce_recovered_mean", "ce_recovered_zero", "kl")
BOUNDS = dict.fromkeys(FIGURES, 1e-4) | dict.fromkeys(SHARES, 1e-6) | {"l0": 1e-2}
OVERRIDES = [
    "corpus.n_tokens=153_600", "corpus.held_out=0.1", "eval.n_rows=8_192", "eval.n_tokens=8_160", "model.dtype=float32",
]
SHOWN = "{:28s} {:>12} {:>12} {:>10}{}"


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


# -- here -------------------------------------------------------------------------------------------------------------


def config_of(folder: Path):
    """The corpus and model of the whole comparison, as the import will resolve them."""
    from training.config import reading as configs

    fields = {
        "name": "rows", "model": {"name": "smollm2-135m"}, "corpus": {"sources": "python-stdlib"}, "site": {"input": HOOK},
        "cache": {"dir": str(folder / "cache")}, "sae": {"variant": "topk", "d_sae": D_SAE, "k": K},
    }
    (config,) = configs.resolve(fields, OVERRIDES)
    return config


def write_rows(folder: Path) -> None:
    """Kept training rows of the hook, for SAELens to train on."""
    from training.activations.calibration import KeepMask
    from training.activations.harvest import open_data
    from training.display import Display

    config = config_of(folder)
    data = open_data(config, (HOOK,), Display())
    mask = KeepMask(data.source, data.tokens, config.data.model_copy(update={"mask_hooks": (HOOK,)}))
    seqs = data.tokens.sequences(held_out=False)
    x = data.source.rows(HOOK, seqs, data.tokens.n_ctx)[mask.keep(seqs, data.tokens.n_ctx)]
    save_file({"x": x.contiguous()}, folder / "train.safetensors")
    say(f"{len(x):,} rows for SAELens to train on")


def write_judged(folder: Path, run: Path) -> None:
    """Tokens, mask and rows that the run's summary is of, and the mean it is about."""
    from sae import load
    from training.config import reading as configs
    from training.display import Display
    from training.importing.run import judged
    from training.model.load import load_model
    from training.model.packaged import packaged_dir

    (config,) = configs.read(run / "config.yaml")
    model = load_model(config.model.name, device=config.model.device, dtype=config.model.dtype)
    found = judged(config, model, Display(quiet=True))
    spliced = found.tokens
    tokens = torch.from_numpy(spliced.tokens.tokens[spliced.seqs]).long()
    save_file({
        "x": found.rows.acts[HOOK].float().contiguous(), "mean": load(run).target.mean.clone(), "tokens": tokens,
        "keep": spliced.mask.keep(spliced.seqs, tokens.shape[1]).view(tokens.shape),
        "special": torch.tensor(sorted(model.special_ids)),
    }, folder / "judged.safetensors")
    (folder / "model.json").write_text(json.dumps(str(packaged_dir("smollm2-135m"))))


def browse(run: Path) -> None:
    """Index the run, print a feature, and open the pages about it."""
    import os

    from analysis.commands import index, show
    from analysis.index import open_index

    assert index([str(run), "--quiet", "--rows", "20480"]) == 0
    opened = open_index(run)
    feature = opened.top("n_active", where="density < 0.05")["feature"].to_pylist()[0]
    assert show([str(run), str(feature), "--n", "2", "--groups", "top"]) == 0
    os.environ["SAESCOPE_RUNS"] = str(run.parent)
    from tests.dashboard.pages import html, said, visit

    for page in ("runs", "features", "feature", "prompt"):
        app = visit(page=page, run=run.name, f=str(feature))
        assert run.name in said(app), page
        say(f"page {page}: {len(html(app)):,} characters of HTML, no exception")


# -- there: SAELens ---------------------------------------------------------------------------------------------------


def train(folder: Path) -> None:
    """Train with SAELens, and save the inference form."""
    import sae_lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(0)
    x = load_file(folder / "train.safetensors")["x"]

    def batches():
        while True:
            for rows in torch.randperm(len(x)).split(BATCH_ROWS):
                if len(rows) == BATCH_ROWS:
                    yield x[rows].float()

    metadata = SAEMetadata(hook_name=HOOK, model_name="smollm2-135m", prepend_bos=True, context_size=256)
    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(
        d_in=D_IN, d_sae=D_SAE, k=K, device="cpu", normalize_activations="expected_average_only_in", metadata=metadata,
    ))
    trainer = SAETrainer(SAETrainerConfig(
        total_training_samples=N_ROWS_TRAINED, train_batch_size_samples=BATCH_ROWS, lr=1e-3, lr_end=1e-4,
        lr_warm_up_steps=20, lr_decay_steps=80, device="cpu", n_batches_for_norm_estimate=50,
    ), sae, batches())
    trainer.fit().save_inference_model(folder / "batchtopk")
    say(f"SAELens {sae_lens.__version__} trained a BatchTopK on {trainer.n_training_samples:,} rows")


@torch.no_grad()
def evaluate(folder: Path) -> None:
    """SAELens' figures of its SAE on the rows and tokens that the import was judged on."""
    import sae_lens
    from sae_lens.evals import ExplainedVarianceCalculator, get_recons_loss
    from sae_lens.load_model import load_model
    from sae_lens.training.activation_scaler import ActivationScaler

    sae = sae_lens.SAE.load_from_disk(str(folder / "batchtopk"))
    judged = load_file(folder / "judged.safetensors")
    x, mean = judged["x"], judged["mean"]
    acts = sae.encode(x)
    x_hat = sae.decode(acts)
    explained = ExplainedVarianceCalculator()
    explained.add_batch(sae_output=x_hat, hidden_acts=x)
    figures = {"fve": explained.compute(), "l0": float((acts != 0).sum(1).double().mean())}
    model = load_model("AutoModelForCausalLM", json.loads((folder / "model.json").read_text()), "cpu", hook_names=[MODULE])
    tokens, keep, special = judged["tokens"], judged["keep"], judged["special"].tolist()
    assert bool((keep == ~torch.isin(tokens, judged["special"])).all()), "a row is masked by its norm; SAELens masks tokens"

    def ablated(value: torch.Tensor, mask: torch.Tensor):
        return lambda acts, hook: torch.where(mask[..., None], value.to(acts), acts)

    sums = dict.fromkeys(("clean", "spliced", "mean", "zero", "kl", "theirs_zero", "n"), 0.0)
    for batch, mask in zip(tokens.split(4), keep.split(4), strict=True):
        found = get_recons_loss(
            sae, model, ActivationScaler(), batch, compute_kl=True, compute_ce_loss=True, ignore_tokens=special,
            hook_name=MODULE)
        sums["clean"] += float(found["ce_loss_without_sae"].double().sum())
        sums["spliced"] += float(found["ce_loss_with_sae"].double().sum())
        sums["theirs_zero"] += float(found["ce_loss_with_ablation"].double().sum())
        sums["kl"] += float(found["kl_div_with_sae"][:, :-1].double().sum())
        for name, value in (("mean", mean), ("zero", torch.zeros_like(mean))):
            _, loss = model.run_with_hooks(
                batch, return_type="both", loss_per_token=True, fwd_hooks=[(MODULE, ablated(value, mask))])
            sums[name] += float(loss.double().sum())
        sums["n"] += batch.numel() - len(batch)
    ce = {name: value / sums["n"] for name, value in sums.items()}
    figures |= {f"ce_{name}": ce[name] for name in ("clean", "spliced", "mean", "zero")} | {"kl": ce["kl"]}
    for name in ("mean", "zero"):
        figures[f"ce_recovered_{name}"] = (ce[name] - ce["spliced"]) / (ce[name] - ce["clean"])
    figures["ce_loss_score"] = (ce["theirs_zero"] - ce["spliced"]) / (ce["theirs_zero"] - ce["clean"])
    (folder / "theirs.json").write_text(json.dumps(figures, indent=1))


# -- here again -------------------------------------------------------------------------------------------------------


def compare(ours: dict[str, float], theirs: dict[str, float]) -> bool:
    """Print every figure beside SAELens'; whether all are within bounds."""
    say("\n" + SHOWN.format("held out", "sae import", "SAELens", "difference", ""))
    good = True
    for name in FIGURES:
        apart = abs(ours[name] - theirs[name])
        within = apart <= BOUNDS[name]
        good &= within
        numbers = [f"{ours[name]:.6f}", f"{theirs[name]:.6f}", f"{apart:.1e}"]
        say(SHOWN.format(name, *numbers, "" if within else "  OUT OF BOUNDS"))
    say(f"SAELens' ce_loss_score, whose ablation takes BOS too: {theirs['ce_loss_score']:.6f}")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saelens", type=Path, help="the Python of SAELens' environment")
    parser.add_argument("--folder", type=Path, default=Path(".peers/import"), help="(default: %(default)s)")
    parser.add_argument("--there", choices=("train", "evaluate"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.there:
        {"train": train, "evaluate": evaluate}[args.there](args.folder)
        return 0
    from training.importing.run import import_run

    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    there = [str(args.saelens), __file__, "--folder", str(folder), "--there"]
    if not (folder / "batchtopk" / "cfg.json").exists():
        if not (folder / "train.safetensors").exists():
            write_rows(folder)
        subprocess.run([*there, "train"], check=True)
    run = folder / "runs" / "batchtopk"
    shutil.rmtree(run, ignore_errors=True)
    import_run(str(folder / "batchtopk"), [*OVERRIDES, f"cache.dir={folder / 'cache'}"], runs=folder / "runs")
    write_judged(folder, run)
    subprocess.run([*there, "evaluate"], check=True)
    summary = json.loads((run / "summary.json").read_text())
    good = compare(summary["heldout"], json.loads((folder / "theirs.json").read_text()))
    browse(run)
    say("\nAll within bounds." if good else "\nSomething is out of bounds.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
