import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dashboard.commands import dashboard
from sae.cli import main

ROOT = Path(__file__).parent.parent.parent


def test_help_helps_without_loading_the_server() -> None:
    code = (
        "import sys; from sae.cli import main\n"
        "try: main(['dashboard', '--help'])\n"
        "finally: assert 'streamlit' not in sys.modules, 'heavy import'"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    assert "--port" in run.stdout and "ssh -L" in run.stdout


def test_a_taken_port_is_said_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["dashboard", "--port", str(port)]) == 2
    assert capsys.readouterr().err.startswith(f"sae dashboard: port {port} on 127.0.0.1 is taken")


@pytest.mark.parametrize(
    ("argv", "told"),
    [(["--address", "example.org"], "not an IP address"), (["--port", "70000"], "70000"),
     (["--address", "192.0.2.1"], "cannot listen on 192.0.2.1")],
)
def test_bad_addresses(argv: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboard", *argv]) == 2
    assert told in capsys.readouterr().err


def test_only_this_machine_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[dict[str, object]] = []
    monkeypatch.setattr("dashboard.commands.serve", served.append)
    monkeypatch.setenv("SAESCOPE_RUNS", "")
    dashboard(["--port", "0"])
    dashboard(["--port", "0", "--address", "0.0.0.0"])
    assert [options["server.address"] for options in served] == ["127.0.0.1", "0.0.0.0"]
    assert "localhost" in str(served[0]["server.allowedHosts"]) and served[1]["server.allowedHosts"] == []
    assert all(options["browser.gatherUsageStats"] is False for options in served)
