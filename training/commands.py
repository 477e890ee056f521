"""The subcommands of this package: thin wrappers around functions that notebooks can call too."""

import argparse
import importlib.metadata
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.cli import HelpFormatter
from sae.errors import SaescopeError
from sae.io.paths import user_path

if TYPE_CHECKING:
    from training.finish import Result


def _parser(name: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        f"sae {name}", description=description, epilog=epilog, formatter_class=HelpFormatter
    )


def train(argv: list[str]) -> int:
    """Train the SAE or sweep of SAEs that a config describes."""
    parser = _parser(
        "train", "Train the SAE or sweep of SAEs that a config describes.",
        "examples:\n  sae train configs/quickstart.yaml\n  sae train configs/quickstart.yaml name=wide sae.d_sae=16384\n"
        "  sae train configs/quickstart.yaml --resume\n"
        "  sae train configs/quickstart.yaml name=longer train.budget='6 epochs' --from runs/quickstart\n"
        "  sae train configs/sweep.yaml --part 1/2 train.device=cuda:0      # and 2/2 on cuda:1, from one cache\n\n"
        "--fields lists every config key with its meaning.",
    )
    parser.add_argument("config", nargs="?", help="a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="override keys of the file: sae.k=64")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run of the same config")
    parser.add_argument("--from", dest="from_run", metavar="RUN", type=user_path,
                        help="start a new run from this run's last checkpoint, with a longer train.budget if you like")
    parser.add_argument("--part", metavar="I/N", help="train every N-th SAE of the sweep; other jobs train the rest")
    parser.add_argument("--runs", default="runs", help="folder of the runs (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress display")
    parser.add_argument("--fields", action="store_true", help="list every config key and exit")
    args = parser.parse_intermixed_args(argv)
    if args.fields:
        print(_fields())
        return 0
    if args.config is None:
        parser.error("which config? for example configs/quickstart.yaml")
    from training.distributed import launch
    from training.run import sweep
    from training.sweep_part import SweepPart

    part = None if args.part is None else SweepPart.read(args.part)
    with launch.speaking_once():
        results = sweep(args.config, args.overrides, runs=args.runs, resume=args.resume, from_run=args.from_run,
                        quiet=args.quiet, part=part)
    if not args.quiet and launch.rank() == 0:
        _report(results)
    return 0


def _fields() -> str:
    """Every config key with its default and meaning, including the keys of each variant."""
    from training.config.field_reference import fields

    return fields()


def _report(results: "list[Result]") -> None:
    """Print the summary table and the commands to run next."""
    _held_out(results)
    for one in results[:1]:
        print(f"\nsummary    {one.folder}/summary.json\nbrowse     make dashboard   (or: sae dashboard)")
        print(f"in Python  import sae; sae.load({str(one.folder)!r})")


def _held_out(results: "list[Result]") -> None:
    from training.display import Display

    # dead: didn't fire in the last dead window of training; silent: never fired on held-out rows
    header = ("run", "L0", "FVE", "dead (training)", "silent (held out)", "CE rec. (mean)", "CE rec. (zero)", "KL")
    held = results[0].summary["heldout"]
    title = f"Held out: {held['n_units']} {held['interval_unit']}s" if "n_units" in held else "Held out"
    Display().table(title, [_row(one) for one in results], header)


def _row(result: "Result") -> tuple[str, ...]:
    held, dead = result.summary["heldout"], result.summary["dead"]
    l0 = "–" if held.get("l0") is None else f"{held['l0']:.1f}"
    silent = "–" if held.get("silent") is None else f"{held['silent']:.2%}"

    def with_interval(key: str) -> str:
        if held.get(key) is None:
            return "–"
        interval = held.get(f"{key}_interval")
        return f"{held[key]:.3f}" + (f"\n[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")

    return (
        result.summary["name"], l0, with_interval("fve"), _dead(dead), silent,
        with_interval("ce_recovered_mean"), with_interval("ce_recovered_zero"),
        with_interval("kl"),
    )


def _dead(dead: dict[str, Any] | None) -> str:
    if dead is None:
        return "–"
    return "not measured" if dead["share"] is None else f"{dead['share']:.2%}"


