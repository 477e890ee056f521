"""`sae plan`: a table of the possible grids, and the assumptions made."""

import argparse
import json
from collections.abc import Sequence

from sae.errors import SaescopeError
from training.config import reading as configs
from training.display import Display
from training.plan.estimate import OnGrid, Plan, facts, plan
from training.plan.machine import GPUS, Machine, gpu_called


def run(args: argparse.Namespace) -> int:
    """Print the plan of a config."""
    if args.gpus < 1:
        raise SaescopeError(f"--gpus {args.gpus}: must be at least 1.")
    for key in ("wire", "disk"):
        if getattr(args, key) <= 0:
            raise SaescopeError(f"--{key} {getattr(args, key)}: must be a rate above 0, in GB/s.")
    members = configs.read(args.config, args.overrides)
    machine = Machine(gpu_called(args.gpu), 1e9 * args.wire, 1e9 * args.disk)
    hooks = dict.fromkeys((hook for m in members for hook in (*m.site.hooks, *(m.data.mask_hooks or ()))), args.d_in)
    n_params = None if args.model_params is None else int(args.model_params)
    found = plan(members, args.gpus, machine, widths=hooks if args.d_in else None, n_params=n_params)
    if args.json:
        print(json.dumps(facts(found), indent=2))
        return 0
    show(found, machine, members[0].name)
    return 0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("config", help="a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="override keys of the file: sae.k=64")
    parser.add_argument("--gpus", type=int, default=1, help="number of GPUs, one rank each (default: %(default)s)")
    parser.add_argument("--gpu", default="h100", help=f"{', '.join(GPUS)} (default: %(default)s)")
    parser.add_argument("--wire", type=float, default=50.0, help="network GB/s per rank (default: %(default)s)")
    parser.add_argument("--disk", type=float, default=2.0, help="disk GB/s per rank (default: %(default)s)")
    parser.add_argument("--d-in", type=int, help="row width, if the model's config doesn't give it")
    parser.add_argument("--model-params", type=float, help="model parameters, if its config is unavailable: 2.6e9")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def show(found: Plan, machine: Machine, name: str) -> None:
    """Print the table, a breakdown of one grid, and the assumptions."""
    display, best = Display(), found.best(machine.gpu.memory)
    header = ("grid", "GPU GB per rank", "host GB per rank", "MB sent per rank and step", "ms per step", "training")
    rows = [_row(one, fastest=one is best, fits=one.device_bytes <= machine.gpu.memory) for one in found.grids]
    display.table(f"{name}: {found.clock.n_steps:,} steps on {found.grids[0].grid.n} × {machine.gpu.name}", rows, header)
    shown = best or found.grids[-1]
    print(f"\n{_grid(shown)}, per rank")
    for title, amounts, unit in (("GPU memory", shown.device, 1e9), ("host memory", shown.host, 1e9),
                                 ("sent per step", shown.wire, 1e6)):
        print(f"  {title:14} {_parts(amounts, unit)}")
    print(f"\ndisk           {_parts(found.disk, 1e9)}")
    if found.cache_seconds:
        print(f"cache          {found.rows.n:,} rows in {_time(found.cache_seconds)}")
    print("\nassumed: " + ";\n         ".join(found.assumptions) + ".")


def _row(one: OnGrid, *, fastest: bool, fits: bool) -> tuple[str, ...]:
    remark = " (fastest that fits)" if fastest else "" if fits else " (does not fit)"
    return (
        _grid(one) + remark, f"{one.device_bytes / 1e9:,.1f}", f"{sum(one.host.values()) / 1e9:,.1f}",
        f"{one.wire_bytes / 1e6:,.2f}", f"{1e3 * one.step_seconds:,.2f}", _time(one.training_seconds),
    )


def _grid(one: OnGrid) -> str:
    if one.grid.n == 1:
        return "one rank"
    names = {"rows": one.grid.rows, "features": one.grid.shards}
    return " × ".join(f"{what} over {n}" for what, n in names.items() if n > 1)


def _parts(amounts: dict[str, int], unit: float) -> str:
    name = "GB" if unit == 1e9 else "MB"
    parts: Sequence[str] = [f"{what} {n / unit:,.2f} {name}" for what, n in amounts.items() if n]
    return ", ".join(parts) or "nothing"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
