"""Label Studio's JSON: the brush's code, key frames, regions of images."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovformer.data.exports.label_studio import decode_brush, read_label_studio
from ovformer.data.exports.media import Folder, MediaLibrary
from ovformer.data.exports.shapes import Box
from ovformer.data.exports.tracks import Export
from ovformer.data.exports.youtube_vis import check_boxes, convert_video
from support.annotation_exports import (
    HEIGHT,
    WIDTH,
    DrawnVideo,
    brush,
    brush_of,
    draw,
    ls_key,
    ls_region,
    ls_task,
    ls_tracked,
    write_frames,
    write_video,
)
from support.masks import bounding_box

VALUES = st.integers(0, 255)
RUNS = st.builds(lambda v, n, w: (True, w, [v] * n), VALUES, st.integers(1, 8), st.integers(0, 3))
LISTS = st.builds(
    lambda v, w: (False, w, v), st.lists(VALUES, min_size=1, max_size=8), st.integers(0, 3)
)


@settings(max_examples=40)
@given(st.lists(RUNS | LISTS, max_size=20))
def test_the_brush_decodes_what_was_encoded(blocks: list) -> None:
    expected = [value for _, _, values in blocks for value in values]
    assert decode_brush(brush(blocks), len(expected)).tolist() == expected


@pytest.mark.parametrize("codes", [[], [1, 2], [0, 0, 0, 9] + [255] * 4, [-1], [300], ["a"], None])
def test_a_broken_brush_is_an_error(codes) -> None:
    with pytest.raises(ValueError, match="a brush"):
        decode_brush(codes, 9)


def test_a_brush_that_claims_to_be_huge_is_not_unpacked() -> None:
    codes = [255] * 4 + brush([(True, 3, [1] * 65536)] * 2)[4:]
    with pytest.raises(ValueError, match="a brush of 4294967295 values, expected 64"):
        decode_brush(codes, 64)


def export_of(folder: Path, **options) -> Export:
    return Export("export.json", MediaLibrary([Folder(folder)]), **options)


@pytest.fixture
def video(tmp_path: Path) -> DrawnVideo:
    drawn = draw("film", 7)
    write_video(tmp_path, drawn)
    return drawn


def areas(video, count: int, export: Export) -> list[list]:
    size = (HEIGHT, WIDTH)
    return [a["bboxes"] for a in convert_video(video, count, size, range(count), export)]


def test_boxes_move_between_key_frames_and_stop(video: DrawnVideo, tmp_path: Path) -> None:
    masks = video.objects[0].masks
    # Frames 1 and 4 of Label Studio are 0 and 3; the object is gone after frame 5, which is 4.
    sequence = [ls_key(5, masks[4], enabled=False), ls_key(1, masks[0]), ls_key(4, masks[3])]
    export = export_of(tmp_path)
    data = {"video": "/data/upload/1/0a1b2c3d-film.mp4"}
    (read,), names = read_label_studio([ls_task(data, [ls_tracked(sequence, 7)])], export)
    assert names == ["square"]
    assert read.frames.probe() == (7, (HEIGHT, WIDTH))
    (found,) = areas(read, 7, export)
    expected = [[*bounding_box(mask)[:2], 14, 14] for mask in masks[:5]]
    assert found == [*expected, None, None]
    with pytest.raises(
        ValueError, match="task 1: region r1: has a box and no mask.*boxes-as-masks"
    ):
        check_boxes([read])


def test_the_last_box_stays_and_other_frame_rates_are_matched_by_time(
    video: DrawnVideo, tmp_path: Path
) -> None:
    masks, export = video.objects[0].masks, export_of(tmp_path)
    data = {"video": "s3://bucket/film.mp4"}
    # Label Studio counts 14 frames, so its frames 1, 3, 5 are 0, 1, 2 of the video.
    content = [ls_task(data, [ls_tracked([ls_key(1, masks[0]), ls_key(7, masks[3])], 14)])]
    (read,), _ = read_label_studio(content, export)
    (found,) = areas(read, 7, export)
    assert found == [[*bounding_box(masks[min(t, 3)])[:2], 14, 14] for t in range(7)]
    assert "has 7 frames, but Label Studio counted 14" in export.notes[0]


def test_regions_of_images_are_joined_by_a_control(tmp_path: Path) -> None:
    drawn = draw("clip", 3)
    write_frames(tmp_path, drawn)
    tasks = []
    for t, mask in enumerate(drawn.objects[0].masks):
        left, top, right, bottom = bounding_box(mask)
        points = [[left, top], [right, top], [right, bottom], [left, bottom]]
        percent = (np.array(points) * (100 / WIDTH, 100 / HEIGHT)).tolist()
        results = ls_region("polygonlabels", {"points": percent}, 1, "p", "square")
        results += [{"type": "relation", "from_id": "p", "to_id": "b"}]
        if (disc := drawn.objects[1].masks[t]) is not None:
            results += ls_region(
                "brushlabels", {"format": "rle", "rle": brush_of(disc)}, 2, "b", "disc"
            )
        tasks.append(ls_task({"image": f"/data/local-files/?d=set/clip/{t:05d}.png"}, results, t))
    export = export_of(tmp_path)
    (read,), names = read_label_studio(tasks, export)
    assert names == ["disc", "square"] and read.name == "clip"
    converted = convert_video(read, 3, (HEIGHT, WIDTH), range(3), export)
    for annotation, item in zip(converted, drawn.objects, strict=True):
        assert annotation["category"] == item.name
        found = [None if area is None else area for area in annotation["areas"]]
        assert found == [None if mask is None else mask.sum() for mask in item.masks]
    assert export.skipped["relation (has no area)"] == 3


def test_rectangles_turn_about_their_corner(tmp_path: Path) -> None:
    write_frames(tmp_path, draw("clip", 1))
    value = {"x": 50, "y": 50, "width": 25, "height": 10, "rotation": 90}
    tasks = [ls_task({"image": "clip/00000.png"}, ls_region("rectanglelabels", value, None))]
    (read,), _ = read_label_studio(tasks, export_of(tmp_path))
    shape = read.tracks[0].keys[0].shapes[0]
    assert shape == Box(32, 24, 16, 4.8, 90, "corner")


def broken(change: str) -> list[dict]:
    good = ls_region("polygonlabels", {"points": [[1, 1], [9, 1], [9, 9]]}, 1)
    data = {"image": "clip/00000.png"}
    one = ls_task(data, good)
    if change == "json-min":
        return [{"id": 1, "image": "clip/00000.png", "label": []}]
    if change == "no label":
        one["annotations"][0]["result"][0]["value"]["polygonlabels"] = []
    if change == "two points":
        one["annotations"][0]["result"][0]["value"]["points"] = [[1, 1], [9, 1]]
    if change == "turned":
        one["annotations"][0]["result"][0]["image_rotation"] = 90
    if change == "two annotators":
        one["annotations"] *= 2
    if change == "no image":
        one["data"] = {"image": "clip/00009.png"}
    if change == "no address":
        one["data"] = {"text": "hello"}
    if change == "no track":
        return [ls_task(data, good[:1]), ls_task({"image": "clip/00001.png"}, [], 2)]
    if change == "two classes":
        other = ls_region("polygonlabels", {"points": [[1, 1], [9, 1], [9, 9]]}, 1, "c", "y")
        return [one, ls_task({"image": "clip/00001.png"}, other, 2)]
    if change == "brush of another size":
        brushed = {"rle": brush_of(np.ones((3, 3), bool))}
        return [ls_task(data, ls_region("brushlabels", brushed, 1))]
    return [one]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("json-min", "task 1: no annotations and data.*JSON-MIN"),
        ("no label", "task 1: region a: expected one label, got none"),
        ("two points", "task 1: region a: a polygon has three"),
        ("turned", "region a: the image was turned"),
        ("two annotators", "task 1: has 2 annotations .* 0 ground"),
        ("no image", "task 1: '00009.png' is not among the files"),
        ("no address", "task 1: expected the address of one video or image"),
        ("no track", "task 1: region a: .*--track-by.*--single-frames"),
        ("two classes", "region c is 'y', but the same object .*is 'x'"),
        ("brush of another size", "region a: a brush of 36 values, expected 12288"),
    ],
)
def test_faults_are_named(tmp_path: Path, change: str, message: str) -> None:
    write_frames(tmp_path, draw("clip", 2))
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        read_label_studio(broken(change), export_of(tmp_path))


def test_skipped_parts_are_counted(tmp_path: Path) -> None:
    write_frames(tmp_path, draw("clip", 1))
    one = broken("")[0]
    point = {"id": "k", "type": "keypointlabels", "original_width": 1, "original_height": 1}
    one["annotations"][0]["result"].append({**point, "value": {"x": 1, "y": 1, "width": 1}})
    one["annotations"].append({"result": [], "was_cancelled": True})
    one["predictions"] = [{}, {}]
    export = export_of(tmp_path)
    nobody = {"id": 2, "data": {"image": "clip/00000.png"}, "annotations": []}
    read_label_studio([one, nobody], export)
    assert {reason: n for reason, n in export.skipped.items() if n} == {
        "keypointlabels (has no area)": 1,
        "annotations cancelled in Label Studio": 1,
        "tasks that are not annotated": 1,
        "predictions of models in Label Studio": 2,
    }
