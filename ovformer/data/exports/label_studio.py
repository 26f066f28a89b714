"""Reads Label Studio's JSON: tracked boxes of videos, and shapes on images that are frames.

Sizes and positions are in percent of the frame. A tracked box is a sequence of key frames, counted
from 1. Where "enabled" is true, the box moves to the next key frame, or stays after the last one;
where it is false, the box is visible in that frame and not after it. Each folder of images is a
video. Each region on an image has to name its object: by a control such as <Number name="track_id"
perRegion="true" toName="image"/>, or in the region's meta text.
"""

from collections import defaultdict
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ovformer.data.exports.media import (
    VIDEO_SUFFIXES,
    FrameFiles,
    MediaFile,
    VideoFrames,
    parse_path,
)
from ovformer.data.exports.shapes import Box, Region, Shape, make_ellipse, make_polygon
from ovformer.data.exports.tracks import (
    AnnotatedVideo,
    Export,
    FrameTracks,
    KeyFrame,
    Track,
    name_place_in_errors,
)
from ovformer.data.files.image_files import IMAGE_SUFFIXES, natural_sort_key
from ovformer.data.files.untrusted_masks import is_frame_size

_LABEL_KEYS = ("labels", "rectanglelabels", "polygonlabels", "brushlabels", "ellipselabels")


def read_label_studio(tasks: Any, export: Export) -> tuple[list[AnnotatedVideo], list[str]]:
    """Read an export as "JSON".

    Args:
        tasks: the content of the file.
        export: its options; counts what is skipped.

    Returns:
        The videos, and the names of the classes in alphabetical order.

    Raises:
        FileNotFoundError: frames are missing.
        ValueError: the file is not valid; the message names the place.
    """
    videos: list[AnnotatedVideo] = []
    folders: dict[tuple, list[tuple[MediaFile, str, list[list[dict]]]]] = defaultdict(list)
    for number, task in enumerate(tasks):
        place = f"{export.path}: task number {number}"
        with name_place_in_errors(place):
            place = f"{export.path}: task {task.get('id', f'number {number}')}"
            regions = _select_regions(task, place, export)
            if regions is None:
                continue
            media = _find_media(task, place)
            if parse_path(media).suffix.lower() in VIDEO_SUFFIXES:
                videos.append(_make_video(media, regions, place, export))
            else:
                found = export.library.find(media, IMAGE_SUFFIXES, place)
                folder = (str(found.source), PurePosixPath(found.name).parent)
                folders[folder].append((found, place, regions))
    videos += [_make_image_video(images, export) for images in folders.values()]
    return videos, sorted({track.category for video in videos for track in video.tracks})


def decode_brush(codes: list[int], size: int) -> np.ndarray:
    """Decode the run-length code of Label Studio's brush.

    It is a stream of bits: the number of values (32 bits), the size of a value minus 1 (5 bits), 4
    sizes of a length minus 1 (4 bits each); then blocks. A block has 1 bit that is set for a run, 2
    bits that choose the size of its length, the length minus 1, and the values: one for a run, else
    as many as the length says.

    Args:
        codes: bytes.
        size: the expected number of values; a few bytes may claim billions.

    Returns:
        uint8 (size,).

    Raises:
        ValueError: the code ends too early, is not valid, or has another number of values.
    """
    try:
        bits = np.unpackbits(np.array(codes, dtype=np.uint8))
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"a brush whose rle is not a list of bytes ({error})") from error
    place = 0

    def read_numbers(size: int, count: int = 1) -> np.ndarray:
        nonlocal place
        end = place + size * count
        if end > bits.size:
            raise ValueError("a brush whose rle is cut off")
        taken = bits[place:end].reshape(count, size)
        place = end
        return taken @ (1 << np.arange(size - 1, -1, -1, dtype=np.int64))

    total, word = int(read_numbers(32)[0]), int(read_numbers(5)[0]) + 1
    if total != size:
        raise ValueError(f"a brush of {total} values, expected {size}")
    sizes = read_numbers(4, 4) + 1
    blocks, have = [], 0
    # No number of blocks is given: they end when all values are there.
    while have < total:
        is_run = read_numbers(1)[0]
        length_size = int(sizes[read_numbers(2)[0]])
        length = int(read_numbers(length_size)[0]) + 1
        # Before the values are made: a run of a few bits may claim 65,536 of them.
        if have + length > total:
            raise ValueError("a brush whose rle has more values than it says")
        values = read_numbers(word, 1 if is_run else length).astype(np.uint8)
        blocks.append(np.repeat(values, length) if is_run else values)
        have += length
    return np.concatenate([np.zeros(0, np.uint8), *blocks])


