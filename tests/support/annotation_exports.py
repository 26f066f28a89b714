"""Drawn videos of which every mask is known, and exports of them as annotation tools write them."""

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ovformer.data.exports.media import Folder, MediaLibrary
from ovformer.data.exports.tracks import AnnotatedVideo, Export
from ovformer.data.exports.youtube_vis import convert_video
from ovformer.data.files.video_writer import VideoWriter
from support.masks import bounding_box, compressed_rle, run_lengths, uncompressed_rle

HEIGHT, WIDTH = 48, 64
COLOURS = {"square": (230, 60, 40), "disc": (40, 90, 230)}


@dataclass
class DrawnObject:
    """An object: its class, and a mask (H, W) of each frame, or None where it is absent."""

    name: str
    masks: list[np.ndarray | None]


@dataclass
class DrawnVideo:
    """A video: uint8 (H, W, 3) frames, RGB, and what is in them."""

    name: str
    images: list[np.ndarray]
    objects: list[DrawnObject]


def draw(name: str, num_frames: int = 6, seed: int = 0) -> DrawnVideo:
    """A square that moves to the right, and a disc that is absent in the first and last frame."""
    rng = np.random.default_rng(seed)
    top, left = int(rng.integers(2, 20)), int(rng.integers(2, 12))
    background = np.full((HEIGHT, WIDTH, 3), 110 + 10 * (seed % 5), np.uint8)
    square, disc, images = [], [], []
    for t in range(num_frames):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[top : top + 14, left + 3 * t : left + 3 * t + 14] = True
        square.append(mask)
        canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
        cv2.circle(canvas, (WIDTH - 14, HEIGHT - 14 - t), 8, 1, -1)
        disc.append(canvas > 0 if 0 < t < num_frames - 1 else None)
        image = background.copy()
        for masks, kind in ((square, "square"), (disc, "disc")):
            if masks[t] is not None:
                image[masks[t]] = COLOURS[kind]
        images.append(image)
    return DrawnVideo(name, images, [DrawnObject("square", square), DrawnObject("disc", disc)])


def write_video(folder: Path, video: DrawnVideo) -> Path:
    """Write <name>.mp4."""
    pytest.importorskip("av", reason="needs the extra [demo]")
    folder.mkdir(parents=True, exist_ok=True)
    with VideoWriter(folder / f"{video.name}.mp4", 5) as writer:
        for t, image in enumerate(video.images):
            writer.write(image, t / 5)
    return writer.path


def png(image: np.ndarray) -> bytes:
    """The bytes of a PNG file."""
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def write_frames(folder: Path, video: DrawnVideo, pattern: str = "{:05d}.png") -> None:
    """Write <folder>/<name>/<frame>."""
    (folder / video.name).mkdir(parents=True, exist_ok=True)
    for t, image in enumerate(video.images):
        (folder / video.name / pattern.format(t)).write_bytes(png(image))


def cvat_mask(mask: np.ndarray) -> dict[str, str]:
    """Attributes of a <mask>."""
    left, top, right, bottom = bounding_box(mask)
    places = {"left": left, "top": top, "width": right - left, "height": bottom - top}
    rle = ", ".join(map(str, run_lengths(mask[top:bottom, left:right])))
    return {"rle": rle, **{key: str(value) for key, value in places.items()}}


def cvat_polygon(mask: np.ndarray) -> dict[str, str]:
    """Attributes of a <polygon> that is the rectangle around a mask."""
    left, top, right, bottom = bounding_box(mask)
    points = ((left, top), (right, top), (right, bottom), (left, bottom))
    return {"points": ";".join(f"{x:.2f},{y:.2f}" for x, y in points)}


def cvat_box(mask: np.ndarray) -> dict[str, str]:
    """Attributes of a <box>."""
    keys = ("xtl", "ytl", "xbr", "ybr")
    return {key: f"{v:.2f}" for key, v in zip(keys, bounding_box(mask), strict=True)}


