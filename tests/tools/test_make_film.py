"""tools/make_film.py: a video of novel shapes, and its annotations."""

import json
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from ovformer.data.files.video_files import VideoSource
from ovformer_tools.shape_scenes import CATEGORY_NAMES, NOVEL_NAMES

TOOL = "make_film"


def test_the_video_shows_what_its_annotations_say(tool, tmp_path: Path) -> None:
    path = tmp_path / "new" / "film.mp4"
    tool.main(["--output", str(path), "--frames", "5"])
    truth = json.loads(path.with_suffix(".json").read_text())
    frames = [frame.image for frame in VideoSource(path)]
    assert len(frames) == truth["videos"][0]["length"] == 5
    names = {category["id"]: category["name"] for category in truth["categories"]}
    assert list(names.values()) == list(CATEGORY_NAMES)
    shown = {names[a["category_id"]] for a in truth["annotations"]}
    assert shown <= NOVEL_NAMES
    assert len({name.split()[0] for name in shown}) == len(truth["annotations"]) >= 5
    assert set(path.with_suffix(".txt").read_text().splitlines()) == NOVEL_NAMES
    for annotation in truth["annotations"]:
        colours = []
        for frame, rle in zip(frames, annotation["segmentations"], strict=True):
            assert frame.shape == (288, 384, 3)
            if rle is not None:
                assert rle["size"] == [288, 384]
                colours.append(np.median(frame[coco_mask.decode(rle) > 0], axis=0))
        assert np.ptp(colours, axis=0).max() < 25  # an object keeps its colour
        assert max(map(np.ptp, colours)) > 100  # the background has little
        first, *_, last = annotation["segmentations"]
        assert first != last


def test_seeds_differ(tool, tmp_path: Path) -> None:
    annotations = []
    for seed in (0, 0, 1):
        tool.main(["--output", str(tmp_path / "a.mp4"), "--frames", "2", "--seed", str(seed)])
        annotations.append(json.loads((tmp_path / "a.json").read_text())["annotations"])
    assert annotations[0] == annotations[1] != annotations[2]
