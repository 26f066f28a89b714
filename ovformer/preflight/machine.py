"""Checks of a config against the machine: processes, devices, the output folder, room on its disk.

Nothing is written but a temporary file, to see that the output folder can be.
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
from ovformer.engine.checkpoint import named_checkpoint
from ovformer.engine.launch import is_torchrun

# Numbers that an optimizer keeps for each parameter that is trained.
_MOMENTS = {"ADAMW": 2, "SGD": 1}


def process_errors(cfg: CfgNode, args: argparse.Namespace) -> Iterator[str]:
    """Yield what is wrong with the number of processes and their device.

    Args:
        cfg: the config.
        args: the command line; ``num_gpus``, ``num_machines`` and, where it has them,
            ``machine_rank`` and ``dist_url`` count.
    """
    wanted, option = args.num_gpus, f"--num-gpus {args.num_gpus}"
    if is_torchrun():
        if wanted != 1:
            yield f"{option}: torchrun starts the processes; say --nproc-per-node {wanted} instead."
        wanted = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        option = f"--nproc-per-node {wanted}"
    elif wanted < 1 or args.num_machines < 1:
        yield f"{option} --num-machines {args.num_machines}: expected at least 1 of each."
        return
    elif args.num_machines > 1:
        yield from _machine_errors(args)
    yield from _device_errors(cfg.MODEL.DEVICE, wanted, option)


def _machine_errors(args: argparse.Namespace) -> Iterator[str]:
    rank = getattr(args, "machine_rank", 0)
    if not 0 <= rank < args.num_machines:
        yield (
            f"--machine-rank: expected 0 to {args.num_machines - 1} for --num-machines "
            f"{args.num_machines}, got {rank}."
        )
    if getattr(args, "dist_url", "") == "auto":
        yield "--dist-url auto: several machines need tcp://HOST:PORT of machine 0."


def _device_errors(name: str, processes: int, option: str) -> Iterator[str]:
    """Yield why processes can't run on a device.

    Args:
        name: of the device.
        processes: of this machine.
        option: that says how many they are.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        yield f"MODEL.DEVICE: expected cuda, cpu or another device of PyTorch's, got {name!r}."
        return
    on_cpu = "Without GPUs: MODEL.DEVICE cpu, also with several processes."
    if device.type != "cuda":
        return
    found = torch.cuda.device_count()
    visible = f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', '')!r}"
    if found == 0 and processes == 1:
        yield f"MODEL.DEVICE: {name}, but no GPU found (torch {torch.__version__}). {on_cpu}"
    elif processes > found:
        yield f"{option}, but {found} found ({visible}). {on_cpu}"
    elif device.index is not None and processes > 1:
        yield f"MODEL.DEVICE: {name} with {option}: say cuda, and each process takes its own GPU."
    elif device.index is not None and device.index >= found:
        yield f"MODEL.DEVICE: {name}, but {found} found ({visible}), which count from 0."


def output_errors(cfg: CfgNode) -> Iterator[str]:
    """Yield why the output folder can't be written to or made."""
    try:
        with tempfile.TemporaryFile(dir=existing_folder(cfg.OUTPUT_DIR)):
            pass
    except OSError as error:
        yield f"OUTPUT_DIR: can't write to {cfg.OUTPUT_DIR!r} ({error}). Name another folder."


def output_warnings(cfg: CfgNode, resume: bool) -> Iterator[str]:
    """Yield that another training's files are in the folder of one that begins anew."""
    if not resume and (name := named_checkpoint(Path(cfg.OUTPUT_DIR))):
        yield (
            f"OUTPUT_DIR: {cfg.OUTPUT_DIR!r} has checkpoints of another training, of which this "
            f"one will replace those of the same name. --resume goes on from {name}; or name "
            "another folder."
        )


def existing_folder(path: str | os.PathLike) -> Path:
    """Return the nearest of a path and its parents that exists."""
    path = Path(path).absolute()
    return next(part for part in (path, *path.parents) if part.exists())


def checkpoint_bytes(model: nn.Module, optimizer: str) -> int:
    """Return about how large a checkpoint of a training is: weights and the optimizer's state.

    Args:
        model: which may be on the meta device.
        optimizer: ``SOLVER.OPTIMIZER``.
    """
    weights = sum(x.numel() * x.element_size() for x in model.state_dict().values())
    trained = [p for p in model.parameters() if p.requires_grad]
    moments = sum(p.numel() * p.element_size() for p in trained)
    return weights + _MOMENTS.get(optimizer, 0) * moments


def num_checkpoints(cfg: CfgNode, resume: bool) -> int:
    """Return how many checkpoints a training will write: the periodic ones, which stay, and one."""
    period, number = max(1, cfg.SOLVER.CHECKPOINT_PERIOD), re.compile(r"model_(\d+)\.pth")
    match = number.fullmatch(named_checkpoint(Path(cfg.OUTPUT_DIR)) or "") if resume else None
    done = int(match[1]) + 1 if match else 0
    return max(0, cfg.SOLVER.MAX_ITER // period - done // period) + 1


def disk_errors(cfg: CfgNode, size: int) -> Iterator[str]:
    """Yield that there is not even room for one checkpoint of so many bytes."""
    folder = existing_folder(cfg.OUTPUT_DIR)
    free = shutil.disk_usage(folder).free
    if size > free:
        yield (
            f"OUTPUT_DIR: a checkpoint takes {size_text(size)} and {size_text(free)} are free in "
            f"{folder}. Make room, or name another folder."
        )


def disk_warnings(cfg: CfgNode, size: int, resume: bool) -> Iterator[str]:
    """Yield that there is room for one checkpoint, but not for all of them."""
    folder, count = existing_folder(cfg.OUTPUT_DIR), num_checkpoints(cfg, resume)
    free = shutil.disk_usage(folder).free
    if size <= free < count * size:
        yield (
            f"OUTPUT_DIR: {count} checkpoints of {size_text(size)}, one each "
            f"SOLVER.CHECKPOINT_PERIOD {cfg.SOLVER.CHECKPOINT_PERIOD}, take "
            f"{size_text(count * size)}, and {size_text(free)} are free in {folder}. Make room, "
            "take a longer period, or remove old ones in time."
        )


def size_text(count: float) -> str:
    """Return a number of bytes as text."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 1e3:.1f} kB"
