"""A process that fails ends the others within a minute, and its error is shown.

The processes run this file: ``torchrun test_failures.py HOW RANK OTHERS``. Without torchrun the
number of processes comes last.
"""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist

from ovformer.d2 import comm
from ovformer.engine.launch import launch

pytestmark = pytest.mark.slow
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
MINUTE = 60


def work(how: str, rank: int, others: str) -> None:
    """Fail, or do what the others do.

    Args:
        how: "error" or "kill".
        rank: of the process that fails.
        others: "wait" for it, or be "busy".
    """
    for step in range(1000):
        if step == 3 and comm.get_rank() == rank:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError(f"the failure of process {rank}")
        if step == 3 and others == "busy":
            time.sleep(300)
        dist.all_reduce(torch.ones(1))


def fail(launcher: list[str], *words: str) -> tuple[str, float]:
    """Run the work and return what it prints as errors, and how long it took."""
    process = subprocess.Popen(
        [sys.executable, *launcher, __file__, *words],
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
    else:
        assert last.startswith("ChildProcessError: Process 1 (pid ")
        assert "SIGKILL" in last and "--resume" in last


@pytest.mark.parametrize(
    ("how", "error"),
    [("error", "RuntimeError: the failure of process 1"), ("kill", "Signal 9 (SIGKILL)")],
)
def test_torchrun(how: str, error: str) -> None:
    errors, seconds = fail(TORCHRUN, how, "1", "wait")
    assert seconds < MINUTE + imports()
    cause = errors.split("Root Cause (first observed failure):")[1]
    assert "rank      : 1" in cause and error in cause


def imports() -> float:
    """Seconds until the processes have started, on a machine that may be busy."""
    begin = time.monotonic()
    command = [sys.executable, "-c", "import ovformer.engine.launch"]
    subprocess.run(command, check=True, capture_output=True)
    return 4 * (time.monotonic() - begin)


if __name__ == "__main__":
    how, rank, others, *launched = sys.argv[1:]
    launch(work, (how, int(rank), others), device="cpu", num_gpus=int((launched or [1])[0]))
