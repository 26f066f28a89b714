"""The deformable attention module gives the recorded numbers and starts as published."""

import numpy as np
import pytest
import torch

from ovformer.modeling.decoders.deformable_encoder import MSDeformAttn, MSDeformAttnEncoder


def test_the_module_gives_the_recorded_output(reference, fill_weights) -> None:
    recorded = {
        key: torch.from_numpy(x) for key, x in np.load(reference("msdeform_module.npz")).items()
    }
    module = MSDeformAttn(64, num_levels=3, num_heads=8, num_points=4).double()
    for name, value in module.state_dict().items():
        value.copy_(torch.from_numpy(fill_weights.fill_value(f"msda.{name}", value.shape)))
    output = module(
        recorded["query"],
        recorded["reference_points"],
        recorded["input_flatten"],
        recorded["spatial_shapes"],
        recorded["level_start_index"],
    )
    torch.testing.assert_close(output, recorded["output"], rtol=1e-9, atol=1e-11)


def test_heads_start_in_different_directions_and_points_at_growing_distance() -> None:
    module = MSDeformAttn(16, num_levels=2, num_heads=4, num_points=3)
    offsets = module.sampling_offsets.bias.view(4, 2, 3, 2)
    directions = torch.tensor([(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)])
    for point in range(3):
        for level in range(2):
            torch.testing.assert_close(
                offsets[:, level, point], directions * (point + 1), rtol=0, atol=1e-6
            )
    assert not module.sampling_offsets.weight.any()
    assert not module.attention_weights.weight.any()


def test_any_sizes_of_maps_keep_their_shape_and_order() -> None:
    torch.manual_seed(0)
    encoder = MSDeformAttnEncoder(
        8, 16, dropout=0.0, num_levels=3, num_heads=2, num_points=2, num_layers=2
    )
    maps = [torch.randn(2, 8, *size) for size in ((1, 1), (3, 2), (5, 7))]
    outputs = encoder(maps)
    assert [x.shape for x in outputs] == [x.shape for x in maps]
    # Without layers the pixels come back as they went in.
    encoder.encoder.layers = encoder.encoder.layers[:0]
    assert all(a.equal(b) for a, b in zip(encoder(maps), maps, strict=True))


def test_channels_that_cannot_be_divided_into_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="CONVS_DIM 10 cannot be divided into 4 heads"):
        MSDeformAttn(10, num_levels=1, num_heads=4, num_points=1)


@pytest.mark.parametrize("trace", ["export", "compile"])
def test_the_encoder_is_traced_and_works_as_before_afterwards(trace) -> None:
    """What is kept between calls holds no tensor of a traced graph."""
    torch.manual_seed(0)
    encoder = MSDeformAttnEncoder(
        8, 16, dropout=0.0, num_levels=2, num_heads=2, num_points=2, num_layers=1
    )
    maps = [torch.randn(2, 8, *size) for size in ((3, 11), (6, 22))]
    if trace == "export":
        traced = torch.export.export(encoder, (maps,), strict=False).module()
    else:
        traced = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    outputs = traced(maps)
    for output, expected in zip(outputs, encoder(maps), strict=True):
        torch.testing.assert_close(output, expected)
