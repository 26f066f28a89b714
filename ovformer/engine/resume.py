"""Which checkpoint a training goes on from, and going back to an older one if that is damaged.

``last_checkpoint`` names it. A checkpoint is whole when it gets its name; a disk or a copy may
damage it later.
"""

import logging
import math
import re
from pathlib import Path
from typing import NamedTuple

from ovformer.d2 import comm
from ovformer.engine.checkpoint import (
    FINAL,
    LAST,
    Checkpointer,
    named_checkpoint,
    read_weights,
)
from ovformer.files import move_aside, write_text

_PERIODIC = re.compile(r"model_(\d+)\.pth")

logger = logging.getLogger(__name__)


class DamagedCheckpointError(ValueError):
    """The checkpoint to go on from is damaged or missing."""


class _Damaged(NamedTuple):
    """A file that can't be used, and why."""

    path: Path
    reason: str


def resume_or_load(
    checkpointer: Checkpointer, weights: str, resume: bool, allow_older: bool = False
) -> bool:
    """Load the last checkpoint of a training's folder, or weights. All processes take part.

    Args:
        checkpointer: of the model, and of what else is to be resumed.
        weights: path, see :meth:`Checkpointer.load`; loaded unless there is a checkpoint to resume.
        resume: go on with the training in the folder of the checkpointer, if it has a checkpoint.
        allow_older: if that is damaged, take the one before it.

    Returns:
        Whether a checkpoint of the folder was loaded.

    Raises:
        DamagedCheckpointError: the checkpoint is not whole.
    """
    folder = Path(checkpointer.save_dir)
    path = _decided_by_first_process(folder, allow_older) if resume else None
    if path is not None:
        checkpointer.load(str(path))
        return True
    if resume:
        logger.info("--resume: %s has no checkpoint yet.", folder)
    checkpointer.load(weights, checkpointables=[])
    return False


def last_checkpoint(folder: Path, allow_older: bool = False) -> Path | None:
    """Return the checkpoint to go on from, after it was read.

    Args:
        folder: ``OUTPUT_DIR``.
        allow_older: if the last one is damaged, take the newest whole one before it. Those that are
            damaged are renamed, and ``last_checkpoint`` then names the one that is taken.

    Returns:
        A file that is whole; None where the folder has no checkpoint.

    Raises:
        DamagedCheckpointError: the last one is not whole, or with ``allow_older`` none is.
    """
    named = named_or_newest(folder)
    if named is None or (reason := _damage(named)) is None:
        return named
    damaged, chosen = [_Damaged(named, reason)], None
    for path in _before(folder, named):
        if (reason := _damage(path)) is None:
            chosen = path
            break
        damaged.append(_Damaged(path, reason))
    if chosen is None or not allow_older:
        raise DamagedCheckpointError(_message(damaged, chosen))
    _go_back(folder, chosen, damaged)
    return chosen


def _decided_by_first_process(folder: Path, allow_older: bool) -> Path | None:
    outcome: Path | DamagedCheckpointError | None = None
    if comm.is_main_process():
        try:
            outcome = last_checkpoint(folder, allow_older)
        except DamagedCheckpointError as error:
            outcome = error
    outcome = comm.all_gather(outcome)[0]
    if isinstance(outcome, DamagedCheckpointError):
        raise outcome
    return outcome


def named_or_newest(folder: Path) -> Path | None:
    """Return the checkpoint that is to be gone on from, which may be damaged; None for none.

    It is what ``last_checkpoint`` names, or ``last_checkpoint`` itself if that is no name.

    A kill between the first checkpoint and its naming leaves no such file: then the checkpoint with
    the most iterations counts as named.
    """
    file = folder / LAST
    if (name := named_checkpoint(folder)) is not None:
        return folder / name if name and name.isprintable() else file
    found = _iterations(folder)
    newest = max(found, key=found.get, default=None)
    if newest is not None:
        logger.warning("%s is missing. The newest checkpoint is %s.", file, newest)
    return newest


def _before(folder: Path, path: Path) -> list[Path]:
    """Return the checkpoints with fewer iterations than one, newest first."""
    found = _iterations(folder)
    limit = found.get(path, math.inf)
    older = [other for other in found if found[other] < limit and other != path]
    return sorted(older, key=found.get, reverse=True)


def _iterations(folder: Path) -> dict[Path, float]:
    """Return the checkpoints of a folder with their last iteration, as far as that is known."""
    found: dict[Path, float] = {}
    for path in folder.glob("model_*.pth"):
        if match := _PERIODIC.fullmatch(path.name):
            found[path] = int(match[1])
        elif path.name == FINAL:
            content = {} if _damage(path) else read_weights(path)
            found[path] = content.get("iteration", math.inf)
    return found


def _damage(path: Path) -> str | None:
    """Return why a file can't be loaded, None if it can."""
    if path.name == LAST:
        return f"{path} holds {path.read_bytes()[:40]!r}, not the name of a checkpoint"
    try:
        read_weights(path)
    except FileNotFoundError:
        return f"{path} is missing"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _message(damaged: list[_Damaged], older: Path | None) -> str:
    advice = (
        f"The one before it that is whole is {older}: a training goes on from there with --resume "
        "--allow-older. To evaluate it, name it in MODEL.WEIGHTS, without --resume."
        if older
        else "No checkpoint before it is whole. Start anew, in another OUTPUT_DIR."
    )
    return f"--resume: the last checkpoint can't be used. {damaged[0].reason}. {advice}"


def _go_back(folder: Path, chosen: Path, damaged: list[_Damaged]) -> None:
    """Put damaged files aside and name the checkpoint that is used instead."""
    for path, reason in damaged:
        is_checkpoint = path.name != LAST and path.is_file()
        kept = f" It is kept as {move_aside(path).name}." if is_checkpoint else ""
        logger.warning("--allow-older: %s.%s", reason.rstrip("."), kept)
    write_text(folder / LAST, chosen.name)
    logger.warning("--allow-older: going on from %s.", chosen)