def import_(argv: list[str]) -> int:
    """Import an SAE or transcoder from SAELens or Gemma Scope as a run, to index, browse, steer and evaluate."""
    parser = _parser(
        "import", "Import an SAE or transcoder from SAELens or Gemma Scope as a run. Index, dashboard, mdl and steering "
        "open it like any other run. Held-out FVE, L0 and CE recovered are measured on a corpus.",
        "examples:\n  sae import saes/gpt2-layer-8                            # cfg.json names model and hook\n"
        "  sae import hub:jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre\n"
        "  sae import hub:google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71 \\\n"
        "      --model hub:google/gemma-2-2b --hook blocks.20.hook_resid_post\n"
        "  sae import saes/mine --name mine corpus.n_tokens=1M eval.n_rows=64k --corpus text:notes.txt\n\n"
        "Metrics use the rows that `sae train` would keep: no BOS, special or padding tokens, no outliers. Pickles are\n"
        "never opened. If the model isn't available on this machine, the run is imported without metrics.",
    )
    parser.add_argument(
        "path", help="a folder with SAELens's cfg.json or Gemma Scope's params.npz, or hub:ORG/NAME/FOLDER[@REVISION]"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="config keys under corpus., cache., data., eval. or model.",
    )
    parser.add_argument("--model", help="the model it was trained on (default: from cfg.json)")
    parser.add_argument("--hook", help="the hook it reads: blocks.9.hook_resid_post (default: from cfg.json)")
    parser.add_argument("--target", help="the hook a transcoder reconstructs (default: from cfg.json)")
    parser.add_argument("--name", help="the run's folder under --runs (default: from PATH)")
    parser.add_argument("--corpus", default="python-stdlib", help="text to evaluate and index it on (default: %(default)s)")
    parser.add_argument("--runs", default="runs", help="folder of the runs (default: %(default)s)")
    parser.add_argument("--no-eval", action="store_true", help="skip the evaluation; the model isn't loaded")
    parser.add_argument("--quiet", action="store_true", help="no progress display")
    args = parser.parse_intermixed_args(argv)
    from training.importing.run import import_run

    made = import_run(
        args.path, args.overrides, model=args.model, hook=args.hook, target=args.target, corpus=args.corpus, name=args.name,
        runs=args.runs, evaluate=not args.no_eval, quiet=args.quiet,
    )
    if not args.quiet:
        if made.summary["heldout"]:
            _held_out([made])
        print(f"\nsummary    {made.folder}/summary.json\nindex      sae index {made.folder}")
        print(f"browse     sae dashboard --runs {args.runs}")
    return 0


def cache(argv: list[str]) -> int:
    """Build, verify, list and remove activation caches."""
    parser = _parser("cache", "Build, verify, list and remove activation caches.")
    commands = parser.add_subparsers(dest="what", required=True)
    make = commands.add_parser("make", help="build the cache a config needs, continuing an interrupted build")
    make.add_argument("config", help="a YAML file")
    make.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="override keys of the file: sae.k=64")
    for name, text, where in (
        ("verify", "read all files and compare checksums", ", or the URL of a store"), ("rm", "remove a cache", ""),
    ):
        sub = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        sub.add_argument("name", help=f"the cache's folder, or its name under --dir{where}")
        sub.add_argument("--dir", type=user_path, default="cache", help="folder of the caches (default: %(default)s)")
        if name == "rm":
            sub.add_argument("--yes", action="store_true", help="remove it without asking")
    ls = commands.add_parser("ls", help="list caches with their hooks and sizes")
    ls.add_argument("--dir", type=user_path, default="cache", help="folder of the caches (default: %(default)s)")
    args = parser.parse_args(argv)
    return {"make": _cache_make, "verify": _cache_verify, "ls": _cache_ls, "rm": _cache_rm}[args.what](args)


