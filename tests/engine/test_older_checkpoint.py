"""A damaged last checkpoint: the error names it, and --allow-older takes the one before it."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ovformer.engine.checkpoint import Checkpointer, read_weights
from ovformer.engine.metrics import MetricsWriter
from ovformer.engine.resume import DamagedCheckpointError, find_whole_checkpoint
from ovformer.engine.trainer import Trainer
from support.small_training import noisy_trainer
from support.tiny_runs import TinyRun

LAST = "model_0000005.pth"


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def cut_off_a_little(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


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
    content = path.read_bytes()
    path.write_bytes(content[:-4096] + bytes(4096))


DAMAGES: dict[Callable[[Path], object], str] = {
    cut_off: r"can't be read",
    cut_off_a_little: r"can't be read",
    change_a_bit: r"can't be read.*the checksum of .*/data/\d+ is wrong",
    zero_the_end: r"can't be read",
    lambda path: path.write_bytes(b""): r"can't be read",
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


def lines(folder: Path) -> list[dict]:
    found = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return [{k: v for k, v in line.items() if "time" not in k} for line in found]


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
    for name, value in straight.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value)
    assert lines(folder) == lines(tmp_path / "straight")
    assert (folder / f"{LAST}.damaged").exists() == (damage is not Path.unlink)
    read_weights(folder / LAST)  # a new one


def test_a_training_that_ended_before_its_final_checkpoint(tmp_path: Path) -> None:
    """By a kill or a full disk; or with a smaller SOLVER.MAX_ITER than before."""
    train(tmp_path, 6)
    expected, before = read_weights(tmp_path / "model_final.pth"), lines(tmp_path)
    for final in (b"", b"of a shorter training"):
        (tmp_path / "model_final.pth").unlink()
        if final:
            (tmp_path / "model_final.pth").write_bytes(final)
        (tmp_path / "last_checkpoint").write_text(LAST)
        train(tmp_path, 6, resume=True)
        assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
        found = read_weights(tmp_path / "model_final.pth")
        assert found["iteration"] == expected["iteration"] == 5
        assert all(torch.equal(found["model"][k], v) for k, v in expected["model"].items())
        assert lines(tmp_path) == before


def test_a_finished_training_without_last_checkpoint(tmp_path: Path) -> None:
    """A copy lacks the file, or a kill came before it."""
    train(tmp_path, 6)
    for left_out in ([], ["model_final.pth"]):
        for name in ("last_checkpoint", *left_out):
            (tmp_path / name).unlink()
        train(tmp_path, 6, resume=True)
        assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
        assert read_weights(tmp_path / "model_final.pth")["iteration"] == 5


def save(folder: Path, *names: str) -> None:
    """Save checkpoints whose iteration is that of their name, 7 for the final one."""
    checkpointer = Checkpointer(torch.nn.Linear(1, 1), str(folder))
    for name in names:
        checkpointer.save(name, iteration=int(name[6:]) if name[6:].isdigit() else 7)


@pytest.mark.parametrize(
    ("damaged", "found"),
    [
        (["model_7"], "model_5.pth"),
        (["model_7", "model_5"], "model_3.pth"),
        (["model_7", "model_5", "model_3"], None),
        (["model_5"], "model_7.pth"),  # which is not the last one
    ],
)
def test_the_newest_whole_one_is_taken(tmp_path: Path, damaged: list[str], found: str) -> None:
    save(tmp_path, "model_3", "model_5", "model_7")
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
    assert put_aside == {f"{name}.pth.damaged" for name in damaged if f"{name}.pth" > found}


def test_a_file_without_checksums_is_not_damaged(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(1000)}, tmp_path / "unchecked.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_weights(tmp_path / "unchecked.pth")["model"]["a"].sum() == 1000


def test_only_checkpoints_with_fewer_iterations_are_taken(tmp_path: Path) -> None:
    save(tmp_path, "model_7", "model_final", "model_3", "model_5")
    cut_off(tmp_path / "model_5.pth")
    assert find_whole_checkpoint(tmp_path, allow_older=True) == tmp_path / "model_3.pth"


def test_the_final_one(tmp_path: Path) -> None:
    save(tmp_path, "model_5", "model_7", "model_final")
    assert find_whole_checkpoint(tmp_path) == tmp_path / "model_final.pth"
    cut_off(tmp_path / "model_final.pth")
    assert find_whole_checkpoint(tmp_path, allow_older=True) == tmp_path / "model_7.pth"
    save(tmp_path, "model_final", "model_9")  # a longer training, from there
    cut_off(tmp_path / "model_9.pth")
    assert find_whole_checkpoint(tmp_path, allow_older=True) == tmp_path / "model_final.pth"


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


def test_a_folder_without_last_checkpoint(tmp_path: Path, caplog) -> None:
    assert find_whole_checkpoint(tmp_path) is None
    save(tmp_path, "model_3", "model_5")
    (tmp_path / "last_checkpoint").unlink()
    assert find_whole_checkpoint(tmp_path) == tmp_path / "model_5.pth"
    assert "last_checkpoint is missing" in caplog.text


@pytest.mark.parametrize("words", [[], ["--resume", "--eval-only"]])
def test_the_option_needs_a_training_to_resume(tiny_run: TinyRun, capsys, words: list[str]) -> None:
    with pytest.raises(SystemExit):
        tiny_run.here("--allow-older", *words)
    message = capsys.readouterr().err
    assert "--allow-older needs --resume" in message and "MODEL.WEIGHTS" in message


def test_a_changed_bit_is_noticed_or_has_no_effect(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": {"a": torch.arange(40.0)}, "iteration": 3}, path)
    content = path.read_bytes()
    noticed = 0
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            found = read_weights(path)
        except ValueError:
            noticed += 1
            continue
        assert found["iteration"] == 3 and torch.equal(found["model"]["a"], torch.arange(40.0))
    assert noticed > 50
