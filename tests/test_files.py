"""Files that are whole or not there."""

import errno
import multiprocessing
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ovformer.files import move_aside, replacing, sha256, temporary_name, write_csv, write_text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file in a folder of its own."""
    write_text(tmp_path / "folder" / "file", "old")
    return tmp_path / "folder" / "file"


def content(path: Path) -> str:
    """The text of a file that is the only one in its folder."""
    assert list(path.parent.iterdir()) == [path]
    return path.read_text()


def test_what_is_written(path: Path) -> None:
    write_text(path, "é")
    assert path.read_bytes() == "é".encode()
    assert sha256(path) == "4a99557e4033c3539de2eb65472017cad5f9557f7a0625a09f1c3f6e2ba69c4c"
    write_csv(path, [["name", "value"], ["a, b", 1]])
    assert content(path).splitlines() == ["name,value", '"a, b",1']
    with replacing(path) as temporary:
        save_file({"x": torch.zeros(2)}, temporary)
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file(path: Path) -> None:
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert content(path) == "old"


def test_a_file_system_that_syncs_no_folders(path: Path, monkeypatch) -> None:
    """That is no error; a disk that fails is one."""
    sync, code = os.fsync, errno.EINVAL

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(path, "new")
    assert content(path) == "new"
    code = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        write_text(path, "newer")


def killed_while_writing(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_leaves_the_old_file(path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=killed_while_writing, args=(path,))
    process.start()
    process.join()
    assert (path.read_text(), temporary_name(path).read_text()) == ("old", "half")
    write_text(path, "new")
    assert content(path) == "new"


def save_tensor(path: Path) -> None:
    """PyTorch's own error hides that of the system."""
    with path.open("wb") as file:
        torch.save({"x": torch.zeros(1 << 18)}, file)


@pytest.mark.parametrize("write", [save_tensor, lambda path: path.write_text("text" * 5000)])
def test_a_full_disk(path: Path, write: Callable) -> None:
    temporary_name(path).symlink_to("/dev/full")
    with pytest.raises(OSError) as error, replacing(path) as temporary:
        write(temporary)
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))
    assert content(path) == "old"


def test_errors_name_the_file(path: Path, tmp_path: Path) -> None:
    """The one that is written, whatever library does it; errors of other files stay."""
    with pytest.raises(FileNotFoundError, match="absent"), replacing(path):
        (tmp_path / "absent").read_text()
    with pytest.raises(FileNotFoundError, match=str(path)), replacing(path):
        pass  # nothing is written
    new = tmp_path / "new" / "x.safetensors"
    with pytest.raises(OSError) as error, replacing(new) as temporary:
        temporary.parent.rmdir()
        save_file({"x": torch.zeros(2)}, temporary)  # raises an error of its own
    assert (error.value.errno, error.value.filename) == (errno.ENOENT, str(new))


def test_damaged_files_are_kept(path: Path) -> None:
    for text in ("first", "second"):
        path.write_text(text)
        move_aside(path)
    kept = {file.name: file.read_text() for file in path.parent.iterdir()}
    assert kept == {"file.damaged": "first", "file.damaged1": "second"}
