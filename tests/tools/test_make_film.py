"""tools/make_film.py: a film of novel shapes, and what is in it."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ovformer.data.files.video_files import VideoSource
from ovformer_tools.shape_scenes import CATEGORY_NAMES, NOVEL_NAMES


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("make_film")


def test_the_film_shows_what_its_annotations_say(tool, tmp_path: Path) -> None:
    path = tmp_path / "new" / "film.mp4"
    tool.main(["--output", str(path), "--frames", "5"])
    truth = json.loads(path.with_suffix(".json").read_text())
    frames = [frame.image for frame in VideoSource(path)]
    assert len(frames) == truth["videos"][0]["length"] == 5
    names = {category["id"]: category["name"] for category in truth["categories"]}
    assert list(names.values()) == list(CATEGORY_NAMES)
    shown = [names[a["category_id"]] for a in truth["annotations"]]
    assert set(shown) <= NOVEL_NAMES
    assert len({name.split()[0] for name in shown}) == len(shown) >= 5
    assert set(path.with_suffix(".txt").read_text().splitlines()) == NOVEL_NAMES
    for annotation in truth["annotations"]:
        colours = []
        for frame, rle in zip(frames, annotation["segmentations"], strict=True):
            assert frame.shape == (288, 384, 3)
            if rle is None:
                continue
            assert rle["size"] == [288, 384]
            colours.append(np.median(frame[coco_mask.decode(rle) > 0], axis=0))
        assert np.ptp(colours, axis=0).max() < 25  # an object keeps its colour
        assert max(map(np.ptp, colours)) > 100  # the background has little


def test_objects_move_and_seeds_differ(tool, tmp_path: Path) -> None:
    films = []
    for seed in (0, 0, 1):
        tool.main(["--output", str(tmp_path / "a.mp4"), "--frames", "3", "--seed", str(seed)])
        films.append(json.loads((tmp_path / "a.json").read_text())["annotations"])
    assert films[0] == films[1] != films[2]
    for annotation in films[0]:
        first, *_, last = annotation["segmentations"]
        assert first != last