def plan(argv: list[str]) -> int:
    """Estimate what a training run needs on N GPUs: memory, communication, disk, time."""
    parser = _parser(
        "plan", "Estimate what a training run needs on N GPUs before you rent them: memory per rank, bytes sent per step, "
        "disk and time, with the assumptions made. Reads configs only; no weights are loaded.",
        "examples:\n  sae plan configs/gemma-2-2b.yaml --gpus 8\n"
        "  sae plan configs/topk.yaml sae.d_sae=1048576 --gpus 16 --gpu h200 --json\n"
        "  sae plan configs/gemma-2-2b.yaml --gpus 8 --d-in 2304 --model-params 2.6e9   # without the hub",
    )
    from training.plan import commands

    commands.arguments(parser)
    return commands.run(parser.parse_intermixed_args(argv))


def _cache_make(args: argparse.Namespace) -> int:
    from training.activations.harvest import open_data, open_heldout
    from training.config import reading as configs
    from training.display import Display
    from training.storage.mirror import store_of

    members = configs.read(args.config, args.overrides)
    if members[0].cache.mode != "disk" or not members[0].corpus.in_cache:
        raise SaescopeError(
            f"{args.config} needs no cache: with this cache.mode and corpus no activations are written to disk."
        )
    hooks = tuple(dict.fromkeys(hook for m in members for hook in (*m.site.hooks, *(m.data.mask_hooks or ()))))
    data = open_data(members[0], hooks, Display())
    open_heldout(members[0], data, Display())
    assert data.tokens.folder is not None
    print(store_of(data.tokens.folder).place())
    return 0


def _cache_folder(args: argparse.Namespace) -> Path:
    candidates = [user_path(args.name), args.dir / args.name]
    for folder in candidates:
        if _is_cache(folder):
            return folder
    there = ", ".join(_cache_names(args.dir)) or "none"
    found = next((f"{folder} is not a cache" for folder in candidates if folder.exists()), f"no cache {args.name!r}")
    raise SaescopeError(f"{found}; caches in {args.dir}: {there}.")


def _is_cache(folder: Path) -> bool:
    """Whether a folder is a cache, by the format in its manifest.json: other artefacts have that file too."""
    from sae.io.files import format_of
    from training.corpus.tokens import FORMAT

    return format_of(folder / "manifest.json") == FORMAT


def _cache_names(root: Path) -> list[str]:
    return sorted(p.parent.name for p in root.glob("*/manifest.json") if _is_cache(p.parent))


def _cache_verify(args: argparse.Namespace) -> int:
    from training.activations.cache import verify
    from training.activations.own_rows import is_cache, place_of
    from training.storage.mirror import store_of
    from training.storage.remote import is_url

    in_store = is_url(args.name) and is_cache(args.name)
    folder = place_of(args.name) if in_store else _cache_folder(args)
    problems = verify(folder)
    if problems:
        raise SaescopeError(" ".join(problems))
    print(f"{store_of(folder).place()}: whole")
    return 0


def _cache_ls(args: argparse.Namespace) -> int:
    from sae.io.files import read_json
    from training.display import Display

    rows = []
    for name in _cache_names(args.dir):
        folder = args.dir / name
        manifest = read_json(folder / "manifest.json")
        n_seqs, n_ctx = manifest.get("n_seqs"), manifest.get("n_ctx")
        n_tokens = f"{n_seqs * n_ctx:,}" if isinstance(n_seqs, int) and isinstance(n_ctx, int) else "damaged"
        hooks = sorted(p.parent.name for p in (folder / "acts").glob("*/manifest.json"))
        rows.append((name, n_tokens, f"{_size(folder) / 1e6:,.0f}", " ".join(hooks)))
    Display().table(str(args.dir), rows, ("cache", "tokens", "MB", "hooks"))
    return 0


def _cache_rm(args: argparse.Namespace) -> int:
    import shutil

    from sae.io.locks import locked
    from training.storage.sharing import CLAIMS, claimants
    from training.storage.store import LocalStore

    folder = _cache_folder(args)
    # resolve links: the target is what takes the space. And `.` has no name to lock
    place = folder.resolve()
    if not args.yes and not _agreed(f"remove {place}, {_size(place) / 1e6:,.0f} MB?"):
        print(f"kept {place}")
        return 0
    with locked(place):
        if busy := claimants(LocalStore(place), "acts"):
            raise SaescopeError(
                f"{place} is being filled by {' and '.join(busy)}; wait for them to finish, or remove "
                f"{place}/acts/{CLAIMS} if they are no longer running."
            )
        shutil.rmtree(place)
    if folder.is_symlink():
        folder.unlink()
    print(f"removed {place}")
    return 0


