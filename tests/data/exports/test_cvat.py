"""CVAT's XML: tracks with all frames and with key frames alone, groups, images, faults."""

from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovformer.data.exports.cvat import read_cvat
from ovformer.data.exports.tracks import AnnotatedVideo, Export
from support.annotation_exports import (
    DrawnVideo,
    convert,
    cvat_box,
    cvat_images,
    cvat_meta,
    cvat_polygon,
    cvat_video,
    draw,
    make_export,
    write_frames,
)
from support.masks import bounding_box

pytest.importorskip("defusedxml", reason="needs the extra [demo]")


@pytest.fixture(scope="module")
def clip() -> DrawnVideo:
    return draw("clip", 7)


@pytest.fixture(scope="module")
def folder(clip: DrawnVideo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("frames")
    write_frames(path, clip)
    return path


def read(xml: bytes, folder: Path, **options) -> tuple[list[AnnotatedVideo], list[str], Export]:
    export = make_export(folder, "a.xml", **options)
    return *read_cvat(BytesIO(xml), export), export


def track_of(clip: DrawnVideo, shapes: list[dict], tag: str = "polygon", **meta: str) -> bytes:
    root = cvat_meta(clip, source=None, **meta)
    track = ElementTree.SubElement(root, "track", id="3", label="square")
    for shape in shapes:
        ElementTree.SubElement(track, tag, shape)
    return ElementTree.tostring(root)


def keys(clip: DrawnVideo, frames: dict[int, str], make=cvat_polygon) -> list[dict]:
    """Key frames of the square, from frame to the value of "outside"."""
    masks = clip.objects[0].masks
    return [
        {"frame": str(t), "keyframe": "1", "outside": outside, **make(masks[t])}
        for t, outside in frames.items()
    ]


@settings(max_examples=20)
@given(st.sets(st.integers(1, 5)), st.sampled_from(["polygon", "box"]))
def test_key_frames_alone_give_the_motion_back(
    clip: DrawnVideo, folder: Path, middle: set[int], tag: str
) -> None:
    """The square moves by the same step in each frame, so any key frames tell all of it."""
    frames = dict.fromkeys(sorted({0, 6} | middle), "0")
    make = cvat_box if tag == "box" else cvat_polygon
    (video,), _, export = read(track_of(clip, keys(clip, frames, make), tag), folder)
    (found,) = convert(video, export)
    assert found["bboxes"] == [[*bounding_box(mask)[:2], 14, 14] for mask in clip.objects[0].masks]
    assert bool(export.notes) == (len(frames) < 7)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        # The last key frame stays; "outside" ends the object before.
        ({0: "0", 2: "1", 4: "0"}, "xx--xxx"),
        # An export with all frames has no key frames to interpolate: absent is absent.
        (dict.fromkeys(range(4), "0"), "xxxx---"),
    ],
)
def test_where_an_object_ends(clip: DrawnVideo, folder: Path, frames: dict, expected: str) -> None:
    (video,), _, export = read(track_of(clip, keys(clip, frames)), folder)
    (found,) = convert(video, export)
    assert "".join("x" if mask else "-" for mask in found["segmentations"]) == expected
    assert found["bboxes"][6] == (found["bboxes"][4] if expected[6] == "x" else None)


def test_frames_that_a_task_skips(clip: DrawnVideo, folder: Path, tmp_path: Path) -> None:
    for name in ("frame_000001.png", "frame_000003.png", "frame_000005.png"):
        source = folder / "clip" / f"{int(name[6:12]):05d}.png"
        (tmp_path / name).write_bytes(source.read_bytes())
    meta = {"start_frame": "1", "stop_frame": "5", "frame_filter": "step=2", "size": "3"}
    xml = track_of(clip, keys(clip, {1: "0", 3: "0", 5: "0"}), **meta)
    (video,), _, export = read(xml, tmp_path)
    (found,) = convert(video, export)
    masks = clip.objects[0].masks
    assert found["bboxes"] == [[*bounding_box(masks[t])[:2], 14, 14] for t in (1, 3, 5)]
    # A frame that was deleted in CVAT has no image.
    (tmp_path / "frame_000003.png").unlink()
    (video,), _, export = read(xml, tmp_path)
    assert [len(a["bboxes"]) for a in convert(video, export)] == [2]
    assert "1 frames have no image" in export.notes[0]


def test_masks_without_a_group_are_objects_of_one_frame(clip: DrawnVideo, folder: Path) -> None:
    xml = cvat_video(clip, source=None).replace(b'group_id="4"', b"")
    (video,), _, export = read(xml, folder)
    assert len(convert(video, export)) == 1 + 5
    assert "5 objects" in export.notes[0]


