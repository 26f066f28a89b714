"""The trainer's step, with models of a few parameters."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ovformer.d2 import HookBase, JSONWriter
from ovformer.engine.hooks import CpuMemory, PeriodicCheckpoint
from ovformer.engine.trainer import MIN_LOSS_SCALE, Trainer, get_random_state, set_random_state
from support.small_training import (
    CallbackHook,
    Regression,
    image_batches,
    make_trainer,
    noisy_trainer,
)


class Constant(nn.Module):
    """A loss of weight * factor, with a factor that each iteration's record gives."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, records: list[dict]) -> dict[str, Tensor]:
        return {"loss": (self.weight * records[0]["factor"]).sum()}


# torch's, about the first step of a training in float16, which may be skipped.
FIRST_STEP = pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step:UserWarning")


def factors(*values: float):
    return lambda start, seed: iter(
        [{"factor": value, "file_name": f"image {i}"}] for i, value in enumerate(values)
    )


def gradients(steps: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = Regression().double()
    batch = [{**r, "image": r["image"].double()} for r in next(image_batches(0, 0))]
    make_trainer(model, lambda start, seed: [batch], 1, accumulation_steps=steps).train()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("steps", [2, 4])
def test_accumulated_gradient_is_that_of_the_whole_batch(steps: int) -> None:
    """Of images with 0, 1, 2 and 3 instances."""
    whole, accumulated = gradients(1), gradients(steps)
    assert whole["bias"].abs() > 0.1
    for name, gradient in whole.items():
        torch.testing.assert_close(accumulated[name], gradient, rtol=1e-12, atol=1e-14)


def test_metrics(tmp_path: Path) -> None:
    trainer = make_trainer(Regression(), image_batches, 3, accumulation_steps=2)
    writer = JSONWriter(str(tmp_path / "metrics.json"), window_size=1)
    trainer.register_hooks([CpuMemory(), CallbackHook(after_step=lambda trainer: writer.write())])
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [0, 1, 2]
    for line in lines:
        assert line["total_loss"] == pytest.approx(line["loss_image"] + line["loss_instance"])
        assert line["grad_norm"] > 0
        assert line["data_time"] >= 0
        assert 20 < line["[metric]max_rss_mb"] < 1e6
    assert lines[0]["lr"] == pytest.approx(0.1)


def test_detectron2_hooks_work() -> None:
    calls = []

    class Hook(HookBase):
        def before_train(self) -> None:
            calls.append("before_train")

        def before_step(self) -> None:
            calls.append("before_step")

        def after_backward(self) -> None:
            assert self.trainer.model.weight.grad is not None
            calls.append("after_backward")

        def after_step(self) -> None:
            calls.append(("after_step", self.trainer.iter, self.trainer.storage.iter))

        def after_train(self) -> None:
            calls.append("after_train")

    trainer = make_trainer(Constant(), factors(1, 1), 2)
    trainer.register_hooks([Hook()])
    trainer.train()
    step = ["before_step", "after_backward"]
    steps = [*step, ("after_step", 0, 0), *step, ("after_step", 1, 1)]
    assert calls == ["before_train", *steps, "after_train"]


class HalfGradient(torch.autograd.Function):
    """Sends the gradient through float16, as a layer under autocast does."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient.half().float()


class Overflow(Constant):
    def forward(self, records: list[dict]) -> dict[str, Tensor]:
        return {"loss": (HalfGradient.apply(self.weight) * records[0]["factor"]).sum()}


@FIRST_STEP
def test_an_overflow_of_float16_only_skips_a_step(tmp_path: Path) -> None:
    """The first loss scale, 65536, is too large for a gradient of 2; half of it is not."""
    seen = []

    def overflowing_trainer() -> Trainer:
        others = {"amp_type": torch.float16, "output_dir": str(tmp_path)}
        trainer = make_trainer(Overflow(), factors(1, 1, 0.5), 3, **others)
        weight = trainer.model.weight
        trainer.register_hooks([CallbackHook(after_step=lambda t: seen.append(weight.item()))])
        return trainer

    trainer = overflowing_trainer()
    trainer.register_hooks([PeriodicCheckpoint(100)])
    trainer.train()
    assert seen[:2] == [1, pytest.approx(0.9)] and seen[2] < seen[1]
    assert trainer.state_dict()["grad_scaler"]["scale"] == 65536 / 2
    resumed = overflowing_trainer()
    resumed.resume_or_load("", resume=True)
    assert resumed.state_dict()["grad_scaler"]["scale"] == 65536 / 2


@FIRST_STEP
@pytest.mark.parametrize("amp_type", [torch.bfloat16, torch.float16])
def test_infinite_gradients_stop(amp_type: torch.dtype) -> None:
    """Without a loss scale at once, with one when a smaller scale would not help."""

    class Infinite(Constant):
        def forward(self, records: list[dict]) -> dict[str, Tensor]:
            return {"loss": (self.weight - 1).sqrt().sum()}  # 0, with an infinite slope

    model = Infinite()
    trainer = make_trainer(model, factors(*[1] * 100), 100, amp_type=amp_type)
    with pytest.raises(FloatingPointError, match="gradient"):
        trainer.train()
    scale = 65536 / 2**trainer.iter
    assert scale < MIN_LOSS_SCALE if amp_type == torch.float16 else trainer.iter == 0
    assert model.weight.item() == 1


@FIRST_STEP
@pytest.mark.parametrize("amp_type", [torch.bfloat16, torch.float16])
def test_mixed_precision_reaches_the_model(amp_type: torch.dtype) -> None:
    types = []

    class Spy(Regression):
        def forward(self, records: list[dict]) -> dict[str, Tensor]:
            types.append(self.linear(records[0]["image"]).dtype)
            return super().forward(records)

    torch.manual_seed(0)
    model = Spy()
    before = model.linear.weight.clone()
    make_trainer(model, image_batches, 20, amp_type=amp_type).train()
    assert types == [amp_type] * 20
    assert model.linear.weight.dtype == torch.float32
    assert not torch.equal(model.linear.weight, before)


def test_gradients_are_clipped_after_the_loss_scale_is_taken_off() -> None:
    def clip_to_half(parameters: list) -> Tensor:
        return nn.utils.clip_grad_norm_(parameters, 0.5)

    model = Constant()
    loader = factors(0.7)  # times 65536 fits into float32
    make_trainer(
        model, loader, 1, lr=1.0, amp_type=torch.float16, clip_gradients=clip_to_half
    ).train()
    assert model.weight.item() == pytest.approx(1 - 0.5, rel=1e-4)


def test_a_resumed_training_is_the_same_to_the_bit(tmp_path: Path) -> None:
    whole = noisy_trainer(tmp_path, 5)
    whole.train()
    expected = whole.model.state_dict()
    assert {p.name for p in tmp_path.iterdir()} == {
        "model_0000001.pth",
        "model_0000003.pth",
        "model_final.pth",
        "last_checkpoint",
    }

    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    resumed = noisy_trainer(tmp_path, 5)
    torch.manual_seed(123)
    resumed.resume_or_load("", resume=True)
    assert resumed.start_iter == 2
    resumed.train()
    torch.testing.assert_close(resumed.model.state_dict(), expected, rtol=0, atol=0)
    assert resumed.scheduler.state_dict() == whole.scheduler.state_dict()


def test_the_state_of_another_trainer_is_refused() -> None:
    trainer = make_trainer(Constant(), factors(1), 1)
    with pytest.raises(ValueError, match="optimizer, grad_scaler, random_states, seed.*WEIGHTS"):
        trainer.load_state_dict({"iteration": 3, "_trainer": {}})


def test_random_states_are_plain_and_restorable(tmp_path: Path) -> None:
    def draw() -> tuple:
        return random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item()

    np.random.randn()  # leaves a second normal number behind
    torch.save(get_random_state(), tmp_path / "state.pth")
    expected = draw()
    set_random_state(torch.load(tmp_path / "state.pth", weights_only=True))
    assert draw() == expected
