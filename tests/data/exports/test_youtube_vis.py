"""Names of folders, and the split into training and validation."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovformer.data.exports.youtube_vis import make_folder_names, select_videos, split_videos


@given(st.lists(st.text(max_size=8), max_size=12))
def test_folder_names_are_safe_and_differ(names: list[str]) -> None:
    made = make_folder_names(names)
    assert len({name.lower() for name in made}) == len(names)
    assert all(name and "/" not in name and "\\" not in name and name[0] != "." for name in made)


def test_folder_names_stay_readable() -> None:
    names = ["my clip", "../x", "a", "A", ""]
    assert make_folder_names(names) == ["my_clip", "x", "a", "A-2", "video"]
    assert [len(name) for name in make_folder_names(["x" * 300] * 2)] == [60, 62]


@settings(max_examples=40)
@given(st.integers(2, 40), st.floats(0.01, 0.9), st.integers(0, 5))
def test_a_split_shares_the_videos(count: int, val: float, seed: int) -> None:
    ids = list(range(1, count + 1))
    if round(val * count) >= count:
        with pytest.raises(ValueError, match="leaves none to train on"):
            split_videos(ids, val, seed)
        return
    train, rest = split_videos(ids, val, seed)
    assert sorted(train + rest) == ids
    assert len(rest) == max(1, round(val * count))
    assert (train, rest) == split_videos(ids, val, seed)
    content = {"videos": [{"id": i} for i in ids], "annotations": [{"video_id": i} for i in ids]}
    part = select_videos({**content, "categories": [1]}, rest)
    assert [v["id"] for v in part["videos"]] == [a["video_id"] for a in part["annotations"]] == rest
