"""Starting the processes of a run: one, one per GPU, or those that ``torchrun`` started.

A signal that the first process gets is passed on to those that it started. Its exit status then is
theirs: see :mod:`ovformer.engine.interruption`. A process that fails takes the others down, and its
error is the one that is shown.
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
# When a process has failed, the others may end by themselves for so many seconds.
_LAST_WORDS = 15.0
# A process that fails keeps its connections open for so many seconds. The others, which fail when
# they are closed, then come later, and whoever started them knows which one was the cause.
_HEAD_START = 2.0


def is_torchrun() -> bool:
    """Tell whether torchrun, or something that sets the same variables, started this process."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys()


def world_size(num_gpus: int, num_machines: int) -> int:
    """Return how many processes the run has.

    Args:
        num_gpus: processes on each machine, where torchrun does not say it.
        num_machines: likewise.
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
        function: of a module, so that it can be sent to other processes.
        args: its arguments.
        device: ``MODEL.DEVICE``: "cuda" connects by NCCL, "cpu" by gloo.
        num_gpus: processes to start on this machine; these four are not used under torchrun.
        num_machines: machines of the run.
        machine_rank: number of this one.
        dist_url: where the processes meet; "auto" is a free port of this machine.

    Raises:
        ValueError: ``dist_url`` is "auto" with several machines.
        SystemExit: a signal ended the processes.
    """
    if is_torchrun():
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        _work(int(os.environ["LOCAL_RANK"]), function, args, device, local_size, {})
    elif num_gpus * num_machines == 1:
        function(*args)
    else:
        if dist_url == "auto" and num_machines > 1:
            raise ValueError("--dist-url auto: several machines need tcp://HOST:PORT of machine 0")
        meeting = {
            "init_method": _free_port() if dist_url == "auto" else dist_url,
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
        function: what it does.
        args: arguments of the function.
        device: ``MODEL.DEVICE``.
        local_size: processes on this machine.
        meeting: where all meet, how many they are, and the rank of the first one of this machine;
            empty where environment variables say so.
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
        record(_call)(function, args)  # torchrun shows at its end what `record` writes down
    except Exception:
        has_failed = True
        raise
    finally:
        if not (has_failed and on_gpu):  # NCCL could wait for the others; this process ends anyway
            dist.destroy_process_group()


def _meeting_after_restart() -> dict[str, Any]:
    """Return where processes meet that torchrun has started again, on one machine.

    torchrun may keep the store in which they find each other, with the addresses of those that are
    gone. Of several machines each counts its own restarts, so that the count is no common place.
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
        time.sleep(_HEAD_START)
        raise


def _start(count: int, work_args: tuple) -> None:
    """Start processes that call :func:`_work` and wait for them."""
    context = mp.start_processes(_work, work_args, count, join=False)
    with _passed_on(context.processes) as received:
        first = _wait(context.processes)
    stopped = [p.exitcode for p in context.processes if p.exitcode - 128 in SIGNALS]
    if received or stopped:
        raise SystemExit(128 + received[0] if received else stopped[0])
    if first is not None and first.exitcode < 0:
        raise ChildProcessError(
            f"Process {context.processes.index(first)} (pid {first.pid}) was ended by "
            f"{signal.Signals(-first.exitcode).name}, and the others with it. The system sends "
            "SIGKILL when memory runs out. --resume goes on from the last checkpoint."
        )
    if first is not None:
        context.sentinels = {first.sentinel: context.processes.index(first)}
    context.join()  # raises what the first process raised


@contextmanager
def _passed_on(processes: Sequence[mp.Process]) -> Iterator[list[int]]:
    """Pass signals on to processes, and yield the list of those that came."""
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
    """Wait until processes have ended; when one has failed, kill those that do not end soon.

    Returns:
        The first one that failed.
    """
    first, deadline = None, None
    while alive := [process for process in processes if process.is_alive()]:
        failed = [process for process in processes if process.exitcode]
        if first is None and failed:
            first, deadline = failed[0], time.monotonic() + _LAST_WORDS
        timeout = None if deadline is None else deadline - time.monotonic()
        if timeout is not None and timeout <= 0:
            for process in alive:
                process.kill()
        connection.wait([process.sentinel for process in alive], timeout)
    return first or next((process for process in processes if process.exitcode), None)


def _free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"
