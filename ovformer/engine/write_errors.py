"""What to say when a run can't write: which disk or folder, what is safe, and how to go on."""

import errno
import os
from pathlib import Path
from types import TracebackType

from ovformer.engine.checkpoint import named_checkpoint

# A full disk or quota, a file system that became read-only.
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# Reading fails in these ways, too: they count in the output folder, and where no file is named.
_OF_BOTH = (errno.EIO, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


class StorageError(OSError):
    """A run could not write; the message says what is safe."""


class ExplainedStorage:
    """A context manager that turns errors of writing into StorageError."""

    def __init__(self, folder: str):
        """Prepare.

        Args:
            folder: OUTPUT_DIR.
        """
        self._folder = Path(folder)

    def __enter__(self) -> "ExplainedStorage":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError) and self._is_of_writing(error):
            what = error.filename or f"a file, probably in OUTPUT_DIR {self._folder}"
            raise StorageError(
                error.errno,
                f"Could not write {what}: {error.strerror}. {safe(self._folder)} Make room, or the "
                "folder writable; the same command with --resume then goes on",
            ) from error

    def _is_of_writing(self, error: OSError) -> bool:
        if error.errno in _OF_BOTH and isinstance(error.filename, str | bytes | os.PathLike):
            path = Path(os.path.abspath(os.fsdecode(error.filename)))
            return path.is_relative_to(os.path.abspath(self._folder))
        return error.errno in _OF_WRITING + _OF_BOTH


def safe(folder: Path) -> str:
    """Return sentences about what an output folder holds that is whole."""
    name = named_checkpoint(folder)
    sentences = [
        f"Safe: {folder / name}, the last whole checkpoint."
        if name and (folder / name).is_file()
        else "No checkpoint has been saved yet, or last_checkpoint does not name it."
    ]
    if parts := sorted(folder.glob("inference/*/results.json.part*")):
        finished = ", ".join(map(str, parts))
        sentences.append(f"So are the videos that an evaluation finished: {finished}.")
    return " ".join(sentences)
