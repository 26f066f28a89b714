"""An interrupted evaluation is repeated when the training is resumed."""

import signal
from pathlib import Path

import pytest
import torch

from ovformer.engine.checkpoint import read_weights
from ovformer.engine.hooks import Evaluation, PeriodicCheckpoint
from ovformer.engine.interruption import Interrupted, Interruption, StopWhenInterrupted
from ovformer.engine.metrics import MetricsWriter
from ovformer.engine.trainer import Trainer
from support.small_training import CallbackHook, noisy_trainer, read_curves

LENGTH, EVERY = 12, 4


class Killed(BaseException):
    """Stands for SIGKILL."""


def training(
    folder: Path, write_period: int, stop: tuple[str, int] | None = None, resume: bool = True
) -> Trainer:
    """One whose evaluation draws a random number and scores the model.

    Args:
        folder: OUTPUT_DIR.
        write_period: iterations between two lines of metrics.json.
        stop: "kill", "signal" or "kill afterwards", and the iteration of the evaluation.
        resume: continue the training in the folder.
    """
    folder.mkdir(exist_ok=True)
    interruption = Interruption()
    trainer = noisy_trainer(folder, LENGTH, interruption=interruption)
    trainer._hooks.pop()
    trainer.evaluated = []

    def evaluate() -> dict:
        torch.rand(1)
        if stop == ("kill", trainer.iter):
            raise Killed
        if stop == ("signal", trainer.iter):
            interruption.signal = signal.SIGTERM
            raise Interrupted(signal.SIGTERM)
        trainer.evaluated.append(trainer.iter)
        return {"images": {"segm": {"AP": trainer.checkpointer.model.bias.item()}}}

    def kill_afterwards(trainer: Trainer) -> None:
        if stop == ("kill afterwards", trainer.iter):
            raise Killed

    trainer.register_hooks(
        [
            PeriodicCheckpoint(2),
            StopWhenInterrupted(),
            Evaluation(EVERY, lambda: trainer.at_once(evaluate), folder / "metrics.json"),
            MetricsWriter(str(folder), write_period),
            CallbackHook(after_step=kill_afterwards),
        ]
    )
    trainer.resume_or_load("", resume=resume)
    return trainer


@pytest.mark.parametrize("write_period", [2, 3])  # 3: scores are written some iterations later
@pytest.mark.parametrize("stops", [["kill"], ["signal"], ["kill", "signal"] * 2])
@pytest.mark.parametrize("iteration", [3, 7, 12])
def test_curves_and_weights(
    tmp_path: Path, stops: list[str], iteration: int, write_period: int
) -> None:
    """Also if the repeated evaluation is interrupted, too."""
    straight = training(tmp_path / "straight", write_period)
    straight.train()
    assert straight.evaluated == [3, 7, 12]
    folder, evaluated = tmp_path / "resumed", []
    for stop in stops:
        stopped = training(folder, write_period, (stop, iteration))
        with pytest.raises((Killed, Interrupted)):
            stopped.train()
        evaluated += stopped.evaluated
    resumed = training(folder, write_period)
    resumed.train()
    assert evaluated + resumed.evaluated == [3, 7, 12]
    finals = [read_weights(f / "model_final.pth") for f in (folder, tmp_path / "straight")]
    states = [final["trainer"]["hooks"]["MetricsWriter"] for final in finals]
    assert states[0]["last_write"] == states[1]["last_write"]
    assert states[0]["scalars"].keys() == states[1]["scalars"].keys()
    torch.testing.assert_close(finals[0]["model"], finals[1]["model"], rtol=0, atol=0)
    assert read_curves(folder) == read_curves(tmp_path / "straight")


def test_what_was_evaluated_is_not_evaluated_again(tmp_path: Path) -> None:
    done = training(tmp_path, 2, ("kill afterwards", 3))
    with pytest.raises(Killed):
        done.train()
    resumed = training(tmp_path, 2)
    resumed.train()
    assert done.evaluated + resumed.evaluated == [3, 7, 12]
    # Nor is anything in a training that starts from a checkpoint's weights.
    fresh = training(tmp_path / "fresh", 2, resume=False)
    fresh.train()
    assert fresh.evaluated == [3, 7, 12]
