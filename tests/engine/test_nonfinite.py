"""Losses and gradients that are not finite: all processes stop, weights stay, a report is left."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ovformer.d2 import comm
from ovformer.engine.hooks import PeriodicCheckpoint
from ovformer.engine.launch import launch
from ovformer.engine.trainer import Trainer
from support.small_training import Regression, image_batches, make_trainer

BAD_ITERATION = 3
WAYS = {
    "loss": "losses that are not finite: loss_image nan",
    "gradient": "a gradient is not finite (norm of all nan)",
    "model": "the mask cost is NaN",
}


class InfiniteSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient * float("inf")


class GoesWrong(Regression):
    """In one iteration, in one process."""

    def __init__(self, way: str, rank: int) -> None:
        super().__init__()
        self.way = way if comm.get_rank() == rank else ""
        self.calls = 0

    def forward(self, records: list[dict]) -> dict[str, Tensor]:
        losses = super().forward(records)
        self.calls += 1
        if self.calls <= BAD_ITERATION:
            return losses
        if self.way == "model":
            raise FloatingPointError("the mask cost is NaN")
        if self.way == "loss":
            losses["loss_image"] = losses["loss_image"] * float("nan")
        if self.way == "gradient":
            losses["loss_image"] = InfiniteSlope.apply(losses["loss_image"])
        return losses


def shares(start: int, seed: int):
    """This process's part of each batch of four images."""
    for batch in image_batches(start, seed):
        yield batch[comm.get_rank() :: comm.get_world_size()]


def train(folder: Path, way: str, rank: int = 0) -> tuple[Trainer, str]:
    """Train until it goes wrong, with a checkpoint after two iterations; return the error, too."""
    torch.manual_seed(0)
    trainer = make_trainer(GoesWrong(way, rank), shares, 6, output_dir=str(folder))
    trainer.register_hooks([PeriodicCheckpoint(2)])
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    assert trainer.iter == BAD_ITERATION
    return trainer, str(error.value)


def plain_weights() -> dict[str, Tensor]:
    """The weights of a training without the bad iteration."""
    torch.manual_seed(0)
    trainer = make_trainer(Regression(), shares, BAD_ITERATION)
    trainer.train()
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def read_report(folder: Path) -> dict:
    text = (folder / f"nonfinite_{BAD_ITERATION:07d}.json").read_text()
    return json.loads(text, parse_constant=pytest.fail)


@pytest.mark.parametrize("way", WAYS)
def test_one_process(tmp_path: Path, way: str) -> None:
    trainer, error = train(tmp_path, way)
    torch.testing.assert_close(trainer.model.state_dict(), plain_weights(), rtol=0, atol=0)
    report = read_report(tmp_path)
    assert report["iteration"] == BAD_ITERATION
    (part,) = report["processes"]
    assert part["reason"].startswith(WAYS[way])
    names = [r["file_name"] for r in next(image_batches(BAD_ITERATION, 0))]
    assert [sample["file_name"] for sample in part["samples"]] == names
    if way == "gradient":
        assert part["losses"]["loss_image"] > 0
    else:
        assert part["losses"].get("loss_image") == ("nan" if way == "loss" else None)
    assert report["grad_norm"] == ("nan" if way == "gradient" else None)
    assert report["learning_rates"] == [0.05]  # halved after three iterations
    assert (report["precision"], report["loss_scale"], report["seed"]) == ("float32", None, 0)
    assert report["last_checkpoint"] == str(tmp_path / "model_0000001.pth")
    for words in (f"Iteration {BAD_ITERATION}: {WAYS[way]}", names[0], "BASE_LR", "--resume"):
        assert words in error
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("way", ["loss", "model"])
def test_with_a_loss_scale_and_micro_batches(tmp_path: Path, way: str) -> None:
    """The model goes wrong in the second micro-batch of the second iteration."""
    torch.manual_seed(0)
    others = {"amp_type": torch.float16, "accumulation_steps": 2, "output_dir": str(tmp_path)}
    trainer = make_trainer(GoesWrong(way, 0), shares, 6, **others)
    with pytest.raises(FloatingPointError):
        trainer.train()
    report = json.loads((tmp_path / "nonfinite_0000001.json").read_text())
    assert (report["precision"], report["accumulation_steps"]) == ("float16", 2)
    assert report["loss_scale"] > 0 and report["last_checkpoint"] is None
    (part,) = report["processes"]
    names = [sample["file_name"] for sample in part["samples"]]
    assert names == [f"image {n}" for n in ((4, 5, 6, 7) if way == "loss" else (6, 7))]
    assert set(part["losses"]) == {"loss_image", "loss_instance"}


def train_each_way(folder: str) -> None:
    expected = plain_weights()
    for way in WAYS:
        output = Path(folder, way)
        trainer, error = train(output, way, rank=1)
        torch.testing.assert_close(trainer.model.state_dict(), expected, rtol=0, atol=0)
        comm.synchronize()
        (output / f"error{comm.get_rank()}").write_text(error)


@pytest.mark.slow
def test_one_of_two_processes_stops_both(tmp_path: Path) -> None:
    for way in WAYS:
        (tmp_path / way).mkdir()
    launch(train_each_way, (str(tmp_path),), device="cpu", num_gpus=2)
    for way, reason in WAYS.items():
        report = read_report(tmp_path / way)
        assert [part["process"] for part in report["processes"]] == [0, 1]
        samples = [[s["file_name"] for s in part["samples"]] for part in report["processes"]]
        assert samples == [["image 12", "image 14"], ["image 13", "image 15"]]
        assert report["processes"][1]["reason"].startswith(reason)
        if way == "loss":
            losses = [part["losses"]["loss_image"] for part in report["processes"]]
            assert losses[1] == "nan" and losses[0] > 0
        errors = [(tmp_path / way / f"error{rank}").read_text() for rank in range(2)]
        expected = f"Iteration 3: in process 1 {reason}" if way == "model" else reason
        assert expected in errors[0] and "image 12" in errors[0]
        assert reason in errors[1] and "image 13" in errors[1]
