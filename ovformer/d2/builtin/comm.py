"""Communication between the processes of a run. Everything also works in a single process."""

import functools
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

_LOCAL_GROUP: dist.ProcessGroup | None = None


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Return the number of processes on all machines together."""
    return dist.get_world_size() if _is_distributed() else 1


def get_rank() -> int:
    """Return this process's rank among those of all machines."""
    return dist.get_rank() if _is_distributed() else 0


def get_local_rank() -> int:
    """Return this process's rank on its machine."""
    return dist.get_rank(get_local_process_group()) if _is_distributed() else 0


def is_main_process() -> bool:
    """Return whether this is the process of rank 0, which logs and writes."""
    return get_rank() == 0


def get_local_process_group() -> dist.ProcessGroup:
    """Return the group of the processes on this machine.

    Raises:
        AssertionError: nothing has called :func:`create_local_process_group`.
    """
    assert _LOCAL_GROUP is not None, (
        "the processes of this machine have no group; call comm.create_local_process_group("
        "processes per machine) after torch.distributed.init_process_group()"
    )
    return _LOCAL_GROUP


@functools.lru_cache
def create_local_process_group(num_workers_per_machine: int) -> None:
    """Group the processes of each machine. All processes call this once.

    Args:
        num_workers_per_machine: processes per machine, the same on each.

    Raises:
        AssertionError: the world size is not a multiple of it, or a group exists already.
    """
    global _LOCAL_GROUP
    assert _LOCAL_GROUP is None, "the processes of this machine already have a group"
    world_size = get_world_size()
    assert world_size % num_workers_per_machine == 0, (
        f"{world_size} processes cannot be {num_workers_per_machine} on each machine"
    )
    # new_group is collective: each process makes the groups of all machines and keeps its own.
    for first in range(0, world_size, num_workers_per_machine):
        ranks = list(range(first, first + num_workers_per_machine))
        group = dist.new_group(ranks)
        if get_rank() in ranks:
            _LOCAL_GROUP = group


def synchronize() -> None:
    """Wait until all processes have called this."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == dist.Backend.NCCL:
        dist.barrier(device_ids=[torch.cuda.current_device()])
    else:
        dist.barrier()


@functools.lru_cache
def _new_gloo_group() -> dist.ProcessGroup:
    return dist.new_group(backend="gloo")


def _cpu_group() -> dist.ProcessGroup:
    """Return a group of all processes that sends through the CPU, as pickled objects are there."""
    return _new_gloo_group() if dist.get_backend() == dist.Backend.NCCL else dist.group.WORLD


def all_gather(data: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Return every process's ``data``, in the order of ranks.

    Args:
        data: anything that can be pickled.
        group: the processes that take part; by default all.
    """
    if get_world_size() == 1:
        return [data]
    group = group or _cpu_group()
    gathered = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, data, group=group)
    return gathered


def gather(data: Any, dst: int = 0, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Return every process's ``data`` on rank ``dst``, and an empty list on all others.

    Args:
        data: anything that can be pickled.
        dst: the rank that receives.
        group: the processes that take part; by default all.
    """
    if get_world_size() == 1:
        return [data]
    group = group or _cpu_group()
    is_receiver = dist.get_rank(group) == dst
    gathered = [None] * dist.get_world_size(group) if is_receiver else None
    dist.gather_object(data, gathered, dst=dst, group=group)
    return gathered if is_receiver else []


def shared_random_seed() -> int:
    """Return a random number below 2**31 that is the same in all processes; all must call this."""
    return all_gather(np.random.randint(2**31))[0]
