"""A damaged last checkpoint: the error names it, and --allow-older takes the one before it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ovformer.engine.checkpoint import Checkpointer, read_weights
from ovformer.engine.metrics import MetricsWriter
from ovformer.engine.resume import DamagedCheckpointError, find_whole_checkpoint
from ovformer.engine.trainer import Trainer
from support.small_training import noisy_trainer, read_curves
from support.tiny_runs import TinyRun

LAST = "model_0000005.pth"


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def change_a_bit(path: Path) -> None:
    """Of a weight: ``torch.load`` alone takes such a file."""
    content = bytearray(path.read_bytes())
    weight = read_weights(path)["model"]["linear.weight"].numpy().tobytes()
    assert content.count(weight) == 1
    content[content.index(weight)] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)


def zero_the_end(path: Path) -> None:
    """As after a power cut."""
    path.write_bytes(path.read_bytes()[:-4096] + bytes(4096))


DAMAGES: dict[Callable[[Path], object], str] = {
    lambda path: os.truncate(path, path.stat().st_size - 1): r"can't be read",
    lambda path: os.truncate(path, 0): r"can't be read",
    change_a_bit: r"can't be read.*the checksum of .*/data/\d+ is wrong",
    zero_the_end: r"can't be read",
    Path.unlink: r"is missing",
}


def train(folder: Path, max_iter: int = 6, **resume: bool) -> Trainer:
    """Train with a checkpoint after each second iteration and a line of metrics after each."""
    folder.mkdir(exist_ok=True)
    trainer = noisy_trainer(folder, max_iter)
    trainer.register_hooks([MetricsWriter(str(folder), 1)])
    trainer.resume_or_load("", **{"resume": False, **resume})
    trainer.train()
    return trainer


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: getattr(d, "__name__", ""))
def test_resuming_from_the_one_before(tmp_path: Path, caplog, damage: Callable) -> None:
    straight = train(tmp_path / "straight", 10)
    folder = tmp_path / "resumed"
    train(folder, 6)
    (folder / "model_final.pth").unlink()
    (folder / "last_checkpoint").write_text(LAST)
    damage(folder / LAST)
    left = sorted(path.name for path in folder.iterdir())
    older = folder / "model_0000003.pth"

    with pytest.raises(DamagedCheckpointError) as refused:
        train(folder, 10, resume=True)
    refused.match(
        rf"^--resume: .*{folder / LAST} {DAMAGES[damage]}.*{older}: --resume --allow-older"
    )
    assert sorted(path.name for path in folder.iterdir()) == left  # nothing was touched

    resumed = train(folder, 10, resume=True, allow_older=True)
    assert str(folder / LAST) in caplog.text and f"from {older}" in caplog.text
    states = [trainer.model.state_dict() for trainer in (resumed, straight)]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert read_curves(folder) == read_curves(tmp_path / "straight")
    assert (folder / f"{LAST}.damaged").exists() == (damage is not Path.unlink)
    read_weights(folder / LAST)  # a new one


@pytest.mark.parametrize(
    ("last", "final"),
    [
        (LAST, None),  # a kill, or a full disk
        (LAST, b"of a shorter training"),  # with a smaller SOLVER.MAX_ITER than before
        (None, b""),  # a copy lacks last_checkpoint
        (None, None),  # a kill came before that was written
    ],
)
def test_a_finished_training_is_completed(
    tmp_path: Path, last: str | None, final: bytes | None
) -> None:
    train(tmp_path, 6)
    path, name = tmp_path / "model_final.pth", tmp_path / "last_checkpoint"
    expected, before = read_weights(path), read_curves(tmp_path)
    name.unlink()
    if last:
        name.write_text(last)
    if final is None:
        path.unlink()
    elif final:
        path.write_bytes(final)
    train(tmp_path, 6, resume=True)
    assert name.read_text() == path.name
    found = read_weights(path)
    assert found["iteration"] == expected["iteration"] == 5
    torch.testing.assert_close(found["model"], expected["model"], rtol=0, atol=0)
    assert read_curves(tmp_path) == before


def save(folder: Path, *names: str) -> None:
    """Save checkpoints whose iteration is that of their name, 7 for the final one."""
    checkpointer = Checkpointer(torch.nn.Linear(1, 1), str(folder))
    for name in names:
        checkpointer.save(name, iteration=int(name[6:]) if name[6:].isdigit() else 7)


SAVED = ["model_3", "model_5", "model_7"]


@pytest.mark.parametrize(
    ("saved", "damaged", "found"),
    [
        (SAVED, ["model_7"], "model_5.pth"),
        (SAVED, ["model_7", "model_5"], "model_3.pth"),
        (SAVED, SAVED, None),
        (SAVED, ["model_5"], "model_7.pth"),  # which is not the last one
        (["model_7", "model_final", "model_3", "model_5"], ["model_5"], "model_3.pth"),
        ([*SAVED, "model_final"], ["model_final"], "model_7.pth"),
        # A longer training, which began with the final one.
        ([*SAVED, "model_final", "model_9"], ["model_9"], "model_final.pth"),
    ],
)
def test_the_newest_whole_one_is_taken(
    tmp_path: Path, saved: list[str], damaged: list[str], found: str | None
) -> None:
    """Only checkpoints with fewer iterations than the last one are taken in its place."""
    save(tmp_path, *saved)
    assert find_whole_checkpoint(tmp_path) == tmp_path / f"{saved[-1]}.pth"
    for name in damaged:
        cut_off(tmp_path / f"{name}.pth")
    if found is None:
        with pytest.raises(DamagedCheckpointError, match="another OUTPUT_DIR"):
            find_whole_checkpoint(tmp_path, allow_older=True)
        assert not list(tmp_path.glob("*.damaged"))
        return
    assert find_whole_checkpoint(tmp_path, allow_older=True) == tmp_path / found
    assert find_whole_checkpoint(tmp_path) == tmp_path / found  # it is the last one now
    put_aside = {path.name for path in tmp_path.glob("*.damaged")}
    assert put_aside == {f"{x}.pth.damaged" for x in damaged if saved[-1] in damaged}


def test_a_file_without_checksums_is_not_damaged(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(1000)}, tmp_path / "unchecked.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_weights(tmp_path / "unchecked.pth")["model"]["a"].sum() == 1000


@pytest.mark.parametrize("content", [b"", b"\0\0\0\0", b"\xff\xfe", b"model_5"])
def test_no_name_of_a_checkpoint(tmp_path: Path, content: bytes) -> None:
    save(tmp_path, "model_3", "model_5")
    (tmp_path / "last_checkpoint").write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=r"model_5\.pth: .*--allow-older"):
        find_whole_checkpoint(tmp_path)
    assert find_whole_checkpoint(tmp_path, allow_older=True) == tmp_path / "model_5.pth"
    assert (tmp_path / "last_checkpoint").read_text() == "model_5.pth"


def test_a_script_resumes_from_the_newest_when_the_name_is_damaged(tiny_run: TinyRun) -> None:
    opts = ["DATASETS.TEST", "()", "SOLVER.STEPS", "()"]
    tiny_run.here(*opts, "SOLVER.MAX_ITER", "2")
    (tiny_run.output / "last_checkpoint").write_bytes(b"\xff\xfe")
    tiny_run.here("--resume", "--allow-older", *opts, "SOLVER.MAX_ITER", "4")
    assert (tiny_run.output / "last_checkpoint").read_text() == "model_final.pth"
    assert "2 iterations are done" in (tiny_run.output / "log.txt").read_text()


def test_a_folder_without_checkpoints(tmp_path: Path) -> None:
    assert find_whole_checkpoint(tmp_path) is None


@pytest.mark.parametrize("words", [[], ["--resume", "--eval-only"]])
def test_the_option_needs_a_training_to_resume(tiny_run: TinyRun, capsys, words: list[str]) -> None:
    with pytest.raises(SystemExit):
        tiny_run.here("--allow-older", *words)
    message = capsys.readouterr().err
    assert "--allow-older needs --resume" in message and "MODEL.WEIGHTS" in message
