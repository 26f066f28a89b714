"""The frames of a training clip."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovformer.data.samples.frame_sampling import sample_frames


@given(
    length=st.integers(1, 30),
    num_frames=st.integers(1, 8),
    frame_range=st.integers(0, 12),
    seed=st.integers(0, 2**31 - 1),
)
def test_frames_are_near_each_other_and_as_different_as_can_be(
    length: int, num_frames: int, frame_range: int, seed: int
) -> None:
    frames = sample_frames(length, num_frames, frame_range, seed)
    assert len(frames) == num_frames and frames == sorted(frames)
    assert 0 <= frames[0] and frames[-1] < length
    # There is a reference frame that all others are within the range of.
    assert any(all(abs(t - r) <= frame_range for t in frames) for r in frames)
    counts = Counter(frames).values()
    if num_frames <= min(length, frame_range + 1):  # at the edge the neighbours are one-sided
        assert max(counts) == 1
    assert max(counts) - min(counts) <= 1
    shuffled = sample_frames(length, num_frames, frame_range, seed, shuffle=True)
    assert sorted(shuffled) == frames


def test_all_frames_and_orders_are_drawn() -> None:
    drawn = [sample_frames(10, 2, 3, seed) for seed in range(300)]
    assert {t for frames in drawn for t in frames} == set(range(10))
    assert {b - a for a, b in drawn} == {1, 2, 3}
    shuffled = [sample_frames(10, 3, 20, seed, shuffle=True) for seed in range(20)]
    assert any(frames != sorted(frames) for frames in shuffled)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [((0, 2, 5), "length"), ((3, 0, 5), "FRAME_NUM"), ((3, 2, -1), "FRAME_RANGE")],
)
def test_bad_arguments(arguments: tuple[int, int, int], key: str) -> None:
    with pytest.raises(ValueError, match=f"{key}: .* got {min(arguments)}"):
        sample_frames(*arguments, seed=0)
