"""Writes annotated videos as a YouTube-VIS annotation file, with the frames beside it."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from ovformer.data.exports.shapes import Box, merge_shapes
from ovformer.data.exports.tracks import AnnotatedVideo, Export, Track

# Most letters of a folder's name: file systems allow 255 bytes, and a letter may have four.
_LONGEST_NAME = 60


def check_boxes(videos: Iterable[AnnotatedVideo]) -> None:
    """Raise ValueError if an object has a box and no mask."""
    boxes = [
        (track.name, frame)
        for video in videos
        for track in video.tracks
        for frame, key in track.keys.items()
        if key.is_visible and any(isinstance(shape, Box) for shape in key.shapes)
    ]
    if boxes:
        name, frame = boxes[0]
        raise ValueError(
            f"{name}: has a box and no mask in frame {frame} ({len(boxes)} shapes are boxes). The "
            "model learns masks: draw polygons or masks, or use each box as a mask with "
            "--boxes-as-masks. A model that is trained on boxes predicts masks like boxes."
        )


def convert_video(
    video: AnnotatedVideo, length: int, size: tuple[int, int], chosen: Sequence[int], export: Export
) -> list[dict]:
    """Return the annotations of a video, without ids of video and category.

    Args:
        video: its tracks.
        length: number of frames of the video.
        size: their height and width in pixels.
        chosen: positions of the frames to keep.
        export: counts what is skipped.

    Returns:
        One dict per visible object: "category" (its name), "iscrowd", "width", "height",
        "segmentations", "bboxes" and "areas" with an entry per chosen frame, None where absent.

    Raises:
        ValueError: the frames have another size than the annotations, or a shape is not valid.
    """
    # Polygons for another size would be drawn in the wrong place, without any error.
    if video.size not in (None, size):
        raise ValueError(
            f"{export.path}: the frames of {video.name!r} have {size[0]} x {size[1]} pixels "
            f"(height x width), but its annotations are for {video.size[0]} x {video.size[1]}."
        )
    if video.has_other_rate(length):
        export.notes.append(
            f"{export.path}: {video.name!r} has {length} frames, but Label Studio counted "
            f"{video.expected}, by the frame rate of its <Video> tag. Boxes were matched by time."
        )
    # The tool may count frames from another number, or at another rate, than the file.
    numbers = [video.number_of(position, length) for position in chosen]
    annotations = []
    for track in video.tracks:
        masks = [_make_mask(video, track, number, size) for number in numbers]
        if any(masks):
            annotations.append(_make_annotation(track, masks, size))
        else:
            export.skipped["objects that are not seen in any frame that is kept"] += 1
    return annotations


def write_frames(
    video: AnnotatedVideo, folder: Path, name: str, chosen: Sequence[int]
) -> list[str]:
    """Write frames of a video.

    Args:
        video: reads the frames.
        folder: parent of the new folder.
        name: of the new folder.
        chosen: positions of the frames.

    Returns:
        The paths of the files below ``folder``.
    """
    (folder / name).mkdir(parents=True, exist_ok=True)
    return [f"{name}/{file}" for file in video.frames.write(folder / name, chosen)]


def make_folder_names(names: Iterable[str]) -> list[str]:
    """Return different names that are valid for folders: "clip", "clip" -> "clip", "clip-2"."""
    chosen: list[str] = []
    taken: set[str] = set()
    for name in names:
        stem = re.sub(r"[^\w.-]+", "_", name)[:_LONGEST_NAME].strip("._") or "video"
        valid, number = stem, 1
        while valid.lower() in taken:  # some file systems ignore upper and lower case
            number += 1
            valid = f"{stem}-{number}"
        chosen.append(valid)
        taken.add(valid.lower())
    return chosen


def split_videos(ids: Sequence[int], val: float, seed: int) -> tuple[list[int], list[int]]:
    """Split videos at random into those for training and those for validation.

    Args:
        ids: of the videos.
        val: share of the videos for validation, which get at least one.
        seed: of the random choice.

    Raises:
        ValueError: no video would be left for training.
    """
    number = max(1, round(val * len(ids)))
    if number >= len(ids):
        raise ValueError(
            f"--val {val:g} of {len(ids)} videos leaves none to train on. A video is never split, "
            "because its frames are too similar."
        )
    # A generator of its own: the split depends on the seed alone, not on what ran before.
    drawn = set(np.random.default_rng(seed).choice(ids, number, replace=False).tolist())
    return [i for i in ids if i not in drawn], [i for i in ids if i in drawn]


def select_videos(content: dict, ids: Iterable[int]) -> dict:
    """Return the part of an annotation file about some videos, with all categories."""
    wanted = set(ids)
    return {
        **content,
        "videos": [video for video in content["videos"] if video["id"] in wanted],
        "annotations": [a for a in content["annotations"] if a["video_id"] in wanted],
    }


def _make_mask(
    video: AnnotatedVideo, track: Track, number: float, size: tuple[int, int]
) -> dict | None:
    """Return the mask of an object in a frame."""
    shapes = track.shapes_at(number)
    # After the interpolation, which needs no size; the frames' own size is known only now.
    if video.in_percent:
        shapes = [shape.scaled(size[1] / 100, size[0] / 100) for shape in shapes]
    try:
        return merge_shapes(shapes, *size)
    except ValueError as error:
        raise ValueError(f"{track.name}: frame {number:g}: {error}.") from error


def _make_annotation(track: Track, masks: Sequence[dict | None], size: tuple[int, int]) -> dict:
    return {
        "category": track.category,
        "iscrowd": track.iscrowd,
        "height": size[0],
        "width": size[1],
        "segmentations": list(masks),
        "bboxes": [coco_mask.toBbox(mask).tolist() if mask else None for mask in masks],
        "areas": [int(coco_mask.area(mask)) if mask else None for mask in masks],
    }
