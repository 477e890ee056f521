import subprocess
import sys


def test_killed_trainings_resume_to_the_same_bytes() -> None:
    """Two kills here; `make kill-test` does twenty."""
    command = [sys.executable, "-m", "tests.e2e.kills", "--kills", "2", "--seed", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "2 kills" in done.stdout and "byte-identical" in done.stdout
