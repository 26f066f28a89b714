"""The curves of a training that was interrupted are those of one that was not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ovformer.d2 import hooks
from ovformer.engine.hooks import PeriodicCheckpoint
from ovformer.engine.metrics import MetricsWriter, cut_metrics
from ovformer.engine.trainer import Trainer
from support.small_training import CallbackHook, noisy_trainer

LENGTH = 50
# The first is written seven iterations later, the second one at once.
EVALUATIONS = {12: 0.5, 39: 0.25}


class Killed(BaseException):
    """Stands for SIGKILL."""


def training(folder: Path, at: Callable[[int, str], None], period: int) -> Trainer:
    """A training that writes curves.

    Args:
        folder: OUTPUT_DIR.
        at: called with the iteration and a moment: "step", "saved" or "evaluated".
        period: iterations between two checkpoints.
    """
    trainer = noisy_trainer(folder, LENGTH)
    trainer._hooks.pop()  # saves each second iteration

    def evaluate(trainer: Trainer) -> None:
        if trainer.iter in EVALUATIONS:
            trainer.storage.put_scalar("AP", EVALUATIONS[trainer.iter], smoothing_hint=False)
        at(trainer.iter, "evaluated")

    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            CallbackHook(before_step=lambda trainer: at(trainer.iter, "step")),
            PeriodicCheckpoint(period),
            CallbackHook(after_step=lambda trainer: at(trainer.iter, "saved")),
            CallbackHook(after_step=evaluate),
            MetricsWriter(str(folder), 20),
        ]
    )
    return trainer


def curves(folder: Path) -> list[dict]:
    """The lines of metrics.json, without what differs from run to run."""
    lines = (folder / "metrics.json").read_text().splitlines()
    lines = sorted(map(json.loads, lines), key=lambda line: line["iteration"])
    times = ("time", "data_time", "eta_seconds")
    return [{k: v for k, v in line.items() if k not in times} for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    training(folder, lambda iteration, moment: None, 7).train()
    return folder


def test_lines(uninterrupted: Path) -> None:
    lines = curves(uninterrupted)
    assert [line["iteration"] for line in lines] == [12, 19, 39, 49]
    assert lines[0] == {"iteration": 12, "AP": 0.5} and lines[2]["AP"] == 0.25
    assert {"loss_noise", "total_loss", "lr", "grad_norm", "AP", "iteration"} < set(lines[2])


@pytest.mark.parametrize("period", [7, 10])
@pytest.mark.parametrize(
    ("iteration", "moment"),
    [
        (4, "step"),  # with a period of 7 before the first checkpoint
        (14, "step"),
        (19, "saved"),
        (20, "step"),
        (39, "saved"),
        (39, "evaluated"),
        (40, "step"),
        (49, "step"),
    ],
)
def test_a_kill(
    uninterrupted: Path, tmp_path: Path, period: int, iteration: int, moment: str
) -> None:
    def kill(*now) -> None:
        if now == (iteration, moment):
            raise Killed

    with pytest.raises(Killed):
        training(tmp_path, kill, period).train()
    resumed = training(tmp_path, lambda *now: None, period)
    resumed.resume_or_load("", resume=True)
    assert resumed.start_iter == (iteration + (moment != "step")) // period * period
    resumed.train()
    expected = curves(uninterrupted)
    if resumed.start_iter == 40 and moment != "step":
        del expected[2]["AP"]  # the evaluation came after the checkpoint
    assert curves(tmp_path) == expected
    weights = [torch.load(folder / "model_final.pth") for folder in (tmp_path, uninterrupted)]
    for name, value in weights[1]["model"].items():
        assert torch.equal(weights[0]["model"][name], value)


def test_a_kill_after_the_last_iteration(uninterrupted: Path, tmp_path: Path) -> None:
    """All is saved, but the last line is not written."""

    def kill(*now) -> None:
        if now == (LENGTH - 1, "saved"):
            raise Killed

    with pytest.raises(Killed):
        training(tmp_path, kill, 7).train()
    assert [line["iteration"] for line in curves(tmp_path)] == [12, 19, 39]
    for _ in range(2):  # the second time there is nothing to write either
        resumed = training(tmp_path, lambda *now: None, 7)
        resumed.resume_or_load("", resume=True)
        assert resumed.start_iter == LENGTH
        resumed.train()
        assert curves(tmp_path) == curves(uninterrupted)
        assert tensorboard(tmp_path) == tensorboard(uninterrupted)


def test_many_kills(uninterrupted: Path, tmp_path: Path) -> None:
    """After each iteration, when all is saved."""
    for stop in range(1, LENGTH + 1):

        def kill(iteration: int, moment: str, stop: int = stop) -> None:
            if (iteration, moment) == (stop, "step"):
                raise Killed

        trainer = training(tmp_path, kill, 1)
        trainer.resume_or_load("", resume=True)
        assert trainer.start_iter == stop - 1
        if stop < LENGTH:
            with pytest.raises(Killed):
                trainer.train()
        else:
            trainer.train()
    expected = curves(uninterrupted)
    del expected[0]  # a score that was neither saved nor written before a kill
    assert curves(tmp_path) == expected
    shown, expected = tensorboard(tmp_path), tensorboard(uninterrupted)
    del expected["AP"][0]
    assert shown == expected


def tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves that TensorBoard shows."""
    events = EventAccumulator(str(folder))
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if "time" not in name and "eta" not in name]
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in names}


def test_a_failed_training_leaves_no_half_line(tmp_path: Path) -> None:
    def fail(iteration: int, moment: str) -> None:
        if iteration == 30:
            raise ValueError("bad data")

    with pytest.raises(ValueError, match="bad data"):
        training(tmp_path, fail, 7).train()
    assert [line["iteration"] for line in curves(tmp_path)] == [12, 19]


@pytest.mark.parametrize("cut_off", ["", '{"itera'])
def test_a_new_training_keeps_the_lines_of_the_old_one(tmp_path: Path, cut_off: str) -> None:
    (tmp_path / "metrics.json").write_text('{"iteration": 99}\n' + cut_off)
    trainer = training(tmp_path, lambda *now: None, 7)
    trainer.resume_or_load("", resume=False)
    trainer.train()
    assert [line["iteration"] for line in curves(tmp_path)] == [12, 19, 39, 49, 99]


@pytest.mark.parametrize(
    ("text", "expected", "last"),
    [
        ('{"iteration": 3}\n{"iteration": 5}\n', '{"iteration": 3}\n', 3),
        ('{"iteration": 3}\n{"itera', '{"iteration": 3}\n', 3),
        ('{"iteration": 3}', '{"iteration": 3}\n', 3),
        ('{"iteration": 4}\n', '{"iteration": 4}\n', 4),
        ("\n[1]\n5\n", "", -1),
        ('{"iteration": "3"}\n{"iteration": 2}\n', '{"iteration": 2}\n', 2),
        ('{"iteration": 5}\n', "", -1),
    ],
)
def test_cutting(tmp_path: Path, text: str, expected: str, last: int) -> None:
    path = tmp_path / "metrics.json"
    assert cut_metrics(path, 5) == -1
    path.write_text(text)
    assert cut_metrics(path, 5) == last
    assert path.read_text() == expected
