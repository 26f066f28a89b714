"""A process that fails ends the others within a minute, and its error is shown."""

import subprocess
import sys
import time

import pytest

from support import failing_work

pytestmark = pytest.mark.slow
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
MINUTE = 60


def fail(launcher: list[str], *words: str) -> tuple[str, float]:
    """Run the work and return what it prints as errors, and how long it took."""
    process = subprocess.Popen(
        [sys.executable, *launcher, failing_work.__file__, *words],
        stderr=subprocess.PIPE,
        text=True,
    )
    begin = time.monotonic()
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 1
    return errors, time.monotonic() - begin


@pytest.mark.parametrize(("how", "others"), [("error", "wait"), ("kill", "busy")])
def test_our_processes(how: str, others: str) -> None:
    errors, seconds = fail([], how, "1", others, "2")
    assert seconds < MINUTE + imports()
    last = errors.strip().splitlines()[-1]
    if how == "error":
        assert last == "RuntimeError: the failure of process 1"
        assert "Connection closed" not in errors
    else:
        assert last.startswith("ChildProcessError: Process 1 (pid ") and "SIGKILL" in last
        assert "memory" in last and "--resume" in last


@pytest.mark.parametrize(("how", "others"), [("error", "wait"), ("kill", "wait")])
def test_torchrun(how: str, others: str) -> None:
    errors, seconds = fail(TORCHRUN, how, "1", others)
    assert seconds < MINUTE + imports()
    cause = errors.split("Root Cause (first observed failure):")[1]
    assert "rank      : 1" in cause
    expected = "RuntimeError: the failure of process 1" if how == "error" else "Signal 9 (SIGKILL)"
    assert expected in cause


def imports() -> float:
    """Seconds until the processes have started, on a machine that may be busy."""
    begin = time.monotonic()
    command = [sys.executable, "-c", "import ovformer.engine.launch"]
    subprocess.run(command, check=True, capture_output=True)
    return 4 * (time.monotonic() - begin)