def _select_regions(task: dict, place: str, export: Export) -> list[list[dict]] | None:
    """Return the results of a task, grouped by region; None if it is not annotated."""
    if not isinstance(task.get("annotations"), list) or "data" not in task:
        raise ValueError(f"{place}: no annotations and data. Export as JSON, not as JSON-MIN.")
    export.skipped["predictions of models in Label Studio"] += len(task.get("predictions") or [])
    chosen = [a for a in task["annotations"] if not a.get("was_cancelled")]
    num_cancelled = len(task["annotations"]) - len(chosen)
    export.skipped["annotations cancelled in Label Studio"] += num_cancelled
    # Several people may have annotated a task; mixing their masks would double the objects.
    if len(chosen) > 1:
        best = [a for a in chosen if a.get("ground_truth")]
        if len(best) != 1:
            raise ValueError(
                f"{place}: has {len(chosen)} annotations and {len(best)} ground truths. Mark one "
                "as ground truth in Label Studio, or delete the others."
            )
        export.skipped["annotations that are not the ground truth"] += len(chosen) - 1
        chosen = best
    if not chosen:
        export.skipped["tasks that are not annotated"] += 1
        return None
    regions = defaultdict(list)
    for number, result in enumerate(chosen[0]["result"]):
        if "value" in result:  # else a relation
            regions[result.get("id", number)].append(result)
        else:
            export.skipped[f"{result.get('type')} (has no area)"] += 1
    return list(regions.values())


def _find_media(task: dict, place: str) -> str:
    """Return the address of the video or image of a task."""
    addresses = [
        value
        for value in task["data"].values()
        if isinstance(value, str)
        and parse_path(value).suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES
    ]
    if len(addresses) != 1:
        raise ValueError(
            f"{place}: expected the address of one video or image in its data, got "
            f"{addresses or task['data']}."
        )
    return addresses[0]


def _make_video(
    media: str, regions: list[list[dict]], place: str, export: Export
) -> AnnotatedVideo:
    found = export.library.find(media, VIDEO_SUFFIXES, place)
    tracks, counts = [], set()
    for region in regions:
        own = f"{place}: region {region[0].get('id')}"
        parts = [part for part in region if "sequence" in part["value"]]
        if not parts:
            export.skipped[f"{region[0].get('type')} (has no area)"] += 1
            continue
        value = parts[0]["value"]
        try:
            keys = {int(item["frame"]): _parse_key_frame(item) for item in value["sequence"]}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{own}: expected the key frames of a rectangle with frame, x, y, width and "
                f"height; reading them failed with {error!r}."
            ) from error
        # The dict kept only the last of two key frames for one frame.
        if len(keys) != len(value["sequence"]):
            raise ValueError(f"{own}: has two key frames for one frame.")
        tracks.append(Track(own, _get_category(region, own), keys))
        if isinstance(count := value.get("framesCount"), int):
            counts.add(count)
    if len(counts) > 1:
        raise ValueError(f"{place}: its regions say that the video has {sorted(counts)} frames.")
    return AnnotatedVideo(
        name=PurePosixPath(found.name).stem,
        frames=VideoFrames(found),
        tracks=tracks,
        in_percent=True,
        expected=counts.pop() if counts else None,
        numbers=1,
    )


def _parse_key_frame(item: dict) -> KeyFrame:
    sides = (float(item[key]) for key in ("x", "y", "width", "height"))
    box = Box(*sides, rotation=float(item.get("rotation", 0)), pivot="corner")
    return KeyFrame([box], lasts=bool(item.get("enabled", True)))


