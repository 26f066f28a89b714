"""Label Studio's JSON: the brush's code, key frames, regions of images."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovformer.data.exports.label_studio import decode_brush, read_label_studio
from ovformer.data.exports.shapes import Box
from ovformer.data.exports.youtube_vis import check_boxes
from support.annotation_exports import (
    HEIGHT,
    WIDTH,
    DrawnVideo,
    brush,
    brush_of,
    convert,
    draw,
    ls_key,
    ls_region,
    ls_task,
    ls_tracked,
    make_export,
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


LONG = brush([(True, 3, [1] * 65536)] * 2)
HUGE = [255] * 4 + LONG[4:]  # claims 2**32 - 1 values
FALSE = [0, 0, 0, 9] + LONG[4:]  # claims 9 values


@pytest.mark.parametrize(
    "codes", [[], [1, 2], [0, 0, 0, 9] + [255] * 4, [-1], [300], ["a"], None, HUGE, FALSE]
)
def test_a_broken_brush_is_an_error(codes) -> None:
    with pytest.raises(ValueError, match="a brush"):
        decode_brush(codes, 9)


@pytest.fixture
def video(tmp_path: Path) -> DrawnVideo:
    drawn = draw("film", 7)
    write_video(tmp_path, drawn)
    return drawn


def test_boxes_move_between_key_frames_and_stop(video: DrawnVideo, tmp_path: Path) -> None:
    masks, export = video.objects[0].masks, make_export(tmp_path)
    # Frames 1 and 4 of Label Studio are 0 and 3; the object is gone after frame 5, which is 4.
    sequence = [ls_key(5, masks[4], enabled=False), ls_key(1, masks[0]), ls_key(4, masks[3])]
    data = {"video": "/data/upload/1/0a1b2c3d-film.mp4"}
    (read,), names = read_label_studio([ls_task(data, [ls_tracked(sequence, 7)])], export)
    assert names == ["square"]
    (found,) = convert(read, export)
    expected = [[*bounding_box(mask)[:2], 14, 14] for mask in masks[:5]]
    assert found["bboxes"] == [*expected, None, None]
    with pytest.raises(ValueError, match="task 1: region r1: .*boxes-as-masks"):
        check_boxes([read])


def test_the_last_box_stays_and_other_frame_rates_are_matched_by_time(
    video: DrawnVideo, tmp_path: Path
) -> None:
    masks, export = video.objects[0].masks, make_export(tmp_path)
    # Label Studio counts 14 frames, so its frames 1, 3, 5 are 0, 1, 2 of the video.
    tracked = ls_tracked([ls_key(1, masks[0]), ls_key(7, masks[3])], 14)
    (read,), _ = read_label_studio([ls_task({"video": "s3://bucket/film.mp4"}, [tracked])], export)
    (found,) = convert(read, export)
    assert found["bboxes"] == [[*bounding_box(masks[min(t, 3)])[:2], 14, 14] for t in range(7)]
    assert "has 7 frames, but Label Studio counted 14" in export.notes[0]


def test_regions_of_images_are_joined_by_a_control(tmp_path: Path) -> None:
    drawn = draw("clip", 3)
    write_frames(tmp_path, drawn)
    tasks = []
    for t, mask in enumerate(drawn.objects[0].masks):
        left, top, right, bottom = bounding_box(mask)
        points = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        percent = {"points": (points * (100 / WIDTH, 100 / HEIGHT)).tolist()}
        results = ls_region("polygonlabels", percent, 1, "p", "square")
        results += [{"type": "relation", "from_id": "p", "to_id": "b"}]
        if (disc := drawn.objects[1].masks[t]) is not None:
            value = {"format": "rle", "rle": brush_of(disc)}
            results += ls_region("brushlabels", value, 2, "b", "disc")
        tasks.append(ls_task({"image": f"/data/local-files/?d=set/clip/{t:05d}.png"}, results, t))
    export = make_export(tmp_path)
    (read,), names = read_label_studio(tasks, export)
    assert names == ["disc", "square"] and read.name == "clip"
    for annotation, item in zip(convert(read, export), drawn.objects, strict=True):
        assert annotation["category"] == item.name
        assert annotation["areas"] == [None if m is None else m.sum() for m in item.masks]
    assert export.skipped["relation (has no area)"] == 3


def test_rectangles_turn_about_their_corner(tmp_path: Path) -> None:
    write_frames(tmp_path, draw("clip", 1))
    value = {"x": 50, "y": 50, "width": 25, "height": 10, "rotation": 90}
    tasks = [ls_task({"image": "clip/00000.png"}, ls_region("rectanglelabels", value, None))]
    (read,), _ = read_label_studio(tasks, make_export(tmp_path))
    assert read.tracks[0].keys[0].shapes[0] == Box(32, 24, 16, 4.8, 90, "corner")


IMAGE, SECOND = {"image": "clip/00000.png"}, {"image": "clip/00001.png"}
TRIANGLE = {"points": [[1, 1], [9, 1], [9, 9]]}
GOOD = ls_region("polygonlabels", TRIANGLE, 1)
SMALL_BRUSH = ls_region("brushlabels", {"rle": brush_of(np.ones((3, 3), bool))}, 1)
FAULTS = {
    "task 1: no annotations and data.*JSON-MIN": [{"id": 1, **IMAGE, "label": []}],
    "task 1: region a: expected one label, got none": [
        ls_task(IMAGE, [{**GOOD[0], "value": {**TRIANGLE, "polygonlabels": []}}])
    ],
    "task 1: region a: a polygon has three": [
        ls_task(IMAGE, ls_region("polygonlabels", {"points": [[1, 1], [9, 1]]}, 1))
    ],
    "region a: the image was turned": [ls_task(IMAGE, [{**GOOD[0], "image_rotation": 90}])],
    "task 1: has 2 annotations .* 0 ground": [
        {"id": 1, "data": IMAGE, "annotations": ls_task(IMAGE, GOOD)["annotations"] * 2}
    ],
    "task 1: '00009.png' is not among the files": [ls_task({"image": "clip/00009.png"}, GOOD)],
    "task 1: expected the address of one video or image": [ls_task({"text": "hello"}, GOOD)],
    "task 1: region a: .*--track-by.*--single-frames": [
        ls_task(IMAGE, GOOD[:1]),
        ls_task(SECOND, [], 2),
    ],
    "region c is 'y', but the same object .*is 'x'": [
        ls_task(IMAGE, GOOD),
        ls_task(SECOND, ls_region("polygonlabels", TRIANGLE, 1, "c", "y"), 2),
    ],
    "region a: a brush of 36 values, expected 12288": [ls_task(IMAGE, SMALL_BRUSH)],
}


@pytest.mark.parametrize(("message", "tasks"), FAULTS.items(), ids=list(FAULTS))
def test_faults_are_named(tmp_path: Path, message: str, tasks: list[dict]) -> None:
    write_frames(tmp_path, draw("clip", 2))
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        read_label_studio(tasks, make_export(tmp_path))


def test_skipped_parts_are_counted(tmp_path: Path) -> None:
    write_frames(tmp_path, draw("clip", 1))
    point = {"id": "k", "type": "keypointlabels", "original_width": 1, "original_height": 1}
    one = ls_task(IMAGE, [*GOOD, {**point, "value": {"x": 1, "y": 1, "width": 1}}])
    one["annotations"].append({"result": [], "was_cancelled": True})
    one["predictions"] = [{}, {}]
    export = make_export(tmp_path)
    read_label_studio([one, {"id": 2, "data": IMAGE, "annotations": []}], export)
    assert {reason: n for reason, n in export.skipped.items() if n} == {
        "keypointlabels (has no area)": 1,
        "annotations cancelled in Label Studio": 1,
        "tasks that are not annotated": 1,
        "predictions of models in Label Studio": 2,
    }
