"""Finds the checkpoint that a training resumes from, or an older one if that is damaged.

The file ``last_checkpoint`` names it. A checkpoint is complete when it gets its name, but a disk or
a copy may damage it later.
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
    read_last_checkpoint_name,
    read_weights,
)
from ovformer.files import move_aside, write_text

_PERIODIC = re.compile(r"model_(\d+)\.pth")

logger = logging.getLogger(__name__)


class DamagedCheckpointError(ValueError):
    """The checkpoint to resume from is damaged or missing."""


class _Damaged(NamedTuple):
    """A file that can't be used, and why."""

    path: Path
    reason: str


def resume_or_load(
    checkpointer: Checkpointer, weights: str, resume: bool, allow_older: bool = False
) -> bool:
    """Load the last checkpoint of a training's folder, or weights. All processes take part.

    Args:
        checkpointer: of the model, and of the other objects to resume.
        weights: path, see :meth:`Checkpointer.load`; loaded unless there is a checkpoint to resume.
        resume: continue the training in the checkpointer's folder, if that has a checkpoint.
        allow_older: if the last checkpoint is damaged, take the one before it.

    Returns:
        Whether a checkpoint of the folder was loaded.

    Raises:
        DamagedCheckpointError: the checkpoint is damaged or missing.
    """
    folder = Path(checkpointer.save_dir)
    path = _find_in_main_process(folder, allow_older) if resume else None
    if path is not None:
        checkpointer.load(str(path))
        return True
    if resume:
        logger.info("--resume: %s has no checkpoint yet.", folder)
    checkpointer.load(weights, checkpointables=[])
    return False


def find_whole_checkpoint(folder: Path, allow_older: bool = False) -> Path | None:
    """Return the checkpoint to resume from, after reading the whole file to see that it is intact.

    Args:
        folder: ``OUTPUT_DIR``.
        allow_older: if the last checkpoint is damaged, take the newest whole one before it. The
            damaged ones are renamed, and ``last_checkpoint`` then names the one taken.

    Returns:
        A file that is whole; None where the folder has no checkpoint.

    Raises:
        DamagedCheckpointError: the last one is damaged, or with ``allow_older`` all are.
    """
    last = find_last_checkpoint(folder)
    if last is None:
        return None
    reason = _find_damage(last)
    if reason is None:
        return last
    damaged, chosen = [_Damaged(last, reason)], None
    for path in _list_older(folder, last):
        reason = _find_damage(path)
        if reason is None:
            chosen = path
            break
        damaged.append(_Damaged(path, reason))
    # Also without allow_older the search is worth its time: the message names the file to take.
    if chosen is None or not allow_older:
        raise DamagedCheckpointError(_describe_damage(damaged, chosen))
    _go_back(folder, chosen, damaged)
    return chosen


def _find_in_main_process(folder: Path, allow_older: bool) -> Path | None:
    # One process decides: going back renames files, and all have to load the same checkpoint.
    outcome: Path | DamagedCheckpointError | None = None
    if comm.is_main_process():
        try:
            outcome = find_whole_checkpoint(folder, allow_older)
        except DamagedCheckpointError as error:
            outcome = error
    outcome = comm.all_gather(outcome)[0]
    if isinstance(outcome, DamagedCheckpointError):
        raise outcome
    return outcome


def find_last_checkpoint(folder: Path) -> Path | None:
    """Return the path of the last checkpoint, which may be damaged; None if there is none.

    It is the one that ``last_checkpoint`` names, or ``last_checkpoint`` itself if that holds no
    name. After a kill right after the first checkpoint, that file is missing: then the
    checkpoint with the most iterations is the last one.
    """
    file = folder / LAST
    if (name := read_last_checkpoint_name(folder)) is not None:
        return folder / name if name and name.isprintable() else file
    found = _list_iterations(folder)
    newest = max(found, key=found.get, default=None)
    if newest is not None:
        logger.warning("%s is missing. The newest checkpoint is %s.", file, newest)
    return newest


def _list_older(folder: Path, path: Path) -> list[Path]:
    """Return the checkpoints with fewer iterations than ``path``, newest first."""
    found = _list_iterations(folder)
    limit = found.get(path, math.inf)
    older = [other for other in found if found[other] < limit and other != path]
    return sorted(older, key=found.get, reverse=True)


def _list_iterations(folder: Path) -> dict[Path, float]:
    """Return the checkpoints of a folder with their last iteration, infinite if unknown."""
    found: dict[Path, float] = {}
    for path in folder.glob("model_*.pth"):
        if match := _PERIODIC.fullmatch(path.name):
            found[path] = int(match[1])
        elif path.name == FINAL:
            # Its name holds no number; the iteration is in the file.
            content = {} if _find_damage(path) else read_weights(path)
            found[path] = content.get("iteration", math.inf)
    return found


def _find_damage(path: Path) -> str | None:
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


def _describe_damage(damaged: list[_Damaged], older: Path | None) -> str:
    advice = (
        f"The newest whole one before it is {older}: --resume --allow-older continues the training "
        "from there. To evaluate it, name it in MODEL.WEIGHTS, without --resume."
        if older
        else "No checkpoint before it is whole. Start a new training in another OUTPUT_DIR."
    )
    return f"--resume: the last checkpoint can't be used. {damaged[0].reason}. {advice}"


def _go_back(folder: Path, chosen: Path, damaged: list[_Damaged]) -> None:
    """Rename damaged files, and write the checkpoint used instead into ``last_checkpoint``."""
    # last_checkpoint comes last. After a kill in between it names a file that is missing, and the
    # same command gets here again.
    for path, reason in damaged:
        is_checkpoint = path.name != LAST and path.is_file()
        kept = f" It is kept as {move_aside(path).name}." if is_checkpoint else ""
        logger.warning("--allow-older: %s.%s", reason.rstrip("."), kept)
    write_text(folder / LAST, chosen.name)
    logger.warning("--allow-older: continuing from %s.", chosen)
