"""What to say when a run can't write: which disk or folder, what is safe, and how to go on."""

import errno
from pathlib import Path
from types import TracebackType

# A full disk or quota, a file system that became read-only or fails, and missing rights.
_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)
_ERRORS += (errno.ENOTDIR, errno.EISDIR)


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
        if isinstance(error, OSError) and error.errno in _ERRORS:
            what = error.filename or f"a file, probably in OUTPUT_DIR {self._folder}"
            raise StorageError(
                error.errno,
                f"Could not write {what}: {error.strerror}. {safe(self._folder)} Make room, or the "
                "folder writable; the same command with --resume then goes on",
            ) from error


def safe(folder: Path) -> str:
    """Return sentences about what an output folder holds that is whole."""
    tag = folder / "last_checkpoint"
    name = tag.read_text(encoding="utf-8").strip() if tag.is_file() else ""
    sentences = [
        f"Safe: {folder / name}, the last whole checkpoint."
        if name
        else "No checkpoint had been saved yet."
    ]
    if parts := sorted(folder.glob("inference/*/results.json.part*")):
        finished = ", ".join(map(str, parts))
        sentences.append(f"So are the videos that an evaluation finished: {finished}.")
    return " ".join(sentences)
