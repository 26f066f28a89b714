"""Files that are whole or not there. A leaf: every layer may use it.

What is written goes to a temporary name, ``<name>.tmp``, is brought onto the disk, and then takes
the place of the file in one step. A kill or a full disk at any moment leaves the old file as it
was; so should a power cut, which was not tried. Files that only grow, such as logs, are not written
this way.
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
# What file systems say that sync no folders, such as some on networks.
_CAN_NOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM)
_CHUNK = 1 << 22  # bytes read at a time
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # as Rust writes it


def temporary_name(path: Path) -> Path:
    """Return the name that a file has while it is written."""
    return path.with_name(path.name + TEMPORARY)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file by its name; it appears, or replaces another one, when the block has ended.

    Args:
        path: the file; missing folders are made.

    Yields:
        The temporary name to write to. When the block raises, that file is removed, which also
        makes room on a full disk.

    Raises:
        OSError: the file can't be written; its ``filename`` is ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if (cause := _failed_write(error, temporary)) is not None:
            raise type(cause)(cause.errno, cause.strerror, str(path)) from error
        raise
    try:
        _sync(path.parent)  # the new name, too
    except OSError as error:
        if error.errno not in _CAN_NOT_SYNC:
            raise


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file that is complete or not there, as :func:`replacing` does.

    Args:
        path: the file; missing folders are made.
        write: writes the content into an open binary file.

    Raises:
        OSError: the file can't be written; its ``filename`` is ``path``.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        write(file)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 that is complete or not there."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write a table that is complete or not there; its first row has the names."""
    with replacing(path) as temporary:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)


def move_aside(path: Path) -> Path:
    """Rename a damaged file to a free name, ``<name>.damaged`` or with a number, and return it."""
    names = (f"{path.name}.damaged{number or ''}" for number in range(1 << 30))
    free = next(new for name in names if not (new := path.with_name(name)).exists())
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
    """Have the system write what it holds of a file or folder onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failed_write(error: BaseException, temporary: Path) -> OSError | None:
    """Return what the system said, also where a library hides it behind an error of its own.

    ``torch.save`` raises RuntimeError in its place, and safetensors an error that has its number in
    the text. An error about another file, which the block may have read, is none of these.
    """
    if isinstance(error, RuntimeError):
        error = error.__context__
    elif not isinstance(error, OSError) and (found := _OS_ERROR.search(str(error))):
        return OSError(int(found[1]), os.strerror(int(found[1])))
    if isinstance(error, OSError) and error.filename in (None, str(temporary)):
        return error
    return None
