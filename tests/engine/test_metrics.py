"""The curves of a training that was interrupted are those of one that was not."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ovformer.d2 import hooks
from ovformer.engine.checkpoint import read_weights
from ovformer.engine.hooks import PeriodicCheckpoint
from ovformer.engine.metrics import MetricsWriter, cut_metrics
from ovformer.engine.trainer import Trainer
from support.small_training import CallbackHook, noisy_trainer, read_curves

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


def read_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the curves that TensorBoard shows."""
    events = EventAccumulator(str(folder))
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if "time" not in name and "eta" not in name]
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in names}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    training(folder, lambda iteration, moment: None, 7).train()
    return folder


def test_lines(uninterrupted: Path) -> None:
    lines = read_curves(uninterrupted)
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
    expected = read_curves(uninterrupted)
    if resumed.start_iter == 40 and moment != "step":
        del expected[2]["AP"]  # the evaluation came after the checkpoint
    assert read_curves(tmp_path) == expected
    finals = [read_weights(f / "model_final.pth") for f in (tmp_path, uninterrupted)]
    torch.testing.assert_close(finals[0]["model"], finals[1]["model"], rtol=0, atol=0)


def test_a_kill_after_the_last_iteration(uninterrupted: Path, tmp_path: Path) -> None:
    """All is saved, but the last line is not written."""

    def kill(*now) -> None:
        if now == (LENGTH - 1, "saved"):
            raise Killed

    with pytest.raises(Killed):
        training(tmp_path, kill, 7).train()
    assert [line["iteration"] for line in read_curves(tmp_path)] == [12, 19, 39]
    for _ in range(2):  # the second time there is nothing to write either
        resumed = training(tmp_path, lambda *now: None, 7)
        resumed.resume_or_load("", resume=True)
        assert resumed.start_iter == LENGTH
        resumed.train()
        assert read_curves(tmp_path) == read_curves(uninterrupted)
        assert read_tensorboard(tmp_path) == read_tensorboard(uninterrupted)


def test_a_kill_in_every_iteration(uninterrupted: Path, tmp_path: Path) -> None:
    for stop in range(1, LENGTH + 1):

        def kill(*now, stop: int = stop) -> None:
            if now == (stop, "step"):
                raise Killed

        trainer = training(tmp_path, kill, 1)
        trainer.resume_or_load("", resume=True)
        assert trainer.start_iter == stop - 1
        with contextlib.suppress(Killed):
            trainer.train()
    expected, shown = read_curves(uninterrupted), read_tensorboard(uninterrupted)
    del expected[0], shown["AP"][0]  # a score that was neither saved nor written before a kill
    assert read_curves(tmp_path) == expected
    assert read_tensorboard(tmp_path) == shown


@pytest.mark.parametrize("cut_off", ["", '{"itera'])
def test_a_new_training_keeps_the_lines_of_the_old_one(tmp_path: Path, cut_off: str) -> None:
    (tmp_path / "metrics.json").write_text('{"iteration": 99}\n' + cut_off)
    trainer = training(tmp_path, lambda *now: None, 7)
    trainer.resume_or_load("", resume=False)
    trainer.train()
    assert [line["iteration"] for line in read_curves(tmp_path)] == [12, 19, 39, 49, 99]


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