def test_images_are_joined_by_an_attribute_or_not_at_all(clip: DrawnVideo, folder: Path) -> None:
    xml = cvat_images(clip, with_group=False)
    message = r"image 0 \(clip/00000.png\): shape 0 .*'square'\): .*12 shapes"
    with pytest.raises(ValueError, match=message):
        read(xml, folder)
    (video,), _, export = read(xml, folder, single_frames=True)
    assert len(convert(video, export)) == 12

    root = ElementTree.fromstring(xml)
    for mask in root.iter("mask"):
        ElementTree.SubElement(mask, "attribute", name="number").text = mask.get("label")
    (video,), _, export = read(ElementTree.tostring(root), folder, track_by="number")
    found = {a["category"]: a["areas"] for a in convert(video, export)}
    for item in clip.objects:
        assert found[item.name] == [None if m is None else m.sum() for m in item.masks]


def test_shapes_without_area_are_counted(clip: DrawnVideo, folder: Path) -> None:
    root = cvat_meta(clip, source=None)
    track = ElementTree.SubElement(root, "track", id="0", label="square")
    ellipse = {"cx": "30", "cy": "20", "rx": "10", "ry": "5", "rotation": "30"}
    ElementTree.SubElement(track, "ellipse", frame="0", keyframe="1", outside="0", **ellipse)
    for tag in ("points", "polyline", "polyline"):
        track = ElementTree.SubElement(root, "track", id="1", label="square")
        ElementTree.SubElement(track, tag, frame="0", points="1,1;2,2")
    (video,), _, export = read(ElementTree.tostring(root), folder)
    (found,) = convert(video, export)
    assert found["areas"][0] == pytest.approx(np.pi * 50, rel=0.04)
    assert export.skipped == {"<points> (has no area)": 1, "<polyline> (has no area)": 2}


def test_the_tasks_of_a_project_are_videos(folder: Path, tmp_path: Path) -> None:
    clips = [draw("one", 2, 1), draw("two", 3, 2)]
    project = ElementTree.Element("annotations")
    meta = ElementTree.SubElement(project, "meta")
    for number, clip in zip("01", clips, strict=True):
        write_frames(tmp_path, clip)
        meta.append(cvat_meta(clip, source=None, id=number).find("meta/task"))
        track = ElementTree.fromstring(track_of(clip, keys(clip, {0: "0", 1: "0"}))).find("track")
        track.set("task_id", number)
        project.append(track)
    videos, _, export = read(ElementTree.tostring(project), tmp_path)
    assert [video.name for video in videos] == ["one", "two"]
    assert [len(convert(v, export)[0]["bboxes"]) for v in videos] == [2, 3]


TASK = "<annotations><meta><task><id>4</id>{}</task></meta></annotations>"
FILTER = "<size>3</size><frame_filter>step=-1</frame_filter><stop_frame>2</stop_frame>"


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<annotations><track", "a.xml: not valid XML .*cut off"),
        ('<!DOCTYPE a [<!ENTITY b "cc"><!ENTITY d "&b;&b;">]><a>&d;</a>', "declares entities"),
        (TASK.format("<size>x</size>"), "<task> 4"),
        (TASK.format(FILTER), "<task> 4: .*frames 0 to 2, one of -1"),
    ],
)
def test_broken_files(folder: Path, xml: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(xml.encode(), folder)


EMPTY_MASK = {"rle": "0, 3", "left": "0", "top": "0", "width": "2", "height": "2"}


@pytest.mark.parametrize(
    ("tag", "change", "message"),
    [
        ("polygon", {"points": "1,2;3,x"}, r"track 3 \(square\): <polygon> of frame 0: could not"),
        ("polygon", {"points": "1,2;3,4"}, "<polygon> of frame 0: a polygon has three"),
        ("polygon", {"frame": "zero"}, "<polygon> of frame zero: frame is not a number"),
        ("box", {}, "<box> of frame 0: has no 'xtl'"),
        ("mask", EMPTY_MASK, "runs of 3"),
    ],
)
def test_faults_of_a_shape_are_named(
    clip: DrawnVideo, folder: Path, tag: str, change: dict, message: str
) -> None:
    shape = {**keys(clip, {0: "0"})[0], **change}
    with pytest.raises(ValueError, match=message):
        read(track_of(clip, [shape], tag), folder)


def test_faults_of_a_video_are_named(clip: DrawnVideo, folder: Path, tmp_path: Path) -> None:
    shapes = keys(clip, {0: "0"})
    triangle = {**keys(clip, {3: "0"})[0], "points": "1,1;9,1;9,9"}
    for name in ("1.png", "2.png", "10.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "empty").mkdir()
    one = track_of(clip, shapes)
    for xml, media, message in [
        (track_of(clip, shapes * 2), folder, "two shapes in this frame"),
        (track_of(clip, shapes, size="4", stop_frame="3"), folder, "has 4 frames, .* 7 images"),
        (track_of(clip, [*shapes, triangle]), folder, "0 and 3: polygons of 4 and 3 points"),
        (one.replace(b"<width>64", b"<width>640"), folder, "48 x 64 .* are for 48 x 640"),
        (one, tmp_path / "empty", "neither frames nor a video.*--media"),
        (track_of(clip, shapes, size="3", stop_frame="2"), tmp_path, "CVAT sorts names as text"),
    ]:
        with pytest.raises((FileNotFoundError, ValueError), match=message):
            (video,), _, export = read(xml, media)
            convert(video, export)
