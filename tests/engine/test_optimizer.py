"""Parameter groups, gradient clipping, and scaling to the number of processes."""

from pathlib import Path

import pytest
import torch
from torch import nn

from ovformer.config import get_ovformer_cfg
from ovformer.engine.optimizer import (
    build_gradient_clipper,
    build_optimizer,
    group_parameters,
    scale_to_world_size,
)

BASE = Path(__file__).parents[2] / "configs" / "base_image.yaml"


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros(3))
        self.qkv = nn.Linear(2, 2)


class Model(nn.Module):
    """A parameter of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict(
            {"conv": nn.Conv2d(1, 1, 1), "norm": nn.BatchNorm2d(1), "attention": Attention()}
        )
        self.backbone.absolute_pos_embed = nn.Parameter(torch.zeros(1))
        self.query_embed = nn.Embedding(2, 2)
        self.my_backbone_adapter = nn.Linear(1, 1)
        self.norm = nn.LayerNorm(2)
        self.group_norm = nn.GroupNorm(1, 1)
        self.level_embed = nn.Parameter(torch.zeros(1))
        self.frozen = nn.Linear(1, 1).requires_grad_(False)
        self.tied = nn.Linear(1, 1)
        self.tied.weight = self.my_backbone_adapter.weight


def test_parameter_groups() -> None:
    """Learning rate and weight decay of each parameter; frozen ones have no group."""
    model = Model()
    groups = group_parameters(
        model,
        lr=1.0,
        backbone_multiplier=0.1,
        weight_decay=0.05,
        weight_decay_norm=0.01,
        weight_decay_embed=0.02,
    )
    settings = [
        (p, (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]
    ]
    assert len(dict(settings)) == len(settings), "a parameter is in two groups"
    settings = dict(settings)
    assert {name: settings[p] for name, p in model.named_parameters() if p in settings} == {
        "backbone.conv.weight": (0.1, 0.05),
        "backbone.conv.bias": (0.1, 0.05),
        "backbone.norm.weight": (0.1, 0.01),
        "backbone.norm.bias": (0.1, 0.01),
        "backbone.attention.relative_position_bias_table": (0.1, 0.0),
        "backbone.attention.qkv.weight": (0.1, 0.05),
        "backbone.attention.qkv.bias": (0.1, 0.05),
        "backbone.absolute_pos_embed": (0.1, 0.0),
        "query_embed.weight": (1.0, 0.02),
        "my_backbone_adapter.weight": (1.0, 0.05),
        "my_backbone_adapter.bias": (1.0, 0.05),
        "norm.weight": (1.0, 0.01),
        "norm.bias": (1.0, 0.01),
        "group_norm.weight": (1.0, 0.01),
        "group_norm.bias": (1.0, 0.01),
        "level_embed": (1.0, 0.05),
        "tied.bias": (1.0, 0.05),
    }


@pytest.mark.parametrize(("name", "kind"), [("ADAMW", torch.optim.AdamW), ("SGD", torch.optim.SGD)])
def test_published_settings_reach_the_optimizer(name: str, kind: type) -> None:
    cfg = get_ovformer_cfg(str(BASE), ["SOLVER.OPTIMIZER", name])
    optimizer = build_optimizer(cfg, Model())
    assert type(optimizer) is kind
    settings = {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert settings == {(1e-4, 0.05), (1e-4, 0.0), (1e-5, 0.05), (1e-5, 0.0)}
    if name == "SGD":
        assert {group["momentum"] for group in optimizer.param_groups} == {0.9}


def clipped(clip_type: str, value: float, enabled: bool = True) -> tuple[float, list, list]:
    """Clip gradients (3, 4) and (12,), of norms 5, 12 and together 13."""
    opts = ["ENABLED", enabled, "CLIP_TYPE", clip_type, "CLIP_VALUE", value]
    opts = [f"SOLVER.CLIP_GRADIENTS.{o}" if i % 2 == 0 else o for i, o in enumerate(opts)]
    first, second = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    first.grad, second.grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0])
    without = nn.Parameter(torch.zeros(1))
    norm = build_gradient_clipper(get_ovformer_cfg(None, opts))([first, without, second])
    assert without.grad is None
    return norm.item(), first.grad.tolist(), second.grad.tolist()


@pytest.mark.parametrize(
    ("arguments", "first", "second"),
    [
        (("full_model", 1.3), [0.3, 0.4], [1.2]),
        (("full_model", 20.0), [3, 4], [12]),
        (("full_model", 0.0), [3, 4], [12]),
        (("full_model", 1.3, False), [3, 4], [12]),
        (("norm", 10.0), [3, 4], [10]),
        (("norm", 1.0), [0.6, 0.8], [1]),
        (("value", 3.5), [3, 3.5], [3.5]),
    ],
)
def test_clipping(arguments, first, second) -> None:
    norm, *gradients = clipped(*arguments)
    assert norm == pytest.approx(13)
    for got, expected in zip(gradients, (first, second), strict=True):
        assert got == pytest.approx(expected, rel=1e-5)


def test_scaling_to_fewer_processes(caplog) -> None:
    opts = ["SOLVER.REFERENCE_WORLD_SIZE", 4, "TEST.EVAL_PERIOD", 500, "SOLVER.WARMUP_ITERS", 100]
    cfg = get_ovformer_cfg(str(BASE), opts)
    with caplog.at_level("INFO", "ovformer.engine.optimizer"):
        scaled = scale_to_world_size(cfg, 2)
    assert cfg.SOLVER.IMS_PER_BATCH == 8
    assert scaled.is_frozen()
    solver = scaled.SOLVER
    assert solver.BASE_LR == pytest.approx(5e-5)
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER, solver.STEPS) == (4, 885000, (796500, 840750))
    assert (solver.WARMUP_ITERS, solver.CHECKPOINT_PERIOD) == (200, 40000)
    assert (scaled.TEST.EVAL_PERIOD, solver.REFERENCE_WORLD_SIZE) == (1000, 2)
    assert "SOLVER.IMS_PER_BATCH 8 -> 4" in caplog.text
    assert "TEST.EVAL_PERIOD 500 -> 1000" in caplog.text
    assert "WEIGHT_DECAY" not in caplog.text


@pytest.mark.parametrize("reference", [0, 2])
def test_no_scaling(reference: int) -> None:
    cfg = get_ovformer_cfg(None, ["SOLVER.REFERENCE_WORLD_SIZE", reference])
    assert scale_to_world_size(cfg, 2) is cfg
