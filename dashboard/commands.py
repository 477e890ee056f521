"""The subcommands of this floor: the browser's server, on this machine only unless told otherwise, and the demo."""

import argparse
import atexit
import errno
import gc
import importlib
import ipaddress
import os
import socket
import subprocess
import sys
from pathlib import Path

from dashboard.settings import RUNS
from sae.errors import SaescopeError
from sae.io.paths import user_path

PORT = 8501
DEMO = "configs/quickstart.yaml"
LATE = ("dashboard.views.features", "dashboard.views.feature.page", "dashboard.views.runs", "dashboard.views.compare",
        "dashboard.views.prompt", "dashboard.views.evaluations", "analysis.index.read", "duckdb", "pandas",
        "pyarrow.dataset", "ruamel.yaml")
"""Modules that a first page would import otherwise, most of them from inside libraries."""
IP = ipaddress.IPv4Address | ipaddress.IPv6Address


def dashboard(argv: list[str]) -> int:
    """Browse runs in the browser."""
    args = _parser().parse_args(argv)
    address = _ip("127.0.0.1" if args.address == "localhost" else args.address)
    port = free_port(address, args.port)
    os.environ[RUNS] = str(user_path(args.runs).absolute())
    shown = "localhost" if address.is_loopback else f"[{address}]" if address.version == 6 else address
    print(f"dashboard of {args.runs}: http://{shown}:{port}  (Ctrl-C ends it)", flush=True)
    serve({
        "server.address": str(address), "server.port": port, "server.headless": True, "server.fileWatcherType": "none",
        "server.allowedHosts": ["localhost", "127.0.0.1", "[::1]", "::1"] if address.is_loopback else [],
        "server.showEmailPrompt": False, "browser.gatherUsageStats": False, "client.toolbarMode": "minimal",
        "client.showErrorLinks": False, "logger.hideWelcomeMessage": True, "logger.level": "warning",
        "runner.magicEnabled": False,
        # looking through all objects after each drawing holds up the answer; Python collects what is needed by itself
        "runner.postScriptGC": False,
        "theme.headingFontSizes": ["1.9rem", "1.25rem", "1.1rem", "1.1rem", "1rem", "1rem"],
        "theme.light.primaryColor": "#0072B2", "theme.dark.primaryColor": "#3A90CC",
    })
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "sae dashboard", description="Browse runs in the browser. The page follows trainings that are in progress.",
        epilog="examples:\n  sae dashboard\n  sae dashboard --runs elsewhere/runs --port 8600\n\n"
        "From another machine, forward the port: ssh -L 8501:localhost:8501 HOST",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", default="runs", help="folder of all runs (default: %(default)s)")
    parser.add_argument("--port", type=int, default=PORT, help="0 takes any free one (default: %(default)s)")
    parser.add_argument(
        "--address", default="127.0.0.1",
        help="IP address to listen on; one other than this machine's own (0.0.0.0, say) opens the dashboard, which asks "
        "for no password, to everyone who can reach it (default: %(default)s)",
    )
    return parser


def _ip(address: str) -> IP:
    try:
        return ipaddress.ip_address(address)
    except ValueError:
        raise SaescopeError(f"--address {address} is not an IP address; give one such as 127.0.0.1 or 0.0.0.0.") from None


def free_port(address: IP, port: int) -> int:
    """The port itself if it can be listened on, or any free one for 0.

    Raises:
        SaescopeError: it is taken or not permitted, or the address is not this machine's.
    """
    if not 0 <= port <= 65535:
        raise SaescopeError(f"--port {port} is no port; give one between 1024 and 65535, or 0 for any free one.")
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with socket.socket(family) as probe:
        # a connection of an earlier server that still lingers does not hold the port
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((str(address), port))
        except OSError as error:
            raise SaescopeError(_refusal(error, address, port)) from None
        return int(probe.getsockname()[1])


def _refusal(error: OSError, address: IP, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {address} is taken, perhaps by another dashboard; give another --port, or 0 for any."
    if error.errno == errno.EACCES:
        return f"port {port} may not be used by this account; give --port one above 1023, or 0 for any free one."
    return f"cannot listen on {address}:{port} ({error.strerror}); give another --address or --port."


def serve(options: dict[str, object]) -> None:
    """Run the app until a signal ends it."""
    from streamlit import logger
    from streamlit.web import bootstrap

    from dashboard.state import uninterrupted_callbacks

    # caches of modules that are imported before the server runs warn that it does not
    logger.set_log_level("ERROR")
    for module in LATE:
        # what the pages stand on takes seconds to import: here, so that the first visitor does not wait for it
        importlib.import_module(module)
    gc.freeze()  # what stays need not be looked through, as Streamlit has it done after each drawing
    atexit.register(_end_quietly)
    uninterrupted_callbacks.install()
    script = str(Path(__file__).parent / "app.py")
    bootstrap.load_config_options(options)
    bootstrap.run(script, is_hello=False, args=[], flag_options=options)


def _end_quietly() -> None:
    """Errors have been printed by now: what follows is DuckDB reporting a hundred of its own objects as leaked."""
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)


def demo(argv: list[str]) -> int:
    """Train, measure, index and label a small SAE, and follow it in the browser."""
    parser = argparse.ArgumentParser(
        "sae demo", description="Train, measure, index and label a small SAE of SmolLM2-135M on this machine. The "
        "dashboard runs from the start and follows. An interrupted demo goes on where it was.",
        epilog="example:\n  sae demo --runs elsewhere/runs --no-dashboard",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="?", default=DEMO, help="of one training (default: %(default)s)")
    parser.add_argument("--runs", type=user_path, default=Path("runs"), help="folder of all runs (default: %(default)s)")
    parser.add_argument("--port", type=int, help=f"of the dashboard (default: {PORT}, or another where that is taken)")
    parser.add_argument("--no-dashboard", action="store_true", help="without the browser's server")
    args = parser.parse_args(argv)
    port = 0 if args.no_dashboard else _demo_port(args.port)
    server = _beside(args.runs, port) if port else None
    try:
        # not before the server has begun: it needs a second, this needs several
        from dashboard.demo import make
        from training.display import Display

        display = Display()

        def ready(run: Path) -> None:
            if server is not None:
                display.say(f"open now    http://localhost:{port}/?page=feature&run={run.name}")

        run, feature = make(args.config, args.runs, display, ready)
        print(f"again       sae dashboard --runs {args.runs}\nterminal    sae show {run} {feature}")
        if server is not None and sys.stdin.isatty():
            print(f"open now    http://localhost:{port}/?page=feature&run={run.name}   (Ctrl-C ends the dashboard)")
            server.wait()
        return 0
    finally:
        if server is not None:
            server.terminate()


def _demo_port(asked: int | None) -> int:
    """The port that was asked for; else the usual one, or any where a dashboard is open already."""
    local = ipaddress.ip_address("127.0.0.1")
    if asked is not None:
        return free_port(local, asked)
    try:
        return free_port(local, PORT)
    except SaescopeError:
        return free_port(local, 0)


def _beside(runs: Path, port: int) -> subprocess.Popen[bytes]:
    """The server in a process of its own; it prints its address."""
    start = "import sys; from sae.cli import main; sys.exit(main())"
    return subprocess.Popen([sys.executable, "-c", start, "dashboard", "--runs", str(runs), "--port", str(port)])
