"""`sae dashboard`, a local web server that listens on localhost by default, and `sae demo`."""

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
from sae.cli import HelpFormatter
from sae.errors import SaescopeError
from sae.io.paths import user_path

PORT = 8501
DEMO = "configs/quickstart.yaml"
LATE = ("dashboard.views.features", "dashboard.views.feature.page", "dashboard.views.runs", "dashboard.views.compare",
        "dashboard.views.prompt", "dashboard.views.evaluations", "analysis.index.read", "duckdb", "pandas",
        "pyarrow.dataset", "ruamel.yaml")
"""Slow modules to import at start-up, so that the first page doesn't have to; libraries import most of them lazily."""
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
        # a full gc.collect() after every script run delays the response; Python's own collector is enough
        "runner.postScriptGC": False,
        "theme.headingFontSizes": ["1.9rem", "1.25rem", "1.1rem", "1.1rem", "1rem", "1rem"],
        "theme.light.primaryColor": "#0072B2", "theme.dark.primaryColor": "#3A90CC",
    })
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "sae dashboard", description="Browse runs in the browser. Pages update while a run is training.",
        epilog="examples:\n  sae dashboard\n  sae dashboard --runs elsewhere/runs --port 8600\n\n"
        "From another machine, forward the port: ssh -L 8501:localhost:8501 HOST",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--runs", default="runs", help="folder that holds the runs (default: %(default)s)")
    parser.add_argument("--port", type=int, default=PORT, help="0 picks a free port (default: %(default)s)")
    parser.add_argument(
        "--address", default="127.0.0.1",
        help="IP address to listen on. The dashboard has no password: with 0.0.0.0, say, everyone who can reach this "
        "machine can use it (default: %(default)s)",
    )
    return parser


def _ip(address: str) -> IP:
    try:
        return ipaddress.ip_address(address)
    except ValueError:
        raise SaescopeError(f"--address {address} is not an IP address; give one such as 127.0.0.1 or 0.0.0.0.") from None


def free_port(address: IP, port: int) -> int:
    """Check that `port` can be bound and return it; 0 returns a free port.

    Raises:
        SaescopeError: the port is taken or not permitted, or the address doesn't belong to this machine.
    """
    if not 0 <= port <= 65535:
        raise SaescopeError(f"--port {port} is not a valid port; use 1024 to 65535, or 0 for any free port.")
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with socket.socket(family) as probe:
        # don't count a previous server's TIME_WAIT connections as the port being in use
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((str(address), port))
        except OSError as error:
            raise SaescopeError(_refusal(error, address, port)) from None
        return int(probe.getsockname()[1])


def _refusal(error: OSError, address: IP, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {address} is taken, perhaps by another dashboard; try another --port, or 0 for any."
    if error.errno == errno.EACCES:
        return f"no permission to use port {port}; choose a --port above 1023, or 0 for any free port."
    return f"cannot listen on {address}:{port} ({error.strerror}); give another --address or --port."


def serve(options: dict[str, object]) -> None:
    """Run the app until it is killed or interrupted."""
    from streamlit import logger
    from streamlit.web import bootstrap

    from dashboard.state import uninterrupted_callbacks

    # st.cache_* decorators warn when their module is imported before the server runs
    logger.set_log_level("ERROR")
    for module in LATE:
        # these take seconds to import: do it now, so that the first visitor doesn't wait
        importlib.import_module(module)
    gc.freeze()  # keep long-lived objects out of later collections
    atexit.register(_end_quietly)
    uninterrupted_callbacks.install()
    script = str(Path(__file__).parent / "app.py")
    bootstrap.load_config_options(options)
    bootstrap.run(script, is_hello=False, args=[], flag_options=options)


def _end_quietly() -> None:
    """Silence stderr at exit: errors are printed by now, and DuckDB would report a hundred of its objects as leaked."""
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)


def demo(argv: list[str]) -> int:
    """Train, evaluate, index and label a small SAE, and watch it in the browser."""
    parser = argparse.ArgumentParser(
        "sae demo", description="Train, evaluate, index and label a small SAE on SmolLM2-135M on this machine. The "
        "dashboard starts at once and shows the progress. Rerun an interrupted demo to resume it.",
        epilog="example:\n  sae demo --runs elsewhere/runs --no-dashboard",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("config", nargs="?", default=DEMO, help="training config (default: %(default)s)")
    parser.add_argument("--runs", type=user_path, default=Path("runs"),
    help="folder that holds the runs (default: %(default)s)")
    parser.add_argument("--port", type=int, help=f"dashboard port (default: {PORT}, or a free one if that is taken)")
    parser.add_argument("--no-dashboard", action="store_true", help="don't start the dashboard")
    args = parser.parse_args(argv)
    port = 0 if args.no_dashboard else _demo_port(args.port)
    server = _beside(args.runs, port) if port else None
    try:
        # imported after the server starts: the server needs a second, these imports several
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
    """The requested port, else the default one, else any free port."""
    local = ipaddress.ip_address("127.0.0.1")
    if asked is not None:
        return free_port(local, asked)
    try:
        return free_port(local, PORT)
    except SaescopeError:
        return free_port(local, 0)


def _beside(runs: Path, port: int) -> subprocess.Popen[bytes]:
    """Start the server in its own process; it prints its address."""
    start = "import sys; from sae.cli import main; sys.exit(main())"
    return subprocess.Popen([sys.executable, "-c", start, "dashboard", "--runs", str(runs), "--port", str(port)])
