"""Explains why a run can't write: which disk or folder, what is saved, and how to continue."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ovformer.engine.checkpoint import read_last_checkpoint_name

# A full disk or quota, a file system that became read-only.
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# Reading fails with these, too. They count as errors of writing for files in the output folder, and
# where the error names no file.
_OF_BOTH = (errno.EIO, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


class WriteError(OSError):
    """A run could not write; the message says what is saved."""


@contextmanager
def explain_write_errors(output_dir: str) -> Iterator[None]:
    """Raise WriteError, with advice, for an OSError of the block that comes from writing.

    Args:
        output_dir: ``OUTPUT_DIR`` of the run.
    """
    try:
        yield
    except OSError as error:
        folder = Path(output_dir)
        if not _is_of_writing(error, folder):
            raise
        what = error.filename or f"a file, probably in OUTPUT_DIR {folder}"
        raise WriteError(
            error.errno,
            f"Could not write {what}: {error.strerror}. {_describe_saved_files(folder)} Make room, "
            "or the folder writable; then continue with the same command and --resume",
        ) from error


def _is_of_writing(error: OSError, folder: Path) -> bool:
    # In place of a name there may be the number of an open file.
    if error.errno in _OF_BOTH and isinstance(error.filename, str | bytes | os.PathLike):
        path = Path(os.path.abspath(os.fsdecode(error.filename)))
        return path.is_relative_to(os.path.abspath(folder))
    return error.errno in _OF_WRITING + _OF_BOTH


def _describe_saved_files(folder: Path) -> str:
    """Return sentences that name the last checkpoint and the results saved so far."""
    name = read_last_checkpoint_name(folder)
    sentence = "No checkpoint has been saved yet, or last_checkpoint does not name it."
    if name and (folder / name).is_file():
        sentence = f"Saved: {folder / name}, the last whole checkpoint."
    if parts := sorted(folder.glob("inference/*/results.json.part*")):
        finished = ", ".join(map(str, parts))
        sentence += f" Saved as well, the videos that an evaluation finished: {finished}."
    return sentence
