"""Positions are made once per shape, and do not pile up. Their values are part of recordings."""

import pytest
import torch

from ovformer.modeling.decoders import position_encoding
from ovformer.modeling.decoders.position_encoding import (
    clip_position_encoding,
    reference_points,
    sine_position_encoding,
)

CPU = torch.device("cpu")


def test_they_are_made_once_per_shape_and_do_not_pile_up() -> None:
    assert sine_position_encoding(4, 6, 8, CPU) is sine_position_encoding(4, 6, 8, CPU)
    assert reference_points([(4, 6)], CPU) is reference_points([[4, 6]], CPU)
    assert clip_position_encoding(3, 4, 6, 8, CPU) is clip_position_encoding(3, 4, 6, 8, CPU)
    for size in range(1, 40):
        sine_position_encoding(size, 1, 4, CPU)
        clip_position_encoding(size, 1, 1, 4, CPU)
        reference_points([(size, 1)], CPU)
    for name in ("_sine_position_encoding", "_clip_position_encoding", "_reference_points"):
        assert getattr(position_encoding, name).cache_info().currsize <= 8


def test_positions_made_in_inference_mode_can_be_trained_with_later() -> None:
    with torch.inference_mode():
        made = [sine_position_encoding(5, 9, 12, CPU), clip_position_encoding(2, 5, 9, 12, CPU)]
        made.append(reference_points([(5, 9)], CPU))
    weight = torch.ones(1, requires_grad=True)
    for positions in made:
        (weight * positions).sum().backward()
        assert not positions.requires_grad


def test_a_width_that_has_no_sine_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 4.*got 6"):
        sine_position_encoding(2, 2, 6, CPU)
