"""The op equals its definition and the numbers recorded from the published system."""

import itertools
import math

import numpy as np
import pytest
import torch

from ovformer.ops.ms_deform_attn import ms_deform_attn


def make_inputs(shapes, batch=2, queries=3, heads=2, channels=3, points=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    sizes = (batch, queries, heads, len(shapes), points)
    lengths = [height * width for height, width in shapes]

    def rand(*size):
        return torch.rand(*size, generator=generator, dtype=dtype)

    return {
        "value": rand(batch, sum(lengths), heads, channels) - 0.5,
        "spatial_shapes": torch.tensor(shapes),
        "level_start_index": torch.tensor([0, *lengths]).cumsum(0)[:-1],
        # Some of the places are outside of the maps.
        "sampling_locations": rand(*sizes, 2) * 1.6 - 0.3,
        "attention_weights": rand(*sizes),
    }


def definition(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
    """One number after the other."""
    batch, queries, heads, levels, points, _ = sampling_locations.shape
    output = torch.zeros(batch, queries, heads, value.shape[-1], dtype=value.dtype)
    for index in itertools.product(*map(range, (batch, queries, heads, levels, points))):
        n, q, m, level, _ = index
        height, width = spatial_shapes[level].tolist()
        x = sampling_locations[index][0].item() * width - 0.5
        y = sampling_locations[index][1].item() * height - 0.5
        for row, column in itertools.product(
            (math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)
        ):
            if 0 <= row < height and 0 <= column < width:
                share = (1 - abs(y - row)) * (1 - abs(x - column)) * attention_weights[index]
                token = level_start_index[level] + row * width + column
                output[n, q, m] += share * value[n, token, m]
    return output.flatten(2)


@pytest.mark.parametrize("shapes", [[(4, 5)], [(1, 1), (3, 7)], [(2, 3), (5, 4), (1, 6)]])
def test_it_is_its_definition(shapes) -> None:
    inputs = make_inputs(shapes)
    torch.testing.assert_close(ms_deform_attn(**inputs), definition(**inputs), rtol=0, atol=1e-12)


def test_output_and_gradients_are_the_recorded_ones(reference) -> None:
    recorded = {
        key: torch.from_numpy(x) for key, x in np.load(reference("msdeform_core.npz")).items()
    }
    inputs = {
        key: recorded[key].requires_grad_()
        for key in ("value", "sampling_locations", "attention_weights")
    }
    shapes = recorded["spatial_shapes"]
    starts = torch.cat([torch.zeros(1, dtype=torch.long), shapes.prod(1).cumsum(0)[:-1]])
    output = ms_deform_attn(spatial_shapes=shapes, level_start_index=starts, **inputs)
    torch.testing.assert_close(output, recorded["output"], rtol=1e-10, atol=1e-12)
    output.backward(recorded["grad_output"])
    for key, value in inputs.items():
        torch.testing.assert_close(value.grad, recorded[f"grad_{key}"], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_values_are_computed_in_float32(dtype) -> None:
    inputs = make_inputs([(3, 4), (6, 8)], dtype=torch.float32)
    inputs["value"] = inputs["value"].to(dtype)
    output = ms_deform_attn(**inputs)
    inputs["value"] = inputs["value"].float()
    assert output.dtype == dtype
    assert output.equal(ms_deform_attn(**inputs).to(dtype))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"value": torch.zeros(2, 12, 6)}, r"expected value \(N, S, M, D\)"),
        ({"value": torch.zeros(2, 13, 2, 3)}, "value has 13 tokens"),
        ({"level_start_index": torch.tensor([1])}, r"level_start_index is \[1\]"),
        ({"spatial_shapes": torch.tensor([(3, 4), (1, 1)])}, "2 spatial_shapes"),
        ({"sampling_locations": torch.zeros(2, 3, 2, 1, 3, 2)}, "sampling_locations is"),
        ({"attention_weights": torch.zeros(2, 3, 1, 1, 2)}, "attention_weights is"),
    ],
)
def test_shapes_that_do_not_fit_are_named(changed, message) -> None:
    with pytest.raises(ValueError, match=message):
        ms_deform_attn(**{**make_inputs([(3, 4)]), **changed})
