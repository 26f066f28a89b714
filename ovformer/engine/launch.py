"""Starting the processes of a run: one, one per GPU, or those that ``torchrun`` started."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ovformer.d2 import comm
from ovformer.d2 import launch as launch_processes

TIMEOUT = timedelta(minutes=30)


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
    dist_url: str | None = None,
) -> None:
    """Call a function in each process of the run, with the processes connected.

    Args:
        function: of a module, so that it can be sent to other processes.
        args: its arguments.
        device: ``MODEL.DEVICE``: "cuda" connects by NCCL, "cpu" by gloo.
        num_gpus: processes to start on this machine; these four are not used under torchrun.
        num_machines: machines of the run.
        machine_rank: number of this one.
        dist_url: where the processes meet.
    """
    if not is_torchrun():
        launch_processes(
            function,
            num_gpus,
            num_machines=num_machines,
            machine_rank=machine_rank,
            dist_url=dist_url,
            args=args,
        )
        return
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=TIMEOUT)
    try:
        comm.create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        function(*args)
    finally:
        dist.destroy_process_group()
