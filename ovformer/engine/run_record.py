"""A record of each start of a run, with all that is needed to repeat it.

``OUTPUT_DIR/runs/001`` belongs to the first start, 002 to the next one, whether it trains, resumes
or evaluates. It holds ``run.json``, the whole config, the installed packages in the format of pip,
and as a patch the changes since the commit of the code. A record that can't be written stops no
run.
"""

import argparse
import functools
import importlib.metadata
import json
import logging
import os
import platform
import shlex
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ovformer import __version__
from ovformer.d2 import BACKEND, CfgNode, MetadataCatalog, comm
from ovformer.data.catalog.dataset_spec import get_read_counts
from ovformer.engine.interruption import Interrupted
from ovformer.engine.resume import find_last_checkpoint
from ovformer.files import sha256, write_atomically, write_text
from ovformer.ops.ms_deform_attn import choose_kernel
from ovformer.paths import resolve_path

# Environment variables that are recorded. Others may hold secrets.
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "DETECTRON2_DATASETS")
_VARIABLES += ("OMP_NUM_THREADS", "PYTHONHASHSEED")
_PREFIX = "OVFORMER_"
# A patch of more bytes than this is not kept.
_MAX_PATCH = 1 << 20
_MAX_UNTRACKED = 50
_GIT_SECONDS = 10

logger = logging.getLogger(__name__)


class CodeState(NamedTuple):
    """The version of the code that runs.

    Attributes:
        commit: of git.
        patch: changes since the commit, in tracked files.
        untracked: names of untracked files.
    """

    commit: str
    patch: bytes
    untracked: list[str]


@contextmanager
def record_run(cfg: CfgNode, args: argparse.Namespace, seed: int) -> Iterator[None]:
    """Write the record of a run's start, and complete it when the block ends.

    Only the main process writes.

    Args:
        cfg: the config, scaled to the number of processes.
        args: the command line; ``command`` holds its words, with the script's name first.
        seed: ``SEED``, or the number drawn in its place.
    """
    if not comm.is_main_process():
        yield
        return
    folder = _new_folder(Path(cfg.OUTPUT_DIR, "runs"))
    record = _describe_run(cfg, args, seed, folder)
    # Before the run, too: one that is killed has a record as well.
    _write(folder, record, cfg.dump())
    record["outcome"] = "finished"
    try:
        yield
    except Interrupted as interrupted:
        record["outcome"] = interrupted.message
        raise
    except BaseException as error:
        record["outcome"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        record["ended"] = _now()
        # Known only now that the annotations have been read.
        for name, data in record["data"].items():
            data["images"] = get_read_counts().get(name)
        _write(folder, record)


def read_code_state(package: Path = Path(__file__).parents[1]) -> CodeState | None:
    """Return the state of the checkout that a package is in; None if git does not track it."""
    try:
        # A package that is installed below a checkout, as in a virtual environment, is not part of
        # it.
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        top = Path(os.fsdecode(_git(package, "rev-parse", "--show-toplevel").rstrip(b"\n")))
        commit = _git(top, "rev-parse", "HEAD").decode().strip()
        others = _git(top, "ls-files", "--others", "--exclude-standard", "-z")
        names = [os.fsdecode(name) for name in others.split(b"\0") if name]
        return CodeState(commit, _git(top, "diff", "--binary", "HEAD"), names)
    except (OSError, subprocess.SubprocessError):
        return None


# Code and packages of a process stay those of its start, even if files change later.
_read_own_code = functools.cache(read_code_state)


@functools.cache
def list_packages() -> str:
    """Return the installed packages, one ``name==version`` a line."""
    found = {(d.metadata["Name"], d.version) for d in importlib.metadata.distributions()}
    lines = (f"{name}=={version}\n" for name, version in found if name and version)
    return "".join(sorted(lines, key=str.lower))


def _describe_run(
    cfg: CfgNode, args: argparse.Namespace, seed: int, folder: Path
) -> dict[str, Any]:
    """Return the content of run.json at the start."""
    device, code = torch.device(cfg.MODEL.DEVICE), _read_own_code()
    weights = _find_weights(cfg, args)
    paths, names = cfg.MODEL.MASK_FORMER, cfg.DATASETS.TEST
    # Only files that this run reads: their digests take time.
    keys = ["CLIP_TEXT_PATH", "CLIP_IMAGE_PATH"]
    if not args.eval_only:
        keys += ["CLIP_IMAGE_PATH_TRAIN", "CAT_INFO_PATH"]
        names = [*cfg.DATASETS.TRAIN, *names]
    return {
        "command": args.command,
        "folder": os.getcwd(),
        "started": _now(),
        "ended": None,
        "outcome": "running, or killed",
        "repeat": _repeat_command(cfg, args, seed, folder, weights),
        "host": socket.gethostname(),
        "processes": comm.get_world_size(),
        "seed": seed,
        "ovformer": __version__,
        "code": _describe_code(code) if code else None,
        "detectron2's names come from": BACKEND,
        "deformable attention": _name_kernel(device),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": {"version": torch.__version__, "commit": torch.version.git_version},
        "threads": torch.get_num_threads(),
        "cuda": _describe_cuda() if device.type == "cuda" else None,
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name in _VARIABLES or name.startswith(_PREFIX)
        },
        "weights": _describe_file(weights),
        "files": {key: _describe_file(paths[key]) for key in keys if paths[key]},
        "data": {
            name: {
                "annotations": _describe_file(MetadataCatalog.get(name).get("json_file")),
                "images": None,  # counted while the run reads them
            }
            for name in names
        },
    }


