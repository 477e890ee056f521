"""Our SAEs opened by SAELens, and SAELens' opened by us: both must compute the same. Exit code 1 if they do not.

    python -m tests.peers.saelens_check --saelens .peers/saelens/bin/python [--rows ROWS.safetensors] [RUN ...]

SAELens needs packages that exclude ours, so it runs in an environment of its own, and the two exchange files:
`ours` (here) writes SAEs with inputs and outputs, `theirs` (there) opens them and writes SAEs of its own, `compare`
(here) opens those. Bounds: active features equal, except where a value lies within 1e-5 of the boundary (the k-th
value, the threshold; for ReLU, of the row's largest value from zero); values to 1e-5 of the row's largest;
reconstructions to 1e-5 of the RMS norm, over rows without such ties. A value is a difference of terms as long as the
centred row, to which fp32 gives a few 1e-7 of that length: rows whose largest value is below a twentieth of it
(`faint`; a ReLU's strongest feature may lie anywhere above zero) are measured by that twentieth.

A RUN is opened in place, on rows drawn around its own features, or on the tensor `x` of `--rows`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

BOUND = 1e-5
UPDATE = "update of a block"
N_ROWS = 512
COLUMNS = ("SAE", "rows", "L0", "|mean|/spread", "faint", "ties", "at tie", "value", "x_hat")
ROW = "{:52s} {:>5} {:>6} {:>13} {:>5} {:>5} {:>8} {:>8} {:>8}{}"
HEAD = ROW.format(*COLUMNS, "")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


# -- shared: realistic rows, and the comparison -----------------------------------------------------------------------


def directions(n: int, d: int, *, outliers: bool = False) -> torch.Tensor:
    """Random unit rows; with outliers, a few dimensions take a large part of every row."""
    rows = torch.randn(n, d)
    if outliers:
        rows[:, :: max(200, d // 3)] *= d**0.5 / 4
    return rows / rows.norm(dim=1, keepdim=True)


def realistic_rows(W_dec: torch.Tensor, k: int, *, outliers: bool = False) -> torch.Tensor:
    """Sums of a few features and noise; with outliers, dimensions with a huge mean, and some rows 30 times as long."""
    n, d = W_dec.shape
    chosen = torch.rand(N_ROWS, n).topk(k, dim=1).indices
    lengths = 2 + torch.empty(N_ROWS, k, 1).exponential_(0.2)
    x = (lengths * W_dec[chosen]).sum(1) + 0.2 * torch.randn(N_ROWS, d)
    mean = torch.randn(d)
    if outliers:
        mean[:: max(200, d // 3)] = 1000
        x[: N_ROWS // 50] *= 30
    return x + mean


def differences(name: str, x: torch.Tensor, a: dict, b: dict, boundary: torch.Tensor | None) -> bool:
    """Print one line; `a` and `b` hold acts and x_hat; `boundary` per feature, or the smallest active value if None."""
    acts, other = a["acts"].double(), b["acts"].double()
    centred = (x - x.mean(0)).norm(dim=1, keepdim=True).double()
    largest = acts.abs().amax(1, keepdim=True)
    faint = largest < centred / 20
    largest = torch.maximum(largest, centred / 20)
    active, active_other = acts != 0, other != 0
    smallest = torch.where(active, acts.abs(), torch.inf).amin(1, keepdim=True)
    edge = smallest.expand_as(acts) if boundary is None else boundary.double().expand_as(acts)
    flipped = active ^ active_other
    scale = torch.where(edge > 0, edge, largest)
    tie = (torch.maximum(acts.abs(), other.abs()) - edge).abs() / scale
    at_tie = float(tie[flipped].max()) if flipped.any() else 0.0
    value = float(((acts - other).abs() / largest)[~flipped].max())
    clean = ~flipped.any(1)
    rms = b["x_hat"].double().pow(2).sum(1).mean().sqrt()
    x_hat = float((a["x_hat"].double() - b["x_hat"].double()).norm(dim=1)[clean].max() / rms)
    good = at_tie <= BOUND and value <= BOUND and x_hat <= BOUND
    far = float(x.mean(0).norm() / centred.median())
    shown = [f"{number:.1e}" for number in (at_tie, value, x_hat)]
    counts = [len(x), f"{active.sum(1).double().mean():.1f}", f"{far:.1f}", int(faint.sum()), int((~clean).sum())]
    say(ROW.format(name, *counts, *shown, "" if good else "  OUT OF BOUNDS"))
    return good


# -- here: SAEs for SAELens -------------------------------------------------------------------------------------------


def our_saes() -> list[tuple[str, object, torch.Tensor]]:
    """Each variant, tiny and realistic, and transcoders."""
    from sae.base import SAE, Transform
    from sae.variants import VARIANTS, relu, topk

    def fill(sae: SAE, x: torch.Tensor, W_dec: torch.Tensor, bias: float) -> SAE:
        with torch.no_grad():
            sae.W_dec.copy_(W_dec)
            enc = W_dec if sae.d_in == sae.d_out else directions(sae.d_sae, sae.d_in)
            sae.W_enc.copy_((enc + 0.02 * torch.randn_like(enc)).t())
            sae.b_enc.normal_(-bias, 0.1)
            sae.b_dec.normal_(0, 0.3)
        return sae

    def around(x: torch.Tensor) -> Transform:
        mean = x.mean(0)
        return Transform(mean, (x.shape[1] ** 0.5 / (x - mean).pow(2).sum(1).mean().sqrt()))

    def learnt(sae: SAE) -> SAE:
        """What variants learn beside the weights: thresholds, magnitudes, a skip path."""
        with torch.no_grad():
            for name, tensor in sae.state_dict().items():
                if name == "theta":
                    tensor.uniform_(0.1, 0.6)
                elif name in ("r_mag", "b_mag"):
                    tensor.normal_(0, 0.3)
                elif name == "W_skip":
                    tensor.normal_(0, 0.3 / sae.d_in**0.5)
                elif name in ("threshold_sum", "threshold_weight"):
                    tensor.fill_(1.7 if name == "threshold_sum" else 0.9)
        return sae

    saes = []
    W_dec = directions(4608, 576)
    x = realistic_rows(W_dec, 32)
    for name, fields in (("abstopk", {"k": 32}), ("jumprelu", {}), ("gated", {}), ("matryoshka", {"k": 32}),
                         ("matryoshka", {"k": 32, "base": "abstopk"})):
        cls, config_class = VARIANTS[name]
        sae = cls(config_class(d_sae=4608, **fields), 576, input=around(x))
        saes.append((" ".join([name, *map(str, fields.values())]), learnt(fill(sae, x, W_dec, 0.5)), x))
    target = realistic_rows(directions(4608, 320), 32)
    steered = [(name, {}) for name in ("relu", "jumprelu", "gated")]
    for name, fields in (*steered, ("batchtopk", {"k": 32}), ("matryoshka", {"k": 32})):
        for skip in (False, True):
            cls, config_class = VARIANTS[name]
            sae = cls(config_class(d_sae=4608, skip=skip, **fields), 576, 320, input=around(x), target=around(target))
            fill(sae, x, directions(4608, 320), 1.0)
            saes.append((f"{name} {'skip ' if skip else ''}transcoder", learnt(sae), x))
    for skip in (False, True):
        config = relu.ReLUConfig(d_sae=4608, skip=skip, apply_b_dec_to_input=False)
        sae = relu.ReLU(config, 576, input=around(x), target=around(realistic_rows(W_dec, 32)))
        saes.append((f"relu {'skip ' if skip else ''}{UPDATE}", learnt(fill(sae, x, W_dec, 1.0)), x))
    for size, d, n, k in (("tiny", 8, 32, 3), ("realistic", 576, 4608, 32)):
        for outliers in (False, True):
            W_dec = directions(n, d, outliers=outliers)
            x = realistic_rows(W_dec, k, outliers=outliers)
            label = f"{size}{', outliers' if outliers else ''}"
            for subtract in (True, False):
                config = {"d_sae": n, "apply_b_dec_to_input": subtract}
                tail = f"{label}{'' if subtract else ', b_dec kept'}"
                sae = topk.TopK(topk.TopKConfig(k=k, **config), d, input=around(x))
                saes.append((f"topk {tail}", fill(sae, x, W_dec, 0), x))
                sae = topk.TopK(topk.BatchTopKConfig(k=k, **config), d, input=around(x))
                fill(sae, x, W_dec, 0).threshold_sum.fill_(1.7)
                sae.threshold_weight.fill_(0.9)
                saes.append((f"batchtopk {tail}", sae, x))
                sae = relu.ReLU(relu.ReLUConfig(**config), d, input=around(x))
                saes.append((f"relu {tail}", fill(sae, x, W_dec * (0.5 + torch.rand(n, 1)), 1.5), x))
    W_dec, x = directions(2048, 320), realistic_rows(directions(2048, 576), 32)
    target = realistic_rows(W_dec, 32, outliers=True)
    sae = relu.ReLU(relu.ReLUConfig(d_sae=2048), 576, 320, input=around(x), target=around(target))
    saes.append(("relu transcoder", fill(sae, x, W_dec * (0.5 + torch.rand(2048, 1)), 1.0), x))
    return saes


def ours(folder: Path, runs: list[Path], rows: Path | None) -> None:
    from sae import load
    from sae.formats import saelens

    given = load_file(rows)["x"].float() if rows else None
    for i, (name, sae, x) in enumerate(our_saes()):
        place = folder / f"{i:03d}"
        metadata = {"hook_name": "blocks.3.hook_resid_pre", "model_name": "none"}
        if name.endswith(UPDATE):
            metadata |= {"hook_name_out": "blocks.3.hook_resid_post", "site": {"update": True}}
        reason = saelens.export(sae, place, metadata=metadata)
        assert reason is None, reason
        _write_outputs(place, name, place, sae, x)
    for run in runs:
        if not (run / saelens.CONFIG).exists():
            say(f"{run}: has no {saelens.CONFIG} for SAELens; left out")
            continue
        sae = load(run, kernels="reference")
        if given is not None and given.shape[1] == sae.d_in:
            x = given
        else:
            W_dec = sae.W_enc.detach().t() / sae.W_enc.detach().norm(dim=0)[:, None]
            x = realistic_rows(W_dec, min(32, sae.d_sae))
            x = sae.input.restore((x - x.mean(0)) * (sae.d_in**0.5 / (x - x.mean(0)).norm(dim=1).mean()))
        _write_outputs(folder / f"run-{run.name}", f"{run}", run, sae, x)


def _write_outputs(place: Path, name: str, sae_folder: Path, sae, x: torch.Tensor) -> None:
    place.mkdir(parents=True, exist_ok=True)
    code = sae.encode(x)
    # SAELens has an update's target, the output of the block
    tensors = {"x": x, "acts": code.to_dense(), "x_hat": sae.decode(code) + (x if name.endswith(UPDATE) else 0)}
    select = sae.select()
    if select.mode == "threshold":
        tensors["boundary"] = torch.as_tensor(select.threshold) * sae.lengths().detach()
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, place / "io.safetensors")
    (place / "case.json").write_text(json.dumps({"name": name, "sae": str(sae_folder.resolve())}))


# -- there: SAELens ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def theirs(folder: Path) -> bool:
    """Open what `ours` wrote, then write SAEs for `compare`."""
    warnings.simplefilter("ignore")
    import sae_lens

    say(f"SAELens {sae_lens.__version__} opens ours:\n{HEAD}")
    good = True
    for place in sorted((folder / "ours").iterdir()):
        case, io = json.loads((place / "case.json").read_text()), load_file(place / "io.safetensors")
        sae = sae_lens.SAE.load_from_disk(case["sae"])
        assert sae.cfg.metadata.hook_name, "the metadata was dropped"
        acts = sae.encode(io["x"])
        # SAELens' decode knows nothing of the input, and leaves the skip path to the whole forward pass
        x_hat = sae(io["x"]) if "skip" in sae.cfg.architecture() else sae.decode(acts)
        result = {"acts": acts, "x_hat": x_hat}
        name = f"{case['name']} -> {sae.cfg.architecture()}"
        good &= differences(name, io["x"], io, result, io.get("boundary"))
    for i, (name, sae, reader, save) in enumerate(_their_saes(sae_lens)):
        _save_theirs(folder / "theirs" / f"{i:03d}", name, sae, reader, save)
    return good


def _their_saes(sae_lens):
    """Every architecture, with weights that have norms of their own, and training forms beside inference forms."""
    from sae_lens.registry import get_sae_class, get_sae_training_class

    d, n, d_out = 64, 512, 48
    common = {"d_in": d, "d_sae": n, "dtype": "float32", "device": "cpu"}

    def build(architecture: str, *, training: bool = False, **cfg):
        sae_class, cfg_class = (get_sae_training_class if training else get_sae_class)(architecture)
        if "transcoder" in architecture:
            cfg |= {"d_out": d_out, "apply_b_dec_to_input": False}
        sae = sae_class(cfg_class(**(common | cfg)))
        for name, parameter in sae.named_parameters():
            parameter.data.normal_()
            if name == "W_dec":
                parameter.data.mul_((0.2 + torch.rand(n, 1)) / parameter.norm(dim=1, keepdim=True))
            elif name in ("threshold", "log_threshold"):
                parameter.data.uniform_(0.5, 12.0)
            elif name in ("r_mag", "W_skip"):
                parameter.data.mul_(0.3)
        if training and hasattr(sae, "topk_threshold"):
            sae.topk_threshold.fill_(5.0)
        return sae

    for architecture in ("standard", "jumprelu", "gated"):
        for norm in ("none", "layer_norm", "constant_norm_rescale"):
            yield f"{architecture} {norm}", (s := build(architecture, normalize_activations=norm)), s, s.save_model
        s = build(architecture, apply_b_dec_to_input=False)
        yield f"{architecture} b_dec kept", s, s, s.save_model
    for architecture in ("topk", "abstopk"):
        for rescale in (False, True):
            for norm in ("none", "layer_norm"):
                s = build(architecture, k=20, rescale_acts_by_decoder_norm=rescale, normalize_activations=norm)
                yield f"{architecture} rescale={rescale} {norm}", s, s, s.save_model
    for architecture in ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"):
        for norm in ("none", "layer_norm"):
            yield f"{architecture} {norm}", (s := build(architecture, normalize_activations=norm)), s, s.save_model
    s = build("standard", reshape_activations="hook_z", metadata=sae_lens.saes.sae.SAEMetadata(hook_name="a.hook_z"))
    yield "standard hook_z", s, s, s.save_model
    s = build("standard").to(dtype=torch.bfloat16)
    yield "standard bfloat16", s, s, s.save_model
    for architecture, cfg in (
        ("standard", {}), ("gated", {}), ("jumprelu", {}), ("topk", {"k": 20}), ("batchtopk", {"k": 20.5}),
        ("matryoshka_batchtopk", {"k": 20, "matryoshka_widths": [128, 512]}), ("abstopk", {"k": 20}),
        ("topk", {"k": 20, "rescale_acts_by_decoder_norm": False}),
        ("batchtopk", {"k": 20, "rescale_acts_by_decoder_norm": False}),
    ):
        s = build(architecture, training=True, **cfg)
        with tempfile.TemporaryDirectory() as inference:
            s.save_inference_model(inference)
            reader = sae_lens.SAE.load_from_disk(inference)
        yield f"{architecture} training form {cfg.get('rescale_acts_by_decoder_norm', '')}", s, reader, s.save_model
        yield f"{architecture} inference form", s, reader, s.save_inference_model
    s = build("standard", training=True, normalize_activations="expected_average_only_in")

    def save_with_scaler(place: Path) -> None:
        s.save_model(place)
        (Path(place) / "activation_scaler.json").write_text('{"scaling_factor": 0.37, "has_whitening": false}')

    reader = build("standard")
    reader.load_state_dict({name: tensor.clone() for name, tensor in s.state_dict().items()})
    reader.fold_activation_norm_scaling_factor(0.37)
    yield "standard checkpoint with scaler", s, reader, save_with_scaler


def _save_theirs(place: Path, name: str, sae, reader, save) -> None:
    place.mkdir(parents=True)
    save(place)
    reader = reader.to(dtype=torch.float32)
    flat = torch.randn(N_ROWS, sae.cfg.d_in) * 2 + 3
    x = flat.view(N_ROWS, 4, -1) if sae.cfg.reshape_activations == "hook_z" else flat
    acts = reader.encode(x)
    # our convention: a value is the length it adds in the model's units
    lengths = acts
    if not getattr(reader.cfg, "rescale_acts_by_decoder_norm", False):
        lengths = acts * reader.W_dec.norm(dim=1)
    if "transcoder" not in name and reader.cfg.normalize_activations == "layer_norm":
        lengths = lengths * (flat - flat.mean(1, keepdim=True)).std(1, keepdim=True)
    elif "transcoder" not in name and reader.cfg.normalize_activations == "constant_norm_rescale":
        lengths = lengths * flat.norm(dim=1, keepdim=True) / flat.shape[1] ** 0.5
    io = {"x": flat, "acts": lengths, "x_hat": reader(x).reshape(N_ROWS, -1)}
    if "topk" not in reader.cfg.architecture():
        # boundaries in the model's units differ from row to row under a row norm; zero measures ties by the largest
        io["boundary"] = torch.zeros(sae.cfg.d_sae)
    save_file({key: tensor.detach().contiguous().clone() for key, tensor in io.items()}, place / "io.safetensors")
    (place / "case.json").write_text(json.dumps({"name": name}))


# -- here again -------------------------------------------------------------------------------------------------------


def compare(folder: Path) -> bool:
    from sae import load

    say(f"\nOurs opens SAELens':\n{HEAD}")
    good = True
    for place in sorted(folder.iterdir()):
        name, io = json.loads((place / "case.json").read_text())["name"], load_file(place / "io.safetensors")
        sae = load(place, kernels="reference")
        code = sae.encode(io["x"])
        result = {"acts": code.to_dense(), "x_hat": sae.decode(code)}
        good &= differences(f"{name} -> {sae.config.variant}", io["x"], io, result, io.get("boundary"))
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saelens", type=Path, help="the Python of SAELens' environment")
    parser.add_argument("--theirs", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help="safetensors file with rows `x` to open the runs on")
    parser.add_argument("runs", nargs="*", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(2)
    if args.theirs:
        return 0 if theirs(args.theirs) else 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours(folder / "ours", args.runs, args.rows)
        there = subprocess.run([args.saelens, __file__, "--theirs", folder], check=False)
        good = compare(folder / "theirs") and there.returncode == 0
    say("\nAll within bounds." if good else "\nSomething is out of bounds.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
