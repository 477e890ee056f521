"""A training on two hosts: network namespaces with names and addresses of their own, joined by a cable. Needs root.

    python -m tests.e2e.rank_hosts

Two ranks on each: features are shared within a host, rows between the two. Its losses are compared with those of one
process, in fp64, where nothing is equal to rounding; then a rank of the second host is killed in a training by the command,
and what the ranks say is shown.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.rank_kills import CONFIG, done, sentences, with_rows
from tests.e2e.ranks import losses
from tests.training.distributed.launched import ROOT, environment, train_all

HOSTS = ("saeh0", "saeh1")
STEPS = 200


def ip(*arguments: str, check: bool = True) -> None:
    """The system's `ip`."""
    subprocess.run(["ip", *arguments], check=check, capture_output=True)


def connect() -> None:
    """Two namespaces and the cable between them."""
    for host in HOSTS:
        ip("netns", "add", host)
    ip("link", "add", "cable0", "netns", HOSTS[0], "type", "veth", "peer", "name", "cable1", "netns", HOSTS[1])
    for i, host in enumerate(HOSTS):
        ip("-n", host, "address", "add", f"10.77.0.{i + 1}/24", "dev", f"cable{i}")
        for device in ("lo", f"cable{i}"):
            ip("-n", host, "link", "set", device, "up")


def launch(i: int, module: str, *arguments: str) -> subprocess.Popen[str]:
    """torchrun on a host."""
    torchrun = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={i}", "--nproc-per-node=2",
        "--master-addr=10.77.0.1", "--master-port=29777", "-m", module, *arguments,
    ]
    named = ["unshare", "--uts", "sh", "-c", f'hostname {HOSTS[i]}; exec "$@"', "sh", *torchrun]
    return subprocess.Popen(
        ["ip", "netns", "exec", HOSTS[i], *named], cwd=ROOT, stderr=subprocess.PIPE, text=True,
        env=environment() | {"GLOO_SOCKET_IFNAME": f"cable{i}"},
    )


def ranks_of(process: psutil.Process) -> list[psutil.Process]:
    """Those that a torchrun has begun."""
    below = [(child, child.cmdline()) for child in process.children(recursive=True)]
    return [child for child, line in below if "sae.cli" in line and "torch.distributed.run" not in line]


def fields(name: str, steps: int, shards: int, **more: Any) -> dict[str, Any]:
    """The training."""
    train = CONFIG["train"] | {"budget": f"{steps} steps", "shards": shards, "log_every": "1 steps"} | more
    return with_rows(CONFIG) | {"name": name, "train": train}


def main() -> None:
    """Both trainings."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        alone = train_all([fields("run", STEPS, 1, kernels="reference")], 0, root / "alone", "double")
        config, runs = root / "config.yaml", root / "hosts"
        runs.mkdir()
        config.write_text(json.dumps([fields("run", STEPS, 2, kernels="reference")]))
        both = [launch(i, "tests.training.distributed.fp64_worker", str(config), str(runs)) for i in range(2)]
        ended = [(p.communicate()[1], p.returncode) for p in both]
        assert [code for _, code in ended] == [0, 0], ended
        worst = max(abs(a / b - 1) for a, b in zip(losses(alone / "run"), losses(runs / "run"), strict=True))
        sys.stdout.write(f"{STEPS} steps in fp64: losses within {worst:.1e}\n")
        assert worst < 1e-10

        config.write_text(json.dumps(fields("killed", 20_000, 2)))
        both = [launch(i, "sae.cli", "train", str(config), "--runs", str(runs), "--quiet") for i in range(2)]
        while done(runs / "killed") < 50:
            time.sleep(0.1)
        victim, began = ranks_of(psutil.Process(both[1].pid))[0], time.monotonic()
        os.kill(victim.pid, signal.SIGKILL)
        said = [line for p in both for line in sentences(p.communicate()[1])]
        sys.stdout.write(f"{time.monotonic() - began:.0f} s after the kill all had ended; said: {said}\n")
        assert len(said) == 1 and str(victim.pid) in said[0]


if __name__ == "__main__":
    connect()
    try:
        main()
    finally:
        for host in HOSTS:
            ip("netns", "delete", host, check=False)
