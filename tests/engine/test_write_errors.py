"""A full disk and folders that can't be written to: the error says what is saved."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from ovformer.d2 import JSONWriter
from ovformer.engine.write_errors import WriteError, explain_write_errors
from ovformer.files import write_text
from support.tiny_runs import TinyRun

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB, which only root can mount."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"can't mount a small file system: {error}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_gets_full(tiny_run: TinyRun, small_disk: Path) -> None:
    """The first checkpoint fits, the second does not; with room, the training resumes."""
    tiny_run.output = small_disk / "output"
    ballast = small_disk / "ballast"
    opts = ["DATASETS.TEST", "()"]
    tiny_run.here(*opts, "SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()")
    size = (tiny_run.output / "model_final.pth").stat().st_size
    shutil.rmtree(tiny_run.output)
    ballast.write_bytes(bytes(2 * 2**20 - int(1.6 * size)))
    with pytest.raises(WriteError) as error:
        tiny_run.here(*opts)
    for words in ("model_0000003.pth: No space left", "model_0000001.pth", "--resume"):
        assert words in str(error.value)
    torch.load(tiny_run.output / "model_0000001.pth", weights_only=True)
    assert not list(tiny_run.output.glob("*.tmp"))
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    tiny_run.here(*opts, "--resume")
    lines = map(json.loads, (tiny_run.output / "metrics.json").read_text().splitlines())
    assert [line["iteration"] for line in lines] == [3]


def test_curves_that_do_not_fit(tiny_run: TinyRun, monkeypatch) -> None:
    monkeypatch.setattr(JSONWriter, "write", Mock(side_effect=FULL))
    with pytest.raises(WriteError, match=r"a file, probably in OUTPUT_DIR .*: No space left") as e:
        tiny_run.here("DATASETS.TEST", "()")
    assert "model_final.pth, the last whole checkpoint" in str(e.value)


def test_results_that_do_not_fit(tiny_run: TinyRun, monkeypatch) -> None:
    error = OSError(errno.EROFS, os.strerror(errno.EROFS), "results.json")
    monkeypatch.setattr("ovformer.evaluation.lvis_evaluator.write_json", Mock(side_effect=error))
    with pytest.raises(WriteError, match=r"results.json: Read-only file system"):
        tiny_run.here("--eval-only")


def test_something_is_in_the_way(tiny_run: TinyRun) -> None:
    """Rights do not stop root, but a folder in the place of a file does."""
    (tiny_run.output / "model_0000003.pth").mkdir(parents=True)
    with pytest.raises(WriteError, match=r"model_0000003.pth: Is a directory. Saved: .*000001.pth"):
        tiny_run.here("DATASETS.TEST", "()")


def test_a_file_that_can_not_be_read_is_not_one_to_write(tmp_path: Path) -> None:
    """Only of what is in the output folder, missing rights are taken for those of writing."""
    denied = errno.EACCES, os.strerror(errno.EACCES)
    with pytest.raises(PermissionError, match="annotations.json"):
        with explain_write_errors(str(tmp_path / "output")):
            raise PermissionError(*denied, str(tmp_path / "annotations.json"))
    with pytest.raises(WriteError, match="Could not write .*log.txt"):
        with explain_write_errors(str(tmp_path / "other" / ".." / "output")):
            raise PermissionError(*denied, str(tmp_path / "output" / "log.txt"))
    with pytest.raises(WriteError, match="Could not write 5"):
        with explain_write_errors(str(tmp_path)):
            raise PermissionError(*denied, 5)  # of an open file
    (tmp_path / "inference").touch()
    with pytest.raises(WriteError, match="Could not write .*inference: File exists"):
        with explain_write_errors(str(tmp_path)):
            write_text(tmp_path / "inference" / "results.json", "[]")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\0\0", b"model_gone.pth", b""])
def test_the_error_of_a_full_disk_survives_a_damaged_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last_checkpoint").write_bytes(content)
    with pytest.raises(WriteError, match="No space left.*does not name it"):
        with explain_write_errors(str(tmp_path)):
            raise FULL