def cvat_meta(video: DrawnVideo, **changes: str) -> ElementTree.Element:
    """The <meta> of a task of a video; a value of None leaves an element out."""
    pytest.importorskip("defusedxml", reason="needs the extra [demo]")
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    count = len(video.images)
    values = {
        "id": "7",
        "name": video.name,
        "size": str(count),
        "mode": "interpolation",
        "start_frame": "0",
        "stop_frame": str(count - 1),
        "frame_filter": "",
        "source": f"{video.name}.mp4",
        **changes,
    }
    for key, value in values.items():
        if value is not None:
            ElementTree.SubElement(task, key).text = value
    labels = ElementTree.SubElement(task, "labels")
    for item in video.objects:
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = item.name
        ElementTree.SubElement(label, "type").text = "any"
    size = ElementTree.SubElement(task, "original_size")
    ElementTree.SubElement(size, "width").text = str(WIDTH)
    ElementTree.SubElement(size, "height").text = str(HEIGHT)
    return root


def cvat_video(video: DrawnVideo, **changes: str) -> bytes:
    """An export as "CVAT for video 1.1".

    The square is a track of polygons with all frames, the disc a group of masks, each of which CVAT
    writes as a track of its own.
    """
    root = cvat_meta(video, **changes)
    count, number = len(video.images), 0
    square, disc = video.objects
    track = ElementTree.SubElement(root, "track", id="0", label=square.name, source="manual")
    for t, mask in enumerate(square.masks):
        common = {"frame": str(t), "keyframe": str(int(t % 3 == 0)), "outside": "0"}
        ElementTree.SubElement(track, "polygon", {**common, "occluded": "0", **cvat_polygon(mask)})
    for t, mask in enumerate(disc.masks):
        if mask is None:
            continue
        number += 1
        track = ElementTree.SubElement(root, "track", id=str(number), label="disc", group_id="4")
        for frame in (t, t + 1)[: 2 if t + 1 < count - 1 else 1]:
            common = {"frame": str(frame), "keyframe": "1", "outside": str(int(frame != t))}
            ElementTree.SubElement(track, "mask", {**common, **cvat_mask(mask)})
    return ElementTree.tostring(root)


def cvat_images(video: DrawnVideo, with_group: bool = True) -> bytes:
    """An export as "CVAT for images 1.1": both objects are masks with a group."""
    root = cvat_meta(video, mode="annotation", source=None)
    for t in range(len(video.images)):
        frame = {"id": str(t), "name": f"{video.name}/{t:05d}.png"}
        size = {"width": str(WIDTH), "height": str(HEIGHT)}
        image = ElementTree.SubElement(root, "image", {**frame, **size})
        for number, item in enumerate(video.objects, start=1):
            if item.masks[t] is not None:
                group = {"group_id": str(number)} if with_group else {}
                shape = {"label": item.name, **group, **cvat_mask(item.masks[t])}
                ElementTree.SubElement(image, "mask", shape)
    return ElementTree.tostring(root)


def zip_of(members: dict[str, bytes]) -> bytes:
    """The bytes of a zip file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in members.items():
            target.writestr(name, content)
    return buffer.getvalue()


def coco_segmentation(mask: np.ndarray, kind: str) -> list | dict:
    """A mask as "polygon" (of the rectangle around it), "rle" or "compressed"."""
    if kind == "polygon":
        left, top, right, bottom = bounding_box(mask)
        return [[left, top, right, top, right, bottom, left, bottom]]
    if kind == "rle":
        return uncompressed_rle(mask)
    return compressed_rle(mask)


def coco(videos: list[DrawnVideo], kinds: tuple[str, str] = ("polygon", "rle")) -> dict:
    """COCO's format, with frames named <video>/<frame>.png; ids of tracks are those of CVAT."""
    images, annotations = [], []
    for video in videos:
        for t in range(len(video.images)):
            name = f"{video.name}/{t:05d}.png"
            image = {"id": len(images) + 1, "file_name": name, "height": HEIGHT, "width": WIDTH}
            images.append(image)
            for number, item in enumerate(video.objects):
                if (mask := item.masks[t]) is not None:
                    left, top, right, bottom = bounding_box(mask)
                    annotation = {
                        "id": len(annotations) + 1,
                        "image_id": image["id"],
                        "category_id": 10 * number + 5,
                        "segmentation": coco_segmentation(mask, kinds[number]),
                        "bbox": [left, top, right - left, bottom - top],
                        "iscrowd": 0,
                        "attributes": {"occluded": False, "track_id": number},
                    }
                    annotations.append(annotation)
    categories = [{"id": 5, "name": "square"}, {"id": 15, "name": "disc"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def bits(number: int, size: int) -> str:
    return f"{number:0{size}b}"


def brush(blocks: list[tuple[bool, int, list[int]]], word: int = 8) -> list[int]:
    """Encode blocks: (is it a run, number of the size 3, 4, 8 or 16 of its length, values)."""
    sizes = (3, 4, 8, 16)
    stream = bits(sum(len(values) for _, _, values in blocks), 32) + bits(word - 1, 5)
    stream += "".join(bits(size - 1, 4) for size in sizes)
    for is_run, which, values in blocks:
        stream += f"{int(is_run)}{bits(which, 2)}{bits(len(values) - 1, sizes[which])}"
        stream += "".join(bits(value, word) for value in values[: 1 if is_run else None])
    stream += "0" * (-len(stream) % 8)
    return [int(stream[i : i + 8], 2) for i in range(0, len(stream), 8)]


def brush_of(mask: np.ndarray) -> list[int]:
    """The code of a mask: each pixel is four values; the last is its opacity."""
    values = np.repeat(mask.ravel().astype(int) * 255, 4)
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1), values.size]
    return brush([(True, 3, values[a:b].tolist()) for a, b in zip(edges, edges[1:], strict=False)])


