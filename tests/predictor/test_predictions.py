import tracemalloc

import numpy as np
import pytest
from pycocotools.coco import COCO

from ovformer.demo.result_page import render_result_page
from ovformer.predictor.predictions import (
    FramesResult,
    VideoObject,
    VideoResult,
    make_object_in_frame,
    to_annotations,
    to_evaluation_results,
)
from support.masks import compressed_rle


def tube(*boxes: tuple[int, int, int, int] | None) -> list[dict]:
    """Codes of boxes (top, left, height, width) in frames of 20 x 30."""
    masks = np.zeros((len(boxes), 20, 30), bool)
    for mask, box in zip(masks, boxes, strict=True):
        if box:
            mask[box[0] : box[0] + box[2], box[1] : box[1] + box[3]] = True
    return [compressed_rle(mask) for mask in masks]


@pytest.fixture
def result() -> VideoResult:
    """Two things, one of them under two names, and something that is never seen."""
    one, other = tube((0, 0, 5, 6), (1, 0, 5, 6), None), tube(None, (10, 10, 4, 8), (10, 11, 4, 8))
    rows = [("dog", 0.9, one), ("cat", 0.8, one), ("ball", 0.7, tube(None, None, None))]
    rows.append(("ball", 0.6, other))
    names = ["cat", "dog", "ball"]
    objects = [VideoObject(n, names.index(a), a, s, t) for n, (a, s, t) in enumerate(rows)]
    return VideoResult(names, (20, 30), [0.0, 0.1, 0.2], objects)


def names_in(*frames) -> list[list[str]]:
    return [[item.name for item in objects] for objects in frames]


def test_one_name_for_each_thing(result) -> None:
    best = result.best()
    assert [(item.track_id, item.name) for item in best.objects] == [(0, "dog"), (1, "ball")]
    limited = [{"max_iou": 1.0}, {"max_objects": 1}, {"score_threshold": 0.65}]
    found = names_in(*(result.best(**limits).objects for limits in limited))
    assert found == [["dog", "cat", "ball"], ["dog"], ["dog"]]
    assert names_in(*map(best.in_frame, range(3))) == [["dog"], ["dog", "ball"], ["ball"]]
    assert best.in_frame(2)[0].box == (11, 10, 19, 14)
    assert VideoResult(["cat"], (20, 30), [0.0]).best().objects == []


def test_annotations_of_a_video_and_of_images(result) -> None:
    best, files = result.best(), ["a.png", "b.png", "c.png"]
    video = to_annotations(best, files)
    size = {"height": 20, "width": 30}
    assert video["videos"] == [{"id": 1, "file_names": files, "length": 3, **size}]
    first = video["annotations"][0]
    assert (first["id"], first["category_id"], first["areas"]) == (1, 2, [30, 30, None])
    assert first["bboxes"] == [[0, 0, 6, 5], [0, 1, 6, 5], None]
    assert first["segmentations"][2] is None

    coco = COCO()
    coco.dataset = to_annotations(best.by_frame(), files)
    coco.createIndex()
    categories = [[a["category_id"] for a in coco.imgToAnns[n]] for n in (1, 2, 3)]
    assert categories == [[2], [2, 3], [3]]
    found = coco.loadRes(to_evaluation_results(result.by_frame()))
    assert len(found.getAnnIds()) == 6  # "cat" counts here
    assert coco.annToMask(coco.anns[1]).sum() == coco.anns[1]["area"] == 30


def test_frames_by_themselves(result) -> None:
    """One name for each thing in each frame; numbers are those of the best first."""
    frames = result.by_frame()
    assert frames.by_frame() is frames
    assert names_in(frames.objects) == [["dog", "dog", "cat", "cat", "ball", "ball"]]
    best = frames.best()
    assert names_in(*best.frames) == [["dog"], ["dog", "ball"], ["ball"]]
    assert [[item.track_id for item in best.in_frame(t)] for t in range(3)] == [[0], [1, 2], [3]]
    assert [len(objects) for objects in frames.best(max_objects=1).frames] == [1, 1, 1]
    assert not frames.best(score_threshold=0.95).objects
    listed = best.take_first(3)
    assert [item.track_id for item in listed.objects] == [0, 1, 2]
    assert listed.areas.tolist() == [[30, 0, 0], [0, 30, 0], [0, 32, 0]]


def test_a_long_video_of_frames_by_themselves_takes_little_memory() -> None:
    """100 objects in each of 2,000 frames, as the image model gives them."""
    rles = [tube((n % 10, n // 10, 4, 4))[0] for n in range(100)]
    objects = [make_object_in_frame(None, 0, "x", 1 - n / 100, rle) for n, rle in enumerate(rles)]
    times = [t / 10 for t in range(2000)]
    tracemalloc.start()
    best = FramesResult(["x"], (20, 30), times, [objects] * len(times)).best(score_threshold=0.9)
    found = to_annotations(best, [""] * len(times))["annotations"]
    render_result_page("long", "long.mp4", best, {})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sorted(item.track_id for item in best.objects) == list(range(len(found)))
    assert len(found) > 2000
    assert peak < 100e6  # a number for each object and frame would take 3,200 MB
