"""The command line of a training script, and starting one process per GPU."""

import argparse
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ovformer.d2.builtin import comm

DEFAULT_TIMEOUT = timedelta(minutes=30)

_EXAMPLES = """
examples:
  {script} --config-file FILE --num-gpus 4                one machine, four processes
  {script} --config-file FILE SOLVER.BASE_LR 0.001        with another value of a config key
  {script} --config-file FILE --num-machines 2 --machine-rank 0 --dist-url tcp://HOST:PORT
                                                          on each of two machines, with its rank
"""


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Return a parser with the options of detectron2's training scripts.

    Args:
        epilog: text below the options; by default examples.
    """
    parser = argparse.ArgumentParser(
        epilog=epilog or _EXAMPLES.format(script=sys.argv[0]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help="YAML file of the config")
    add("--resume", action="store_true", help="go on from OUTPUT_DIR's last checkpoint, if any")
    add("--eval-only", action="store_true", help="evaluate, do not train")
    add("--num-gpus", type=int, default=1, help="processes on this machine, one per GPU")
    add("--num-machines", type=int, default=1, help="machines of the run")
    add("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    # One port per user, not a free one: a port in use tells of processes left from another run.
    user = os.getuid() if hasattr(os, "getuid") else 1
    port = 2**15 + 2**14 + hash(user) % 2**14
    add(
        "--dist-url",
        default=f"tcp://127.0.0.1:{port}",
        help="where the processes meet: an init_method of torch.distributed, or 'auto'",
    )
    add(
        "opts",
        default=None,
        nargs=argparse.REMAINDER,
        help="config overrides, at the end of the command: KEY VALUE KEY VALUE ...",
    )
    return parser


def launch(
    main_func: Callable[..., None],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: Sequence[Any] = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Call ``main_func(*args)`` in one process per GPU, joined in a process group.

    To be called on each machine. One process in all is this one, without a group. Without a GPU
    the processes are joined by gloo instead of NCCL.

    Args:
        main_func: has to be importable, as processes are spawned.
        num_gpus_per_machine: processes per machine.
        num_machines: machines that take part.
        machine_rank: number of this machine, from 0.
        dist_url: where processes meet, e.g. ``tcp://host:port``; ``auto`` finds a free port.
        args: arguments of ``main_func``.
        timeout: how long a process waits for another.

    Raises:
        ValueError: there are fewer GPUs, or ``auto`` with several machines.
    """
    world_size = num_machines * num_gpus_per_machine
    if world_size <= 1:
        main_func(*args)
        return
    num_gpus = torch.cuda.device_count()
    if torch.cuda.is_available() and num_gpus_per_machine > num_gpus:
        raise ValueError(f"--num-gpus: {num_gpus_per_machine} asked for, {num_gpus} available")
    if dist_url == "auto":
        if num_machines > 1:
            raise ValueError(
                "--dist-url auto: works on one machine only; give tcp://HOST:PORT of machine 0"
            )
        dist_url = f"tcp://127.0.0.1:{_find_free_port()}"
    if num_machines > 1 and dist_url.startswith("file://"):
        logging.getLogger(__name__).warning(
            "--dist-url: file:// is not reliable with several machines; prefer tcp://"
        )
    mp.start_processes(
        _worker,
        nprocs=num_gpus_per_machine,
        args=(
            main_func,
            world_size,
            num_gpus_per_machine,
            machine_rank,
            dist_url,
            tuple(args),
            timeout,
        ),
    )


def _find_free_port() -> int:
    """Return a port that is free now; another process may still take it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("", 0))
        return sock.getsockname()[1]


def _worker(
    local_rank: int,
    main_func: Callable[..., None],
    world_size: int,
    num_gpus_per_machine: int,
    machine_rank: int,
    dist_url: str | None,
    args: tuple,
    timeout: timedelta,
) -> None:
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(local_rank)
    try:
        dist.init_process_group(
            backend="nccl" if has_gpu else "gloo",
            init_method=dist_url,
            world_size=world_size,
            rank=machine_rank * num_gpus_per_machine + local_rank,
            timeout=timeout,
        )
    except Exception:
        logging.getLogger(__name__).error("The processes could not meet at --dist-url %s", dist_url)
        raise
    comm.create_local_process_group(num_gpus_per_machine)
    comm.synchronize()
    main_func(*args)


def create_ddp_model(
    model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any
) -> nn.Module:
    """Wrap a model in DistributedDataParallel; in a single process return it unchanged.

    Args:
        model: on this process's device.
        fp16_compression: send gradients as float16.
        **kwargs: more arguments of DistributedDataParallel.
    """
    if comm.get_world_size() == 1:
        return model
    if "device_ids" not in kwargs:
        on_gpu = any(parameter.is_cuda for parameter in model.parameters())
        kwargs["device_ids"] = [comm.get_local_rank()] if on_gpu else None
    ddp = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

        ddp.register_comm_hook(state=None, hook=fp16_compress_hook)
    return ddp
