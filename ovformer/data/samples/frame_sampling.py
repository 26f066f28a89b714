"""Which frames of a video make up a training clip: a pure function of the seed."""

import numpy as np


def sample_frames(
    length: int, num_frames: int, frame_range: int, seed: int, shuffle: bool = False
) -> list[int]:
    """Draw the frames of a clip around a reference frame.

    The reference frame is drawn from the whole video, the others without replacement from the
    frames that are at most ``frame_range`` away from it. Where these are too few, for instance in a
    video of one frame, all of them are taken equally often, up to one.

    Args:
        length: frames of the video.
        num_frames: frames of the clip.
        frame_range: largest distance from the reference frame, in frames.
        seed: of the draw.
        shuffle: return the frames in random order instead of that of time.

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
    rng = np.random.default_rng(seed)
    reference = int(rng.integers(length))
    first, last = max(0, reference - frame_range), min(length - 1, reference + frame_range)
    others = np.array([t for t in range(first, last + 1) if t != reference], dtype=np.int64)
    # Whole rounds of all frames near by, then what is missing without replacement.
    rounds, missing = divmod(num_frames, len(others) + 1)
    chosen = [reference, *others.tolist()] * rounds
    if missing:
        chosen += [reference, *rng.choice(others, missing - 1, replace=False).tolist()]
    chosen.sort()
    if shuffle:
        rng.shuffle(chosen)
    return chosen
