"""Peak memory of a training step, with each contestant measured in its own process."""

from collections.abc import Sequence
from typing import Any

import torch

from sae.errors import SaescopeError
from training.bench.compared_steps import Contestant, Dense, Ours, Peer, ours
from training.bench.peers import peak_mib
from training.bench.setup import Setup, Shape
from training.bench.whole_steps import CapturedDense


def peaks(setup: Setup, field: Sequence[Contestant], dead_share: float, seed: int) -> dict[str, float]:
    """Peak MiB of each contestant's process, except for whole and captured steps.

    On a CPU this is the peak of the whole process, including libraries and batches (about the same for all); on CUDA it is
    the memory that torch has allocated on the device.
    """
    found: dict[str, float] = {}
    for c in field:
        if isinstance(c, Peer):
            found[c.name] = c.ask(peak=True)["mib"]
        elif isinstance(c, Ours):
            found[c.name] = peak_of(setup.shape, c.variant, c.precision, dead_share, seed, setup.device)
        elif isinstance(c, Dense) and not isinstance(c, CapturedDense):
            variant = "torch.compile" if c.compiled else "eager"
            found[c.name] = peak_of(setup.shape, variant, c.precision, dead_share, seed, setup.device)
    return found


def peak_of(
    shape: Shape, variant: str, precision: str = "fp32", dead_share: float = 0.0, seed: int = 0,
    device: torch.device | str = "cpu",
) -> float:
    """Peak MiB of a fresh process that takes three steps.

    Raises:
        SaescopeError: that process failed.
    """
    context = torch.multiprocessing.get_context("spawn")
    ours_, theirs = context.Pipe()
    settings = (tuple(shape), str(device), variant, precision, dead_share, seed, torch.get_num_threads())
    process = context.Process(target=_three_steps, args=(theirs, *settings))
    process.start()
    theirs.close()
    try:
        return ours_.recv()
    except EOFError as ended:
        raise SaescopeError(f"bench: measuring the memory of {variant} failed; see the message above.") from ended
    finally:
        process.join()


def _three_steps(
    connection: Any, shape: tuple[int, int, int, int], device: str, variant: str, precision: str, dead_share: float,
    seed: int, n_threads: int,
) -> None:
    """Runs in the process of `peak_of`."""
    torch.set_num_threads(n_threads)
    setup = Setup.make(Shape(*shape), n_batches=1, dead_share=dead_share, seed=seed).to(torch.device(device))
    c: Contestant
    if variant in ("eager", "torch.compile"):
        c = Dense(setup, precision, compiled=variant == "torch.compile")
    else:
        c = ours(setup, variant, precision, keep_setup=False)
    for _ in range(3):
        c.step(0)
    connection.send(peak_mib(device))
