"""Small trainings, for the tests of the trainer, its hooks, and of interruptions."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ovformer.d2 import HookBase, TrainerBase, hooks
from ovformer.engine.hooks import PeriodicCheckpoint
from ovformer.engine.trainer import Trainer

# Values of metrics.json that differ from run to run.
TIMES = ("time", "data_time", "eta_seconds", "[metric]max_rss_mb")


class Regression(nn.Module):
    """One loss is a mean over images, the other one over instances, like the class and mask losses.

    A record's "instances" are numbers; each is a term of the second loss.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.bias = nn.Parameter(torch.ones(1))

    def instance_counts(self, record: dict) -> list[int]:
        return [len(record["instances"])]

    def least_size(self, records: list[dict]) -> tuple[int, int]:
        return 0, 0

    def forward(self, records: list[dict]) -> dict[str, Tensor]:
        counts = [len(record["instances"]) for record in records]
        whole = records[0].get("instance_counts", counts)
        norm = max(sum(whole) * len(records) / len(whole), 1)
        outputs = self.linear(torch.stack([record["image"] for record in records]))
        terms = [
            (output.square() - target).abs().sum()
            for output, record in zip(outputs, records, strict=True)
            for target in record["instances"]
        ]
        return {
            "loss_image": outputs.square().mean(),
            "loss_instance": self.bias.abs().sum() * (sum(terms) + 0 * outputs.sum()) / norm,
        }


class Noisy(Regression):
    """With a random number in one of the losses."""

    def forward(self, records: list[dict]) -> dict[str, Tensor]:
        losses = super().forward(records)
        return {**losses, "loss_noise": self.bias.sum() * torch.rand(())}


def record(index: int) -> dict:
    generator = torch.Generator().manual_seed(index)
    return {
        "file_name": f"image {index}",
        "image": torch.randn(2, generator=generator),
        "instances": 0.1 * torch.arange(index % 4),
    }


def image_batches(start: int, seed: int, size: int = 4):
    """Endless batches; iteration i has the same images wherever it starts."""
    for iteration in itertools.count(start):
        yield [record(seed + iteration * size + k) for k in range(size)]


def norm_only(parameters) -> Tensor:
    return torch.stack([p.grad.norm() for p in parameters]).norm()


def make_trainer(
    model: nn.Module, build_loader: Callable, max_iter: int, lr: float = 0.1, **others
) -> Trainer:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
    trainer = Trainer(
        model,
        optimizer,
        scheduler,
        build_loader,
        max_iter=max_iter,
        seed=0,
        clip_gradients=others.pop("clip_gradients", norm_only),
        **others,
    )
    trainer.register_hooks([hooks.LRScheduler()])
    return trainer


def noisy_trainer(folder: Path, max_iter: int, **others) -> Trainer:
    """One whose state is saved after each second iteration."""
    torch.manual_seed(0)
    trainer = make_trainer(Noisy(), image_batches, max_iter, output_dir=str(folder), **others)
    trainer.register_hooks([PeriodicCheckpoint(2)])
    return trainer


class CallbackHook(HookBase):
    """Calls functions with the trainer before and after each iteration."""

    def __init__(
        self,
        before_step: Callable[[TrainerBase], None] = lambda trainer: None,
        after_step: Callable[[TrainerBase], None] = lambda trainer: None,
    ) -> None:
        self._before_step, self._after_step = before_step, after_step

    def before_step(self) -> None:
        self._before_step(self.trainer)

    def after_step(self) -> None:
        self._after_step(self.trainer)


def read_curves(output: Path) -> list[dict]:
    """Return the whole lines of metrics.json without what differs from run to run."""
    path = output / "metrics.json"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = sorted(
        (json.loads(line) for line in lines if line.endswith("\n")), key=lambda x: x["iteration"]
    )
    return [{k: v for k, v in line.items() if k not in TIMES} for line in found]