def _size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def _agreed(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        raise SaescopeError(f"{question} There is no terminal to answer on; pass --yes to skip this question.") from None


def bench(argv: list[str]) -> int:
    """Benchmarks: harvest (model), cache (reading), kernels (steps), train and e2e (whole runs), index."""
    # higher packages register their benchmarks as entry points, like their subcommands
    others = {entry.name: entry for entry in importlib.metadata.entry_points(group="saescope.benchmarks")}
    if argv and argv[0] in others:
        return int(others[argv[0]].load()(argv[1:]))
    parser = _parser(
        "bench", "Benchmarks. Each prints its results; --out writes them as JSON.",
        f"further benchmarks: {', '.join(sorted(others))}" if others else "",
    )
    commands = parser.add_subparsers(dest="what", required=True)
    harvest = commands.add_parser("harvest", help="activations, compared with the bare Hugging Face forward pass")
    harvest.add_argument("--model", default="smollm2-135m", help="default: %(default)s")
    harvest.add_argument("--hook", default="blocks.9.hook_resid_post", help="default: %(default)s")
    harvest.add_argument("--dtype", default="auto", help="default: %(default)s")
    reading = commands.add_parser("cache", help="reading batches, compared with a plain copy of the same bytes")
    reading.add_argument("--rows", type=int, default=262_144, help="default: %(default)s")
    reading.add_argument("--d-in", type=int, default=576, help="default: %(default)s")
    kernels = commands.add_parser("kernels", help="training steps, compared with dense torch and other libraries")
    kernels.add_argument("--shape", action="append", metavar="ROWS,D_IN,D_SAE,K", help="repeatable; default: three sizes")
    kernels.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    kernels.add_argument("--variants", default="topk,abstopk,batchtopk,matryoshka", help="default: %(default)s")
    kernels.add_argument("--precision", help="encoder precisions, such as bf16,fp32 (default: by device)")
    kernels.add_argument("--peers", type=user_path, help="python of the environment built by `make bench-peers`")
    kernels.add_argument("--loss-steps", type=int, default=0, help="train to this step and print the losses there")
    kernels.add_argument("--dead", default="0,0.01", help="fractions of dead features (default: %(default)s)")
    kernels.add_argument("--no-compile", action="store_true", help="skip the dense step with torch.compile")
    kernels.add_argument("--no-eager", action="store_true", help="skip the dense step in eager torch")
    kernels.add_argument("--no-memory", action="store_true", help="skip peak memory (it starts a process for each case)")
    kernels.add_argument("--warmup", type=int, default=2, help="untimed warm-up steps (default: %(default)s)")
    whole = commands.add_parser("train", help="train a config with sparse kernels and with kernels=reference")
    whole.add_argument("--config", default="configs/quickstart.yaml", help="default: %(default)s")
    whole.add_argument("--steps", type=int, default=30, help="timed steps for each (default: %(default)s)")
    e2e = commands.add_parser(
        "e2e", help="whole training runs and cache builds, compared with the limit set by their parts",
        formatter_class=HelpFormatter, description=_E2E, epilog=_E2E_EXAMPLES,
    )
    e2e.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="override config keys of the training runs")
    e2e.add_argument("--size", action="append", metavar="NAME", help="small, gpt2 or large; repeatable (default: small)")
    e2e.add_argument("--legs", default="fill,cache,rows,stream", help="default: %(default)s")
    e2e.add_argument("--device", default="auto", help="device of model and SAE: cpu, cuda, auto (default: %(default)s)")
    e2e.add_argument("--seconds", type=float, default=4.0, help="timed seconds of each training run (default: %(default)s)")
    e2e.add_argument("--rounds", type=int, default=1, help="report medians over this many rounds (default: %(default)s)")
    e2e.add_argument("--dir", type=user_path, help="scratch folder, removed afterwards (default: the temporary folder)")
    for sub in (harvest, reading, kernels):
        sub.add_argument("--repeats", type=int, default=7, help="default: %(default)s")
    for sub in (harvest, reading, kernels, whole, e2e):
        sub.add_argument("--out", type=user_path, help="write the results as JSON to this file, or into this folder")
    args = parser.parse_args(argv)
    measure = {"harvest": _harvest, "cache": _reading, "kernels": _kernels, "train": _whole, "e2e": _e2e}[args.what]
    figures = measure(args)
    if args.out is not None:
        from sae.io.files import write_json
        from training.bench.setup import file_name, machine

        figures = {"machine": machine()} | figures
        write_json(args.out / file_name(args.what, figures) if args.out.is_dir() else args.out, figures)
    return 0


