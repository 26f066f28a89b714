"""An interrupted evaluation is repeated when the training is resumed."""

import json
import signal
from pathlib import Path

import pytest
import torch

from ovformer.engine.checkpoint import read_weights
from ovformer.engine.hooks import Evaluation, PeriodicCheckpoint
from ovformer.engine.interruption import Interrupted, Interruption, StopWhenInterrupted
from ovformer.engine.metrics import MetricsWriter
from ovformer.engine.trainer import Trainer
from support.small_training import CallbackHook, noisy_trainer

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
        stop: "kill" or "signal", and the iteration whose evaluation it comes in.
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

    trainer.register_hooks(
        [
            PeriodicCheckpoint(2),
            StopWhenInterrupted(),
            Evaluation(EVERY, lambda: trainer.at_once(evaluate), folder / "metrics.json"),
            MetricsWriter(str(folder), write_period),
        ]
    )
    trainer.resume_or_load("", resume=resume)
    return trainer


def curves(folder: Path) -> list[dict]:
    lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    found = [{k: v for k, v in line.items() if "time" not in k} for line in lines]
    return sorted(found, key=lambda line: line["iteration"])


@pytest.mark.parametrize("write_period", [2, 3])  # 3: scores are written some iterations later
@pytest.mark.parametrize("how", ["kill", "signal"])
@pytest.mark.parametrize("iteration", [3, 7, 11])
def test_curves_and_weights(tmp_path: Path, how: str, iteration: int, write_period: int) -> None:
    straight = training(tmp_path / "straight", write_period)
    straight.train()
    assert straight.evaluated == [3, 7, 12]
    folder = tmp_path / "resumed"
    stopped = training(folder, write_period, (how, iteration + (iteration == LENGTH - 1)))
    with pytest.raises((Killed, Interrupted)):
        stopped.train()
    resumed = training(folder, write_period)
    resumed.train()
    assert stopped.evaluated + resumed.evaluated == [3, 7, 12]
    finals = [read_weights(f / "model_final.pth") for f in (folder, tmp_path / "straight")]
    states = [final["trainer"]["hooks"]["MetricsWriter"] for final in finals]
    assert states[0]["last_write"] == states[1]["last_write"]
    assert states[0]["scalars"].keys() == states[1]["scalars"].keys()
    for name, value in straight.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value)
    assert curves(folder) == curves(tmp_path / "straight")


def test_interrupted_once_more(tmp_path: Path) -> None:
    """In the evaluation that is repeated."""
    training(tmp_path / "straight", 2).train()
    folder = tmp_path / "resumed"
    for how in ("kill", "signal", "kill", "signal"):
        with pytest.raises((Killed, Interrupted)):
            training(folder, 2, (how, 3)).train()
        assert (folder / "last_checkpoint").read_text() == "model_0000003.pth"
    training(folder, 2).train()
    assert curves(folder) == curves(tmp_path / "straight")


def test_what_was_evaluated_is_not_evaluated_again(tmp_path: Path) -> None:
    done = training(tmp_path, 2)

    def stop(trainer: Trainer) -> None:
        if trainer.iter == 3:
            raise Killed

    done.register_hooks([CallbackHook(after_step=stop)])
    with pytest.raises(Killed):
        done.train()
    assert done.evaluated == [3]
    resumed = training(tmp_path, 2)
    resumed.train()
    assert resumed.evaluated == [7, 12]
    # Nor is anything in a training that starts from a checkpoint's weights.
    fresh = training(tmp_path / "fresh", 2, resume=False)
    fresh.train()
    assert fresh.evaluated == [3, 7, 12]
