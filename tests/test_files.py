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


def test_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "text.txt"
    write_text(path, "é")
    assert path.read_bytes() == "é".encode()
    assert sha256(path) == "4a99557e4033c3539de2eb65472017cad5f9557f7a0625a09f1c3f6e2ba69c4c"
    write_csv(path, [["name", "value"], ["a, b", 1]])
    assert path.read_text().splitlines() == ["name,value", '"a, b",1']
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_system_that_syncs_no_folders(tmp_path: Path, monkeypatch) -> None:
    sync = os.fsync
    code = errno.EINVAL

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"
    code = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        write_text(tmp_path / "file", "newer")


def killed_while_writing(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    process = multiprocessing.get_context("fork").Process(target=killed_while_writing, args=(path,))
    process.start()
    process.join()
    assert path.read_text() == "old"
    assert temporary_name(path).read_text() == "half"
    write_text(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def by_torch(path: Path) -> None:
    """Its own error hides that of the system."""
    with path.open("wb") as file:
        torch.save({"x": torch.zeros(1 << 18)}, file)


@pytest.mark.parametrize("write", [by_torch, lambda path: path.write_text("text" * 5000)])
def test_a_full_disk(tmp_path: Path, write: Callable) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    temporary_name(path).symlink_to("/dev/full")
    with pytest.raises(OSError) as caught, replacing(path) as temporary:
        write(temporary)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_errors_of_other_files_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError, match="absent"), replacing(path):
        (tmp_path / "absent").read_text()
    with pytest.raises(FileNotFoundError) as caught:
        with replacing(path):
            pass  # nothing is written
    assert caught.value.filename == str(path)


def test_safetensors(tmp_path: Path) -> None:
    with replacing(tmp_path / "x.safetensors") as temporary:
        save_file({"x": torch.zeros(2)}, temporary)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    path = tmp_path / "folder" / "x.safetensors"
    with pytest.raises(OSError) as caught, replacing(path) as temporary:
        temporary.parent.rmdir()
        save_file({"x": torch.zeros(2)}, temporary)  # raises an error of its own
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(path))


def test_damaged_files_are_kept(tmp_path: Path) -> None:
    for content in ("first", "second"):
        (tmp_path / "file").write_text(content)
        move_aside(tmp_path / "file")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "file.damaged": "first",
        "file.damaged1": "second",
    }