_E2E = """Training from a cache, from your own rows (fp16 .npy) and from a stream, and filling a cache: tokens/s, and as a
fraction of the limit set by the parts: the step alone with rows already on the device, the bare Hugging Face forward,
reading (page cache included), writing, host-device copies. Model (random weights), text and rows are temporary."""
_E2E_EXAMPLES = """sizes:
  small  d 128, d_sae 2,048, k 16, batches of 1,024       a minute on two cores
  gpt2   d 768, d_sae 16,384, k 32, batches of 4,096      for a GPU; writes 7 GB
  large  d 2,304, d_sae 65,536, k 64, batches of 8,192    for a GPU; writes 10 GB

examples:
  sae bench e2e
  sae bench e2e --size gpt2 --size large --out benchmarks
  sae bench e2e --size gpt2 --legs cache,stream sae.variant=batchtopk train.checkpoint_every='1 min'"""


def _e2e(args: argparse.Namespace) -> dict[str, Any]:
    from rich.console import Console

    from training.bench.e2e import bench_e2e
    from training.bench.tables import e2e_table

    figures = bench_e2e(
        args.size or ("small",), legs=args.legs.split(","), device=args.device, seconds=args.seconds, rounds=args.rounds,
        overrides=args.overrides, folder=args.dir,
    )
    for result in figures["results"]:
        Console(width=140).print(e2e_table(result))
    return figures


def _harvest(args: argparse.Namespace) -> dict[str, Any]:
    from training.bench.harvest import bench_harvest

    return _printed(bench_harvest(args.model, args.hook, args.dtype, repeats=args.repeats))


def _reading(args: argparse.Namespace) -> dict[str, Any]:
    from training.bench.cache import bench_cache

    return _printed(bench_cache(n_rows=args.rows, d_in=args.d_in, repeats=args.repeats))


def _whole(args: argparse.Namespace) -> dict[str, Any]:
    from training.bench.train import bench_train

    return _printed(bench_train(args.config, n_steps=args.steps))


def _kernels(args: argparse.Namespace) -> dict[str, Any]:
    from rich.console import Console

    from training.bench.kernels import bench_kernels
    from training.bench.setup import Shape
    from training.bench.tables import show

    try:
        shapes = [Shape(*map(int, text.split(","))) for text in args.shape] if args.shape else None
    except (ValueError, TypeError):
        wrong = " ".join(args.shape)
        raise SaescopeError(f"--shape {wrong}: must be ROWS,D_IN,D_SAE,K, such as 2048,768,16384,32.") from None
    try:
        shares = [float(share) for share in args.dead.split(",")]
    except ValueError:
        raise SaescopeError(f"--dead {args.dead}: must be fractions between 0 and 1, such as 0,0.01.") from None
    figures = bench_kernels(
        shapes, device=args.device, repeats=args.repeats, variants=args.variants.split(","), peers=args.peers,
        precisions=args.precision.split(",") if args.precision else None,
        loss_steps=args.loss_steps, dead_shares=shares, compiled=not args.no_compile, dense=not args.no_eager,
        memory=not args.no_memory, warmup=args.warmup,
    )
    show(figures, Console(width=140).print)
    return figures


def _printed(figures: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(figures, indent=2))
    return figures
