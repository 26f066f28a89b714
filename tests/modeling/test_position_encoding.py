"""Positions are right, made once per shape, and do not pile up."""

import math

import pytest
import torch

from ovformer.modeling.decoders import position_encoding
from ovformer.modeling.decoders.position_encoding import (
    clip_position_encoding,
    reference_points,
    sine_position_encoding,
)

CPU = torch.device("cpu")


def test_sine_positions_are_their_formula() -> None:
    height, width, channels = 3, 5, 8
    encoding = sine_position_encoding(height, width, channels, CPU)
    assert encoding.shape == (height * width, channels)
    for row in range(height):
        for column in range(width):
            expected = []
            for index, length in ((row, height), (column, width)):
                angle = 2 * math.pi * (index + 1) / length
                for pair in range(channels // 4):
                    wave = angle / 10000 ** (pair / (channels // 4))
                    expected += [math.sin(wave), math.cos(wave)]
            got = encoding[row * width + column].tolist()
            assert got == pytest.approx(expected, abs=1e-5)


def test_positions_in_a_clip_add_the_frames() -> None:
    num_frames, channels = 3, 8
    clip = clip_position_encoding(num_frames, 2, 5, channels, CPU)
    assert clip.shape == (num_frames * 2 * 5, channels)
    frames = (clip - sine_position_encoding(2, 5, channels, CPU).repeat(num_frames, 1)).unflatten(
        0, (num_frames, 10)
    )
    for t in range(num_frames):
        angle = 2 * math.pi * (t + 1) / num_frames
        waves = [angle / 10000 ** (pair / (channels // 2)) for pair in range(channels // 2)]
        expected = [f(wave) for wave in waves for f in (math.sin, math.cos)]
        torch.testing.assert_close(frames[t], torch.tensor(expected).expand(10, -1))


def test_reference_points_are_pixel_centres() -> None:
    points = reference_points([(1, 2), (2, 1)], CPU)
    assert points.tolist() == [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]]


def test_they_are_made_once_per_shape_and_do_not_pile_up() -> None:
    assert sine_position_encoding(4, 6, 8, CPU) is sine_position_encoding(4, 6, 8, CPU)
    assert reference_points([(4, 6)], CPU) is reference_points([[4, 6]], CPU)
    for size in range(1, 40):
        sine_position_encoding(size, 1, 4, CPU)
        clip_position_encoding(size, 1, 1, 4, CPU)
        reference_points([(size, 1)], CPU)
    assert clip_position_encoding(3, 4, 6, 8, CPU) is clip_position_encoding(3, 4, 6, 8, CPU)
    for name in ("_sine_position_encoding", "_clip_position_encoding", "_reference_points"):
        kept = getattr(position_encoding, name)
        assert kept.cache_info().currsize <= 8


def test_positions_made_in_inference_mode_can_be_trained_with_later() -> None:
    with torch.inference_mode():
        encoding = sine_position_encoding(5, 9, 12, CPU)
        clip = clip_position_encoding(2, 5, 9, 12, CPU)
        points = reference_points([(5, 9)], CPU)
    weight = torch.ones(1, requires_grad=True)
    (weight * encoding).sum().backward()
    (weight * clip).sum().backward()
    (weight * points).sum().backward()
    assert not encoding.requires_grad


def test_a_width_that_has_no_sine_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 4.*got 6"):
        sine_position_encoding(2, 2, 6, CPU)
