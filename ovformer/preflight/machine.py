"""Checks of a config against the machine: processes, devices, the output folder, room on its disk.

The only file written is a temporary one in the output folder, to see that it is writable.
"""

import argparse
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from ovformer.d2 import CfgNode
from ovformer.engine.checkpoint import read_last_checkpoint_name
from ovformer.engine.launch import is_torchrun

# Optimizer -> numbers that it keeps for each trained parameter.
_MOMENTS = {"ADAMW": 2, "SGD": 1}


def find_process_errors(cfg: CfgNode, args: argparse.Namespace) -> Iterator[str]:
    """Yield errors in the number of processes and in their device.

    Args:
        cfg: the config.
        args: the command line; uses ``num_gpus``, ``num_machines`` and, where the script has them,
            ``machine_rank`` and ``dist_url``.
    """
    wanted, option = args.num_gpus, f"--num-gpus {args.num_gpus}"
    # Under torchrun the processes exist already: its own numbers count, not these options.
    if is_torchrun():
        if wanted != 1:
            yield f"{option}: torchrun starts the processes; use --nproc-per-node {wanted} instead."
        wanted = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        option = f"--nproc-per-node {wanted}"
    elif wanted < 1 or args.num_machines < 1:
        yield f"{option} --num-machines {args.num_machines}: expected at least 1 of each."
        return
    elif args.num_machines > 1:
        yield from _find_machine_errors(args)
    yield from _find_device_errors(cfg.MODEL.DEVICE, wanted, option)


def _find_machine_errors(args: argparse.Namespace) -> Iterator[str]:
    rank = getattr(args, "machine_rank", 0)
    if not 0 <= rank < args.num_machines:
        yield (
            f"--machine-rank: expected 0 to {args.num_machines - 1} for --num-machines "
            f"{args.num_machines}, got {rank}."
        )
    if getattr(args, "dist_url", "") == "auto":
        yield "--dist-url auto: several machines need tcp://HOST:PORT of machine 0."


def _find_device_errors(name: str, processes: int, option: str) -> Iterator[str]:
    """Yield why processes can't run on a device.

    Args:
        name: ``MODEL.DEVICE``.
        processes: number on this machine.
        option: the command-line option that sets this number, with its value.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        yield f"MODEL.DEVICE: expected cuda, cpu or another device of PyTorch's, got {name!r}."
        return
    if device.type != "cuda":
        return
    on_cpu = "Without GPUs: MODEL.DEVICE cpu, also with several processes."
    found = torch.cuda.device_count()
    visible = f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', '')!r}"
    if found == 0 and processes == 1:
        yield f"MODEL.DEVICE: {name}, but no GPU found (torch {torch.__version__}). {on_cpu}"
    elif processes > found:
        yield f"{option}, but {found} found ({visible}). {on_cpu}"
    elif device.index is not None and processes > 1:
        yield f"MODEL.DEVICE: {name} with {option}: use cuda, and each process takes its own GPU."
    elif device.index is not None and device.index >= found:
        yield f"MODEL.DEVICE: {name}, but {found} found ({visible}), numbered from 0."


def find_output_errors(cfg: CfgNode) -> Iterator[str]:
    """Yield why the output folder can't be made or written to."""
    # Permission bits say too little (root, read-only mounts), so a file is written. It goes
    # into the nearest folder that exists: a run that is refused leaves no folder behind.
    try:
        with tempfile.TemporaryFile(dir=find_existing_folder(cfg.OUTPUT_DIR)):
            pass
    except OSError as error:
        yield f"OUTPUT_DIR: can't write to {cfg.OUTPUT_DIR!r} ({error}). Name another folder."


def find_output_warnings(cfg: CfgNode, resume: bool) -> Iterator[str]:
    """Yield a warning if the folder of a new training has checkpoints of another one."""
    if not resume and (name := read_last_checkpoint_name(Path(cfg.OUTPUT_DIR))):
        yield (
            f"OUTPUT_DIR: {cfg.OUTPUT_DIR!r} has checkpoints of another training. This one will "
            f"replace those of the same name. --resume continues from {name}; or name another "
            "folder."
        )


def find_existing_folder(path: str | os.PathLike) -> Path:
    """Return a path itself, or its nearest parent that exists."""
    path = Path(path).absolute()
    return next(part for part in (path, *path.parents) if part.exists())


def estimate_checkpoint_bytes(model: nn.Module, optimizer: str) -> int:
    """Return about how many bytes a checkpoint of a training takes: weights and optimizer state.

    Args:
        model: may be on the meta device.
        optimizer: ``SOLVER.OPTIMIZER``.
    """
    # The rest of a checkpoint, which is names, does not grow with the model.
    weights = sum(x.numel() * x.element_size() for x in model.state_dict().values())
    trained = [p for p in model.parameters() if p.requires_grad]
    moments = sum(p.numel() * p.element_size() for p in trained)
    return weights + _MOMENTS.get(optimizer, 0) * moments


def count_checkpoints(cfg: CfgNode, resume: bool) -> int:
    """Return how many checkpoints a training will write: the periodic ones and the final one."""
    period = max(1, cfg.SOLVER.CHECKPOINT_PERIOD)
    name = read_last_checkpoint_name(Path(cfg.OUTPUT_DIR)) if resume else None
    match = re.fullmatch(r"model_(\d+)\.pth", name or "")
    # A name holds the last iteration, counted from 0. A name of no iteration counts as none done:
    # a damaged or final checkpoint is the business of other checks.
    done = int(match[1]) + 1 if match else 0
    return max(0, cfg.SOLVER.MAX_ITER // period - done // period) + 1


def find_disk_errors(cfg: CfgNode, size: int) -> Iterator[str]:
    """Yield an error if there is not even room for one checkpoint of ``size`` bytes."""
    folder = find_existing_folder(cfg.OUTPUT_DIR)
    free = shutil.disk_usage(folder).free
    if size > free:
        yield (
            f"OUTPUT_DIR: a checkpoint takes {format_size(size)}, but {format_size(free)} are free "
            f"in {folder}. Make room, or name another folder."
        )


def find_disk_warnings(cfg: CfgNode, size: int, resume: bool) -> Iterator[str]:
    """Yield a warning if there is room for one checkpoint, but not for all of them."""
    folder, count = find_existing_folder(cfg.OUTPUT_DIR), count_checkpoints(cfg, resume)
    free = shutil.disk_usage(folder).free
    if size <= free < count * size:
        yield (
            f"OUTPUT_DIR: {count} checkpoints of {format_size(size)}, one every "
            f"SOLVER.CHECKPOINT_PERIOD {cfg.SOLVER.CHECKPOINT_PERIOD} iterations, take "
            f"{format_size(count * size)}, but {format_size(free)} are free in {folder}. Make "
            "room, set a longer period, or remove old ones in time."
        )


def format_size(count: float) -> str:
    """Return a number of bytes as text, e.g. "2.1 GB"."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 1e3:.1f} kB"