def ls_task(data: dict, results: list[dict], number: int = 1, **changes) -> dict:
    return {"id": number, "data": data, "annotations": [{"id": 1, "result": results, **changes}]}


def ls_tracked(sequence: list[dict], count: int, label: str = "square") -> dict:
    value = {"labels": [label], "framesCount": count, "duration": count / 5, "sequence": sequence}
    return {"id": "r1", "type": "videorectangle", "from_name": "box", "value": value}


def ls_key(frame: int, mask: np.ndarray, enabled: bool = True) -> dict:
    left, top, right, bottom = bounding_box(mask)
    return {
        "frame": frame,
        "enabled": enabled,
        "rotation": 0,
        "x": 100 * left / WIDTH,
        "y": 100 * top / HEIGHT,
        "width": 100 * (right - left) / WIDTH,
        "height": 100 * (bottom - top) / HEIGHT,
    }


def ls_region(
    kind: str, value: dict, track: int | None, number: str = "a", label: str = "x"
) -> list:
    common = {"id": number, "original_width": WIDTH, "original_height": HEIGHT, "type": kind}
    drawn = {**common, "value": {**value, kind: [label]}}
    if track is None:
        return [drawn]
    return [
        drawn,
        {**common, "type": "number", "from_name": "track_id", "value": {"number": track}},
    ]


def make_export(folder: Path, name: str = "export", **options) -> Export:
    """An export whose media are in a folder."""
    return Export(name, MediaLibrary([Folder(folder)]), **options)


def convert(video: AnnotatedVideo, export: Export) -> list[dict]:
    """The annotations of all frames of a video."""
    count, size = video.frames.probe()
    return convert_video(video, count, size, range(count), export)


def check_equal(converted: Path, videos: list[DrawnVideo], every: int = 1) -> None:
    """Assert that a converted data set has all masks of drawn videos, and their frames."""
    content = json.loads(converted.read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    assert len(content["videos"]) == len(videos)
    for record, video in zip(content["videos"], videos, strict=True):
        length = len(video.images[::every])
        assert (record["height"], record["width"], record["length"]) == (HEIGHT, WIDTH, length)
        for name, image in zip(record["file_names"], video.images[::every], strict=True):
            read = cv2.imread(str(converted.parent / "frames" / name))[..., ::-1]
            assert np.abs(read.astype(int) - image).mean() < 6  # a video and a JPEG lose a little
        annotations = [a for a in content["annotations"] if a["video_id"] == record["id"]]
        assert len(annotations) == len(video.objects)
        for item in video.objects:
            (own,) = (a for a in annotations if names[a["category_id"]] == item.name)
            entries = zip(own["segmentations"], own["bboxes"], own["areas"], strict=True)
            for mask, (rle, box, area) in zip(item.masks[::every], entries, strict=True):
                if mask is None:
                    assert (rle, box, area) == (None, None, None)
                    continue
                np.testing.assert_array_equal(coco_mask.decode(rle), mask)
                left, top, right, bottom = bounding_box(mask)
                assert box == [left, top, right - left, bottom - top]
                assert area == mask.sum()
