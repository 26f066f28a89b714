"""Write files that are complete or absent. A leaf: every layer may use it.

The content goes to a temporary name, ``<name>.tmp``, is synced to the disk, and then replaces the
file in one step. A kill or a full disk at any moment leaves the old file unchanged; so should a
power cut, which was not tried. Files that only grow, such as logs, are not written this way.
"""

import csv
import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY = ".tmp"
# Errors of file systems that can't sync folders, such as some on networks.
_CAN_NOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM)
_CHUNK = 1 << 22  # bytes read at a time
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # as Rust writes it


def temporary_name(path: Path) -> Path:
    """Return the name of a file while it is being written."""
    return path.with_name(path.name + TEMPORARY)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a block a temporary file to write; when the block ends, it replaces ``path``.

    Args:
        path: the file; missing folders are made.

    Yields:
        The temporary path to write to. When the block raises, that file is deleted, which also
        frees a full disk.

    Raises:
        OSError: the file can't be written; its ``filename`` is ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        # Before the new name: else a power cut might leave that name on a file without content.
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if (cause := _find_write_error(error, temporary)) is not None:
            raise type(cause)(cause.errno, cause.strerror, str(path)) from error
        raise
    try:
        _sync(path.parent)  # the new name, too
    except OSError as error:
        if error.errno not in _CAN_NOT_SYNC:
            raise


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a binary file that is complete or absent, see :func:`replacing`.

    Args:
        path: the file; missing folders are made.
        write: writes the content into an open binary file.

    Raises:
        OSError: the file can't be written; its ``filename`` is ``path``.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        write(file)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 that is complete or absent."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file that is complete or absent; its first row has the column names."""
    with replacing(path) as temporary:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)


def move_aside(path: Path) -> Path:
    """Rename a damaged file to ``<name>.damaged``, with a number if that exists, and return it."""
    free, number = path.with_name(f"{path.name}.damaged"), 0
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}.damaged{number}")
    path.rename(free)
    return free


def sha256(path: Path) -> str:
    """Return the SHA-256 digest of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Have the system write the cached content of a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _find_write_error(error: BaseException, temporary: Path) -> OSError | None:
    """Return the system's error about writing the temporary file, or None if there is none.

    Libraries hide it: ``torch.save`` raises RuntimeError instead, and safetensors an error with the
    number in its text. An error about another file, which the block may have read, does not count.
    """
    if isinstance(error, RuntimeError):
        error = error.__context__
    elif not isinstance(error, OSError) and (found := _OS_ERROR.search(str(error))):
        return OSError(int(found[1]), os.strerror(int(found[1])))
    if isinstance(error, OSError) and error.filename in (None, str(temporary)):
        return error
    return None
