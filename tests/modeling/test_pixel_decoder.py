"""The pixel decoder for other features, sizes and types than the published ones."""

import pytest
import torch

from ovformer.d2 import ShapeSpec
from ovformer.modeling.decoders.pixel_decoder import MSDeformAttnPixelDecoder

STRIDES = {"layer2": 4, "layer3": 8, "layer4": 16, "layer5": 32}


def build(coarse=("layer3", "layer4", "layer5"), strides=STRIDES, **changed):
    arguments = {
        "transformer_in_features": coarse,
        "conv_dim": 32,
        "mask_dim": 12,
        "norm": "GN",
        "common_stride": 4,
        "num_layers": 1,
        "num_heads": 4,
        "num_points": 2,
        "dim_feedforward": 16,
        "dropout": 0.0,
    }
    shapes = {name: ShapeSpec(channels=stride, stride=stride) for name, stride in strides.items()}
    torch.manual_seed(0)
    return MSDeformAttnPixelDecoder(shapes, **{**arguments, **changed})


def features(height=75, width=101):
    """Backbone features of an image whose sides are multiples of nothing."""
    torch.manual_seed(1)
    return {
        name: torch.randn(2, stride, -(-height // stride), -(-width // stride))
        for name, stride in STRIDES.items()
    }


@pytest.mark.parametrize("coarse", [["layer5", "layer3", "layer4"], ["layer4", "layer5"]])
def test_levels_come_coarsest_first_for_odd_sizes(coarse) -> None:
    decoder = build(coarse)
    mask_features, levels = decoder(features())
    assert mask_features.shape == (2, 12, 19, 26)
    assert [tuple(x.shape) for x in levels] == [(2, 32, 3, 4), (2, 32, 5, 7), (2, 32, 10, 13)]
    names = {name.split(".")[0] for name, _ in decoder.named_parameters()}
    fpn = {
        f"{kind}_{index}" for kind in ("adapter", "layer") for index in range(1, 5 - len(coarse))
    }
    assert names == {"input_proj", "transformer", "mask_features", *fpn}


def test_the_finest_level_may_have_the_common_stride() -> None:
    mask_features, levels = build(list(STRIDES))(features())
    assert mask_features.shape[-2:] == (19, 26)
    assert len(levels) == 3


def test_autocast_changes_nothing() -> None:
    decoder, inputs = build(), features()
    inputs = {name: x.bfloat16() for name, x in inputs.items()}
    with torch.autocast("cpu", torch.bfloat16):
        got, levels = decoder(inputs)
    expected, _ = decoder({name: x.float() for name, x in inputs.items()})
    assert got.dtype == torch.float32 and levels[0].dtype == torch.float32
    assert got.equal(expected)


def test_without_norm_convolutions_have_a_bias() -> None:
    assert build().adapter_1.bias is None
    assert build(norm="").adapter_1.bias is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"conv_dim": 48}, "CONVS_DIM: expected a multiple of 32.*got 48"),
        ({"num_heads": 5}, "CONVS_DIM 32 cannot be divided into 5 heads"),
        ({"coarse": ["layer5", "res4"]}, r"\['res4'\] are not in .*IN_FEATURES"),
        ({"common_stride": 2}, r"COMMON_STRIDE 2 up, got strides \[4, 8, 16, 32\]"),
        ({"coarse": ["layer5"], "common_stride": 16}, r"3 or more levels.*strides \[16, 32\]"),
    ],
)
def test_what_cannot_be_built_is_explained(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        build(**arguments)
