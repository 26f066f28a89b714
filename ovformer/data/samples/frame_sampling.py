"""Draws the frames of a training clip, as a function of the seed alone."""

import numpy as np


def sample_frames(
    length: int, num_frames: int, frame_range: int, seed: int, shuffle: bool = False
) -> list[int]:
    """Draw the frames of a clip around a reference frame.

    The reference frame is drawn from the whole video, the others without replacement from the
    frames at most ``frame_range`` away from it. Where these are too few, as in a video of one
    frame, each is repeated, and the numbers of repeats differ by at most one.

    Args:
        length: frames of the video.
        num_frames: frames of the clip.
        frame_range: largest distance from the reference frame, in frames.
        seed: of the random numbers.
        shuffle: return the frames in random order instead of by time.

    Returns:
        ``num_frames`` indices from 0 to ``length`` - 1.

    Raises:
        ValueError: an argument is out of range.
    """
    for name, value, least in (
        ("a video's length", length, 1),
        ("INPUT.SAMPLING_FRAME_NUM", num_frames, 1),
        ("INPUT.SAMPLING_FRAME_RANGE", frame_range, 0),
    ):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}.")
    # A generator of its own: the frames must not depend on what else was drawn before.
    rng = np.random.default_rng(seed)
    reference = int(rng.integers(length))
    first, last = max(0, reference - frame_range), min(length - 1, reference + frame_range)
    others = np.array([t for t in range(first, last + 1) if t != reference], dtype=np.int64)
    # First each frame in range equally often, then the missing ones without replacement.
    rounds, missing = divmod(num_frames, len(others) + 1)
    chosen = [reference, *others.tolist()] * rounds
    if missing:
        chosen += [reference, *rng.choice(others, missing - 1, replace=False).tolist()]
    chosen.sort()
    # Last, so that shuffling does not change which frames are chosen.
    if shuffle:
        rng.shuffle(chosen)
    return chosen