def _describe_code(code: CodeState) -> dict[str, Any]:
    return {
        "commit": code.commit,
        "changed": bool(code.patch),
        "untracked": code.untracked[:_MAX_UNTRACKED],
    }


def _repeat_command(
    cfg: CfgNode, args: argparse.Namespace, seed: int, folder: Path, weights: str
) -> str | None:
    """Return the command that repeats the run from ``weights`` in another folder.

    A training is repeated from its first start, so a start that resumed it has no such command.
    """
    if args.resume and not args.eval_only and weights != cfg.MODEL.WEIGHTS:
        return None
    words = ["python", args.command[0], "--config-file", str(folder.absolute() / "config.yaml")]
    if comm.get_world_size() > 1:
        words += ["--num-gpus", str(comm.get_world_size())]
    if args.eval_only:
        words += ["--eval-only", "MODEL.WEIGHTS", weights]
    return shlex.join([*words, "SEED", str(seed), "OUTPUT_DIR", f"{Path(cfg.OUTPUT_DIR)}-repeated"])


def _find_weights(cfg: CfgNode, args: argparse.Namespace) -> str:
    """Return the path of the weights that the run starts from."""
    path = find_last_checkpoint(Path(cfg.OUTPUT_DIR)) if args.resume else None
    return cfg.MODEL.WEIGHTS if path is None else str(path)


def _describe_file(path: str | None) -> dict[str, Any] | None:
    """Return path, size and digest of a file, or why it can't be read; None for no path."""
    if not path:
        return None
    try:
        resolved = resolve_path(path).absolute()
        size = resolved.stat().st_size
        return {"path": str(resolved), "bytes": size, "sha256": sha256(resolved)}
    except (OSError, ValueError) as error:  # ValueError: no file can have this name
        return {"path": path, "error": str(error)}


def _name_kernel(device: torch.device) -> str:
    try:
        return choose_kernel(device)
    except (ValueError, RuntimeError) as error:
        return str(error)


def _describe_cuda() -> dict[str, Any]:
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {"version": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "gpus": names}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _new_folder(runs: Path) -> Path:
    """Return the path of the next record's folder, which is not created."""
    numbers = [int(p.name) for p in runs.glob("*") if p.name.isdecimal()]
    return runs / f"{max(numbers, default=0) + 1:03d}"


def _write(folder: Path, record: dict[str, Any], config: str | None = None) -> None:
    """Write run.json, and at the start (with ``config``) the files that do not change later."""
    try:
        if config is not None:
            write_text(folder / "config.yaml", config)
            write_text(folder / "packages.txt", list_packages())
            code = _read_own_code()
            if code and 0 < len(code.patch) <= _MAX_PATCH:
                write_atomically(folder / "code.patch", lambda file: file.write(code.patch))
        write_text(folder / "run.json", json.dumps(record, indent=1) + "\n")
    except OSError as error:
        logger.warning("The record of this run is not written: %s", error)


def _git(folder: Path, *words: str) -> bytes:
    """Run a git command and return its output.

    Raises:
        OSError: git is not installed.
        subprocess.SubprocessError: the command failed or took too long.
    """
    # Without optional locks git does not disturb one that the user runs at the same time.
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    return subprocess.run(
        command, capture_output=True, check=True, timeout=_GIT_SECONDS, stdin=subprocess.DEVNULL
    ).stdout
