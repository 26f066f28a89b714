"""Starts the processes of a run: one, one per GPU, or those that ``torchrun`` started.

A signal to the first process is passed on to the processes that it started, and its exit status is
theirs: see :mod:`ovformer.engine.interruption`. When a process fails, the others are ended, and the
error of the one that failed first is shown.
"""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import connection
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.rendezvous import rendezvous

from ovformer.d2 import comm
from ovformer.engine.interruption import SIGNALS

TIMEOUT = timedelta(minutes=30)
# Seconds that the others get to end by themselves when a process has failed.
_GRACE_SECONDS = 15.0
# Seconds that a failed process keeps its connections open. The others fail when these close; with
# the delay they fail later, so that the launcher sees which process was the cause.
_HEAD_START_SECONDS = 2.0


def is_torchrun() -> bool:
    """Return whether torchrun, or a launcher that sets the same variables, started this process."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys()


def count_processes(num_gpus: int, num_machines: int) -> int:
    """Return the number of processes of the run.

    Args:
        num_gpus: processes on each machine; not used under torchrun.
        num_machines: number of machines; not used under torchrun.
    """
    return int(os.environ["WORLD_SIZE"]) if is_torchrun() else num_gpus * num_machines


def launch(
    function: Callable[..., Any],
    args: tuple,
    *,
    device: str,
    num_gpus: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
) -> None:
    """Call a function in each process of the run, with the processes connected.

    Args:
        function: defined at the top of a module, so that it can be sent to other processes.
        args: its arguments.
        device: ``MODEL.DEVICE``: "cuda" connects by NCCL, "cpu" by gloo.
        num_gpus: processes to start on this machine; this and the following are not used under
            torchrun.
        num_machines: machines of the run.
        machine_rank: number of this machine.
        dist_url: where the processes meet; "auto", for one machine, is a free port of it.

    Raises:
        SystemExit: a signal ended the processes.
    """
    if is_torchrun():
        # torchrun has set all other variables that init_process_group reads.
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        _work(int(os.environ["LOCAL_RANK"]), function, args, device, local_size, {})
    elif num_gpus * num_machines == 1:
        function(*args)
    else:
        meeting = {
            "init_method": _find_free_address() if dist_url == "auto" else dist_url,
            "world_size": num_gpus * num_machines,
            "rank": num_gpus * machine_rank,
        }
        _start(num_gpus, (function, args, device, num_gpus, meeting))


def _work(
    local_rank: int,
    function: Callable[..., Any],
    args: tuple,
    device: str,
    local_size: int,
    meeting: dict[str, Any],
) -> None:
    """Connect this process with the others and call the function.

    Args:
        local_rank: number of this process on its machine.
        function: to call.
        args: arguments of the function.
        device: ``MODEL.DEVICE``.
        local_size: processes on this machine.
        meeting: arguments of ``init_process_group``, with the rank of this machine's first process;
            empty where environment variables hold them.
    """
    if meeting:
        meeting = {**meeting, "rank": meeting["rank"] + local_rank}
    else:
        meeting = _meeting_after_restart()
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=TIMEOUT, **meeting)
    has_failed = False
    try:
        comm.create_local_process_group(local_size)
        record(_call)(function, args)  # so that torchrun shows the error of this process
    except Exception:
        has_failed = True
        raise
    finally:
        if not (has_failed and on_gpu):  # NCCL could wait for the others, and this process ends
            dist.destroy_process_group()


def _meeting_after_restart() -> dict[str, Any]:
    """Return where the processes meet that torchrun has restarted on one machine.

    torchrun may keep the store in which they find each other, with the addresses of the processes
    that have ended. A prefix with the restart count gives the new ones a part of their own. With
    several machines each counts its own restarts, so they could not agree on the prefix.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        return {}
    store, rank, world_size = next(rendezvous("env://", timeout=TIMEOUT))
    store = dist.PrefixStore(f"attempt {attempt}", store)
    return {"store": store, "rank": rank, "world_size": world_size}


def _call(function: Callable[..., Any], args: tuple) -> None:
    try:
        function(*args)
    except Exception:
        time.sleep(_HEAD_START_SECONDS)
        raise


def _start(count: int, work_args: tuple) -> None:
    """Start processes that call :func:`_work` and wait for them."""
    # Not joined yet: until all end, signals are passed on, and the first failure is looked for.
    context = mp.start_processes(_work, work_args, count, join=False)
    with _pass_on_signals(context.processes) as received:
        first = _wait(context.processes)
    # A stop by a signal is no failure: the run ends with its status and without a traceback.
    stopped = [p.exitcode for p in context.processes if p.exitcode - 128 in SIGNALS]
    if received or stopped:
        raise SystemExit(128 + received[0] if received else stopped[0])
    if first is not None and first.exitcode < 0:
        raise ChildProcessError(
            f"Process {context.processes.index(first)} (pid {first.pid}) was ended by "
            f"{signal.Signals(-first.exitcode).name}, and the others with it. The system sends "
            "SIGKILL when memory runs out. --resume continues from the last checkpoint."
        )
    if first is not None:
        # Without this, join() may raise the error of another process, which failed later.
        context.sentinels = {first.sentinel: context.processes.index(first)}
    context.join()


@contextmanager
def _pass_on_signals(processes: Sequence[mp.Process]) -> Iterator[list[int]]:
    """Pass signals on to processes during the block; yields the growing list of signals."""
    received: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, number)

    previous = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(processes: Sequence[mp.Process]) -> mp.Process | None:
    """Wait until all processes have ended; after a failure, kill those that do not end soon.

    Returns:
        The first process that failed.
    """
    first, deadline = None, None
    while alive := [process for process in processes if process.is_alive()]:
        failed = [process for process in processes if process.exitcode]
        if first is None and failed:
            first, deadline = failed[0], time.monotonic() + _GRACE_SECONDS
        timeout = None if deadline is None else deadline - time.monotonic()
        if timeout is not None and timeout <= 0:
            # They may wait forever for an answer of the process that failed.
            for process in alive:
                process.kill()
        connection.wait([process.sentinel for process in alive], timeout)
    return first or next((process for process in processes if process.exitcode), None)


def _find_free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"
