"""The pixel decoder for other features, sizes and types than the published ones."""

import numpy as np
import pytest
import torch

from ovformer.d2 import ShapeSpec
from ovformer.modeling.decoders.deformable_encoder import MSDeformAttn
from ovformer.modeling.decoders.pixel_decoder import MSDeformAttnPixelDecoder

STRIDES = {"layer2": 4, "layer3": 8, "layer4": 16, "layer5": 32}


def build(coarse=("layer3", "layer4", "layer5"), **changed):
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
    shapes = {name: ShapeSpec(channels=stride, stride=stride) for name, stride in STRIDES.items()}
    torch.manual_seed(0)
    return MSDeformAttnPixelDecoder(shapes, **{**arguments, **changed})


@pytest.fixture
def features():
    """Backbone features of an image of 75 x 101 pixels, multiples of nothing."""
    torch.manual_seed(1)
    return {
        name: torch.randn(2, stride, -(-75 // stride), -(-101 // stride))
        for name, stride in STRIDES.items()
    }


@pytest.mark.parametrize("coarse", [["layer5", "layer3", "layer4"], ["layer4", "layer5"], STRIDES])
def test_levels_come_coarsest_first_for_odd_sizes(coarse, features) -> None:
    decoder = build(list(coarse), norm="")
    mask_features, levels = decoder(features)
    assert mask_features.shape == (2, 12, 19, 26)
    assert [tuple(x.shape) for x in levels] == [(2, 32, 3, 4), (2, 32, 5, 7), (2, 32, 10, 13)]
    fpn = {f"{kind}_{n}" for kind in ("adapter", "layer") for n in range(1, 5 - len(coarse))}
    names = {name for name, _ in decoder.named_children()}
    assert names == {"input_proj", "transformer", "mask_features", *fpn}
    assert all(getattr(decoder, name).bias is not None for name in fpn)  # there is no norm


def test_autocast_changes_nothing(features) -> None:
    half = {name: x.bfloat16() for name, x in features.items()}
    with torch.autocast("cpu", torch.bfloat16):
        got = build()(half)
    expected = build()({name: x.float() for name, x in half.items()})
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("trace", ["export", "compile"])
def test_the_encoder_is_traced_and_works_as_before_afterwards(trace) -> None:
    """What is kept between calls holds no tensor of a traced graph."""
    encoder = build(["layer4", "layer5"]).transformer
    maps = [torch.randn(2, 32, *size) for size in ((3, 11), (6, 22))]
    if trace == "export":
        traced = torch.export.export(encoder, (maps,), strict=False).module()
    else:
        traced = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(traced(maps), encoder(maps))


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


def test_deformable_attention_gives_the_recorded_output(reference, fill_weights) -> None:
    recorded = {
        key: torch.from_numpy(x) for key, x in np.load(reference("msdeform_module.npz")).items()
    }
    module = MSDeformAttn(64, num_levels=3, num_heads=8, num_points=4).double()
    for name, value in module.state_dict().items():
        value.copy_(torch.from_numpy(fill_weights.fill_value(f"msda.{name}", value.shape)))
    inputs = ("query", "reference_points", "input_flatten", "spatial_shapes", "level_start_index")
    output = module(*(recorded[name] for name in inputs))
    torch.testing.assert_close(output, recorded["output"], rtol=1e-9, atol=1e-11)


def test_heads_start_in_different_directions_and_points_at_growing_distance() -> None:
    module = MSDeformAttn(16, num_levels=2, num_heads=4, num_points=3)
    offsets = module.sampling_offsets.bias.view(4, 2, 3, 2)
    directions = torch.tensor([(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)])
    expected = directions[:, None, None] * torch.arange(1, 4)[:, None]
    torch.testing.assert_close(offsets, expected.expand(-1, 2, -1, -1), rtol=0, atol=1e-6)
    assert not module.sampling_offsets.weight.any()
    assert not module.attention_weights.weight.any()
