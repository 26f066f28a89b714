"""Frozen norms folded into convolutions."""

import copy

import pytest
import torch
from torch import nn

from ovformer.d2 import FrozenBatchNorm2d
from ovformer.modeling.backbone.folded_norm import (
    FoldingConv2d,
    copy_without_norms,
    fold_frozen_norms,
    stop_folding,
)
from ovformer.modeling.backbone.timm import TimmBackbone

KWARGS = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32], "stem_width": 8}


def randomise_norms(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, FrozenBatchNorm2d):
            for constant in (module.weight, module.running_var):
                constant.uniform_(0.5, 1.5)
            for constant in (module.bias, module.running_mean):
                constant.normal_()


@pytest.fixture
def backbone() -> TimmBackbone:
    torch.manual_seed(0)
    network = TimmBackbone("resnet50", (2, 3, 4, 5), kwargs=KWARGS)
    randomise_norms(network)
    return network.eval()


def assert_same(network: nn.Module, images: torch.Tensor) -> None:
    """Folded and plain features are the same."""
    with torch.no_grad():
        folded = network(images)
        plain = stop_folding(copy.deepcopy(network))(images)
    for name, expected in plain.items():
        scale = expected.abs().max().item()
        torch.testing.assert_close(folded[name], expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
    "name, kwargs",
    [
        ("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "stem_type": "deep"}),
        ("resnet50", KWARGS),
        ("resnet50", {**KWARGS, "block_args": {"attn_layer": "se"}}),
        ("densenet121", {"growth_rate": 4, "block_config": (1, 1, 1, 1)}),
    ],
)
def test_features_are_the_same(name, kwargs) -> None:
    torch.manual_seed(0)
    network = TimmBackbone(name, (2, 3, 4), kwargs=kwargs).eval()
    randomise_norms(network)
    assert_same(network, torch.randn(2, 3, 64, 64))


def test_a_copy_with_plain_convolutions_alone(backbone) -> None:
    names = list(backbone.state_dict())
    norms = [part for part in backbone.modules() if isinstance(part, FrozenBatchNorm2d)]
    convolutions = [part for part in backbone.modules() if isinstance(part, FoldingConv2d)]
    assert len(norms) == len(convolutions) == 1 + 4 * (3 + 1)
    plain = copy_without_norms(backbone)
    assert not any(isinstance(x, (FoldingConv2d, FrozenBatchNorm2d)) for x in plain.modules())
    images = torch.randn(2, 3, 64, 64)
    features = plain(images)  # with gradients on, too
    with torch.no_grad():
        for name, expected in backbone(images).items():
            assert features[name].equal(expected)
    assert list(backbone.state_dict()) == names


def test_gradients_are_those_of_plain_norms(backbone) -> None:
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():  # what this keeps must not reach the backward pass
        backbone(images)
    plain = stop_folding(copy.deepcopy(backbone))
    for network in (backbone, plain):
        network(images)["layer5"].square().sum().backward()
    for mine, other in zip(backbone.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad) and mine.grad.abs().sum() > 0


@torch.no_grad()
def test_folded_weights_follow_their_sources(backbone) -> None:
    images = torch.randn(1, 3, 64, 64)
    assert_same(backbone, images)
    backbone.load_state_dict({key: x * 0.9 for key, x in backbone.state_dict().items()})
    assert_same(backbone, images)
    for source in (backbone.base.conv1.weight, backbone.base.bn1.bias):
        source.add_(1)
        assert_same(backbone, images)
    # PyTorch's version counter misses a change through ``data``; training begins with train().
    backbone.train().base.conv1.weight.data.mul_(0.9)
    assert_same(backbone.eval(), images)
    assert_same(backbone.double(), images.double())


def test_a_conv_with_bias_and_other_neighbours() -> None:
    norm = FrozenBatchNorm2d(4)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), norm, nn.Conv2d(4, 4, 1), nn.ReLU(), FrozenBatchNorm2d(4)
    )
    randomise_norms(network)
    images = torch.randn(2, 3, 8, 8)
    expected = network(images)
    fold_frozen_norms(network)
    assert [type(m) is FoldingConv2d for m in network] == [True, False, False, False, False]
    with torch.no_grad():
        torch.testing.assert_close(network(images), expected)