def _make_image_video(
    images: list[tuple[MediaFile, str, list[list[dict]]]], export: Export
) -> AnnotatedVideo:
    # Tasks come in the order of their import; positions are those of the frames.
    images.sort(key=lambda image: natural_sort_key(image[0].name))
    joined, sizes = FrameTracks(export), set()
    for position, (_, place, regions) in enumerate(images):
        for region in regions:
            own = f"{place}: region {region[0].get('id')}"
            with name_place_in_errors(own):
                size, shape = _parse_shape(region, own, export)
                if shape is not None:
                    sizes.add(size)
                    identity = _find_identity(region, export)
                    category = _get_category(region, own)
                    joined.add(own, position, category, identity, shape)
    first = images[0][0]
    folder = PurePosixPath(first.name).parent.name or first.source.path.stem
    if len(sizes) > 1:
        raise ValueError(
            f"{export.path}: images of the folder {folder!r} have different sizes (height, width): "
            f"{sorted(sizes)[:3]}. A folder is a video, whose frames have one size."
        )
    frames = FrameFiles([found for found, _, _ in images])
    size = sizes.pop() if sizes else None
    return AnnotatedVideo(folder, frames, joined.tracks(len(images)), size=size)


def _parse_shape(
    region: list[dict], place: str, export: Export
) -> tuple[tuple[int, int] | None, Shape | None]:
    """Return the size of the image (height, width) and the shape, in pixels."""
    parts = [part for part in region if _has_area(part["value"])]
    if not parts:
        export.skipped[f"{region[0].get('type')} (has no area)"] += 1
        return None, None
    part = parts[0]
    try:
        height, width = int(part["original_height"]), int(part["original_width"])
        if part.get("image_rotation"):
            raise ValueError("the image was turned in Label Studio; turn the file instead")
        return (height, width), _draw_shape(part["value"], height, width)
    except KeyError as error:
        raise ValueError(f"{place}: has no {error}.") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}.") from error


def _has_area(value: dict) -> bool:
    return bool({"rle", "points", "radiusX"} & value.keys()) or {"width", "height"} <= value.keys()


def _draw_shape(value: dict, height: int, width: int) -> Shape:
    """Convert a shape from percent to pixels."""
    x, y = width / 100, height / 100
    rotation = float(value.get("rotation", 0))
    if "rle" in value:
        if not is_frame_size([height, width]):
            raise ValueError(f"an image of {height} x {width} pixels (height x width)")
        # The brush stores red, green, blue and opacity of each pixel; the mask is the opacity.
        pixels = decode_brush(value["rle"], 4 * height * width)
        alpha = pixels.reshape(height, width, 4)[..., 3] > 0
        return Region(coco_mask.encode(np.asfortranarray(alpha, np.uint8)))
    if "points" in value:
        return make_polygon(np.asarray(value["points"], np.float64) * (x, y))
    if "radiusX" in value:
        radii = value["radiusX"] * x, value["radiusY"] * y
        return make_ellipse(value["x"] * x, value["y"] * y, radii, rotation)
    sides = (float(value[key]) for key in ("x", "y", "width", "height"))
    return Box(*sides, rotation=rotation, pivot="corner").scaled(x, y)


def _get_category(region: list[dict], place: str) -> str:
    labels = {
        label for part in region for key in _LABEL_KEYS for label in part["value"].get(key, ())
    }
    if len(labels) != 1 or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{place}: expected one label, got {sorted(map(str, labels)) or 'none'}.")
    return labels.pop()


def _find_identity(region: list[dict], export: Export) -> tuple | None:
    """Return what joins a region with those of other frames, if anything does."""
    for part in region:
        if part.get("from_name") == export.track_by:
            value = part["value"]
            given = value.get("number", value.get("text", value.get("choices")))
            given = given[0] if isinstance(given, list) and given else given
            if given not in (None, ""):
                return (str(given),)
    # Second: the text that the user typed into the region's own panel.
    for part in region:
        if text := (part.get("meta") or {}).get("text"):
            return (str(text[0] if isinstance(text, list) else text),)
    return None
