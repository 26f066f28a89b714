"""Layers, registries and points, on the selected back-end."""

import inspect

import numpy as np
import pytest
import torch
from torch import nn

from ovformer.d2 import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    Backbone,
    CfgNode,
    Conv2d,
    FrozenBatchNorm2d,
    ShapeSpec,
    build_backbone,
    build_model,
    build_sem_seg_head,
    get_cfg,
    get_norm,
    get_uncertain_point_coords_with_randomness,
    point_sample,
)


def test_points_are_drawn_and_sampled_as_recorded(recorded) -> None:
    maps = torch.from_numpy(recorded["points.input"])
    points = torch.from_numpy(recorded["points.coords"])
    sampled = point_sample(maps, points, align_corners=False)
    np.testing.assert_allclose(sampled, recorded["points.sampled"], rtol=0, atol=1e-6)
    grid = point_sample(maps, points.view(2, 1, 11, 2), align_corners=False)
    assert torch.equal(grid[:, :, 0], sampled)
    torch.manual_seed(9)
    points = get_uncertain_point_coords_with_randomness(maps, lambda x: -x.abs(), 8, 3, 0.75)
    np.testing.assert_allclose(points, recorded["points.uncertain_seed9"], rtol=0, atol=1e-7)


@pytest.mark.parametrize(("oversample", "importance"), [(0.5, 0.5), (2, 1.5), (2, -0.1)])
def test_wrong_ratios_of_uncertain_points_are_errors_and_0_and_1_are_not(
    oversample, importance
) -> None:
    maps = torch.zeros(1, 1, 2, 2)
    with pytest.raises(AssertionError):
        get_uncertain_point_coords_with_randomness(maps, lambda x: x, 4, oversample, importance)
    for share in (0.0, 1.0):
        points = get_uncertain_point_coords_with_randomness(maps, lambda x: x, 4, 2.5, share)
        assert points.shape == (1, 4, 2) and 0 <= points.min() and points.max() <= 1


def test_frozen_batch_norm_as_recorded(recorded) -> None:
    wanted = recorded["frozen_bn"]
    layer = FrozenBatchNorm2d(4)
    assert layer.eps == wanted["eps"]
    assert sorted(layer.state_dict()) == wanted["state"]
    assert not list(layer.parameters())
    assert layer.state_dict()._metadata[""] == {"version": 3}
    images = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(layer(images), images)
    assert layer(images.bfloat16().requires_grad_()).dtype == torch.bfloat16
    converted = FrozenBatchNorm2d.convert_frozen_batchnorm(nn.BatchNorm2d(4))
    assert type(converted).__name__ == wanted["converted"]


@pytest.mark.parametrize("needs_grad", [False, True])
def test_frozen_batch_norm_equals_batch_norm_in_eval(needs_grad) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, eps=1e-3).eval()
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor.copy_(torch.rand(4) + 0.5)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(norm))
    images = torch.randn(2, 3, 5, 6, requires_grad=needs_grad)
    wanted, norm_state = model(images), norm.state_dict()
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(model).train()
    assert isinstance(frozen[1][0], FrozenBatchNorm2d) and frozen[1][0].eps == 1e-3
    torch.testing.assert_close(frozen(images), wanted, rtol=1e-5, atol=1e-6)
    # The weights of a BatchNorm2d fit, including its counter.
    assert set(frozen[1][0].state_dict()) == set(norm_state)
    frozen[1][0].load_state_dict(norm_state)


def test_frozen_batch_norm_without_statistics_loads_only_if_old() -> None:
    weights = {"weight": torch.full((4,), 2.0), "bias": torch.ones(4)}
    layer = FrozenBatchNorm2d(4)
    layer.load_state_dict(dict(weights))  # no version recorded: an early file
    assert layer.running_mean.tolist() == [0] * 4 and layer.weight.tolist() == [2] * 4
    new = FrozenBatchNorm2d(4).state_dict()
    del new["running_mean"]
    with pytest.raises(RuntimeError, match="running_mean"):
        layer.load_state_dict(new)


def test_norms_as_recorded(recorded) -> None:
    for name, wanted in recorded["get_norm"].items():
        layer = get_norm(name, 32)
        if wanted is None:
            assert layer is None, name
        else:  # older versions of torch do not print bias
            assert repr(layer) in (wanted, wanted.replace("bias=True, ", "")), name
    assert get_norm(None, 8) is None
    assert isinstance(get_norm(nn.Identity, 8), nn.Identity)
    with pytest.raises(KeyError):
        get_norm("nonsense", 8)


def test_layer_norm_is_over_channels() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 8, 3, 4)
    normalised = get_norm("LN", 8)(images)
    assert normalised.shape == images.shape
    wanted = nn.functional.layer_norm(images.permute(0, 2, 3, 1), (8,), eps=1e-6)
    torch.testing.assert_close(normalised, wanted.permute(0, 3, 1, 2))


def test_conv_applies_norm_then_activation() -> None:
    conv = Conv2d(3, 4, kernel_size=3, padding=1, norm=nn.GroupNorm(2, 4), activation=torch.relu)
    assert sorted(conv.state_dict()) == ["bias", "norm.bias", "norm.weight", "weight"]
    images = torch.randn(1, 3, 5, 5)
    plain = nn.functional.conv2d(images, conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(conv(images), conv.norm(plain).relu())
    assert Conv2d(3, 4, 1).norm is None and Conv2d(3, 4, 1).activation is None


class Stem(Backbone):
    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        super().__init__()
        self._out_features = ["stem"]
        self._out_feature_channels = {"stem": 2 * input_shape.channels}
        self._out_feature_strides = {"stem": 4}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"stem": x}


def test_a_model_is_built_from_registered_parts(monkeypatch) -> None:
    def build_head(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
        return nn.Linear(input_shape["stem"].channels, input_shape["stem"].stride)

    def build_both(cfg: CfgNode) -> nn.Module:
        backbone = build_backbone(cfg)
        return nn.ModuleList([backbone, build_sem_seg_head(cfg, backbone.output_shape())])

    monkeypatch.setitem(BACKBONE_REGISTRY._obj_map, "Stem", Stem)
    monkeypatch.setitem(BACKBONE_REGISTRY._obj_map, "Other", lambda cfg, shape: nn.Identity())
    monkeypatch.setitem(SEM_SEG_HEADS_REGISTRY._obj_map, "Head", build_head)
    monkeypatch.setitem(META_ARCH_REGISTRY._obj_map, "Both", build_both)
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE = "cpu", "Both"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.SEM_SEG_HEAD.NAME = "Stem", "Head"
    backbone, head = build_model(cfg)
    assert (head.in_features, head.out_features) == (6, 4)
    assert backbone.output_shape() == {"stem": ShapeSpec(channels=6, stride=4)}
    assert backbone.size_divisibility == 0 and backbone.padding_constraints == {}
    assert inspect.isabstract(Backbone)

    cfg.MODEL.BACKBONE.NAME = "Other"
    with pytest.raises(AssertionError):
        build_backbone(cfg)
    cfg.MODEL.META_ARCHITECTURE = "Nonsense"
    with pytest.raises(KeyError, match="Nonsense"):
        build_model(cfg)
