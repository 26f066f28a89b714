"""Reads CVAT's XML, version 1.1: "CVAT for video" and "CVAT for images".

Every track of a video lists its shapes by frame. CVAT lists all frames; a file may also hold key
frames only. Then boxes and polygons move from one key frame to the next, and the last one stays, as
in CVAT. A mask is valid for its own frame only. CVAT writes a shape that belongs to no track, such
as every mask, as a track of a single frame: those with the same label and group become one object.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import BinaryIO
from xml.etree.ElementTree import Element, ParseError

import numpy as np

from ovformer.data.exports.cvat_frames import frames_by_name, frames_by_number
from ovformer.data.exports.shapes import Box, CroppedMask, Shape, make_ellipse, make_polygon
from ovformer.data.exports.tracks import AnnotatedVideo, Export, FrameTracks, KeyFrame, Track
from ovformer.data.files.image_files import natural_sort_key

# What CVAT can put into a track or an image.
_AREAS = ("box", "polygon", "mask", "ellipse")
_WITHOUT_AREA = ("polyline", "points", "cuboid", "skeleton", "tag")
_SIZE = ("height", "width")
_MAX_FRAMES = 2**31


@dataclass
class _Task:
    """A task of CVAT: a video, or images.

    Attributes:
        name: the user's name for it.
        source: name of the video file.
        numbers: of its frames; None where the file does not say.
        size: height and width of a video.
        listed: its tracks, each with the identity that joins tracks of one frame.
        images: (name, number, size, [(place, category, identity, shape)]) of each image.
    """

    name: str = ""
    source: str = ""
    numbers: range | None = None
    size: tuple[int, int] | None = None
    listed: list[tuple[Track, tuple | None]] = field(default_factory=list)
    images: list[tuple] = field(default_factory=list)


def read_cvat(file: BinaryIO, export: Export) -> tuple[list[AnnotatedVideo], list[str]]:
    """Read an export of a task, a job or a project.

    Args:
        file: the XML.
        export: its options; counts what is skipped.

    Returns:
        The videos, and the names of the classes in the order of CVAT's labels.

    Raises:
        FileNotFoundError: frames are missing.
        ModuleNotFoundError: defusedxml is not installed.
        ValueError: the file is not valid; the message names the place.
    """
    tasks, labels, is_full = _parse(file, export)
    videos = []
    for task in tasks.values():
        if task.images:
            videos += _make_image_videos(task, export)
        elif task.listed or task.numbers:
            videos.append(_make_track_video(task, is_full, export))
    # Shapes may have labels that the meta part does not list.
    used = [t.category for video in videos for t in video.tracks]
    return videos, list(dict.fromkeys([*labels, *used]))


def _parse(file: BinaryIO, export: Export) -> tuple[dict[str, _Task], list[str], bool]:
    """Return the tasks, the labels, and whether frames between key frames are listed, too."""
    tasks, labels, is_full = {"": _Task()}, [], False
    for element in _iterate_elements(file, export.path):
        if element.tag == "meta":
            tasks, labels = _parse_tasks(element, export), _parse_labels(element)
        elif element.tag == "track":
            is_full |= any(shape.get("keyframe") == "0" for shape in element)
            track, identity = _parse_track(element, export)
            _find_task(element, tasks, export).listed.append((track, identity))
        elif element.tag == "image":
            image = _parse_image(element, export)
            _find_task(element, tasks, export).images.append(image)
    return tasks, labels, is_full


def _iterate_elements(file: BinaryIO, path: str) -> Iterator[Element]:
    """Yield meta, track and image elements, and empty each afterwards to save memory."""
    try:
        from defusedxml.common import DefusedXmlException
        from defusedxml.ElementTree import iterparse
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "CVAT's files are read with defusedxml, which is missing: pip install 'ovformer[demo]'",
            name="defusedxml",
        ) from error
    try:
        for _, element in iterparse(file, events=("end",)):
            if element.tag in ("meta", "track", "image"):
                yield element
                element.clear()
    except ParseError as error:
        raise ValueError(f"{path}: not valid XML ({error}). Is it cut off?") from error
    except DefusedXmlException as error:
        raise ValueError(f"{path}: declares entities, as CVAT never does ({error}).") from error


def _parse_tasks(meta: Element, export: Export) -> dict[str, _Task]:
    found = [e for tag in ("task", "job") for e in meta.iter(tag) if e.find("size") is not None]
    tasks = {}
    for element in found:
        place = f"{export.path}: <{element.tag}> {element.findtext('id', '')}"
        try:
            count = int(element.findtext("size", "0"))
            start = int(element.findtext("start_frame") or 0)
            step = int((element.findtext("frame_filter") or "step=1").split("=")[1])
            stop = int(element.findtext("stop_frame") or start + (count - 1) * step)
            if not 0 <= start <= stop < _MAX_FRAMES or step < 1:
                raise ValueError(f"frames {start} to {stop}, one of {step}")
            size = element.find("original_size")
            tasks[element.findtext("id", "")] = _Task(
                name=element.findtext("name") or "",
                source=element.findtext("source") or "",
                numbers=range(start, stop + 1, step),
                size=None
                if size is None
                else (int(size.findtext("height")), int(size.findtext("width"))),
            )
        except (IndexError, TypeError, ValueError) as error:
            raise ValueError(f"{place}: frames or size are not as in CVAT ({error}).") from error
    return tasks or {"": _Task()}


def _parse_labels(meta: Element) -> list[str]:
    """Return the labels of shapes that have an area. Parts of skeletons have a parent."""
    return [
        label.findtext("name", "")
        for label in meta.iter("label")
        if label.findtext("type") not in _WITHOUT_AREA and not label.findtext("parent")
    ]


def _find_task(element: Element, tasks: dict[str, _Task], export: Export) -> _Task:
    number = element.get("task_id")
    if number in tasks:
        return tasks[number]
    if len(tasks) == 1:
        return next(iter(tasks.values()))
    raise ValueError(
        f"{export.path}: <{element.tag}> {element.get('id')} belongs to task {number}, which is "
        f"not among those of the file: {', '.join(tasks)}."
    )


def _parse_track(element: Element, export: Export) -> tuple[Track, tuple | None]:
    category = element.get("label", "")
    track = Track(f"{export.path}: track {element.get('id')} ({category})", category)
    identity = None
    for child in element:
        place = f"{track.name}: <{child.tag}> of frame {child.get('frame')}"
        shape = _parse_shape(child, place, export)
        if shape is None:
            continue
        try:
            frame = int(child.attrib["frame"])
        except (KeyError, ValueError) as error:
            raise ValueError(f"{place}: frame is not a number.") from error
        if frame in track.keys:
            raise ValueError(f"{place}: the track has two shapes in this frame.")
        is_visible = child.get("outside", "0") != "1"
        # A mask cannot be interpolated, so it is valid for its own frame only.
        lasts = is_visible and not isinstance(shape, CroppedMask)
        track.keys[frame] = KeyFrame([shape], is_visible, lasts)
        identity = identity or _find_identity(child, element, category, export)
    return track, identity


def _parse_image(element: Element, export: Export) -> tuple:
    name = element.get("name", "")
    place = f"{export.path}: image {element.get('id')} ({name})"
    try:
        number = int(element.attrib["id"])
        size = int(element.attrib["height"]), int(element.attrib["width"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{place}: id, width or height is not a number.") from error
    shapes = []
    for count, child in enumerate(element):
        own = f"{place}: shape {count} (<{child.tag}> {child.get('label')!r})"
        shape = _parse_shape(child, own, export)
        if shape is not None:
            category = child.get("label", "")
            identity = _find_identity(child, child, category, export)
            shapes.append((own, category, identity, shape))
    return name, number, size, shapes


def _find_identity(shape: Element, grouped: Element, category: str, export: Export) -> tuple | None:
    """Return what joins a shape with those of other frames: an attribute, or label and group."""
    for attribute in shape.iter("attribute"):
        if attribute.get("name") == export.track_by and (attribute.text or "").strip():
            return (attribute.text.strip(),)
    group = grouped.get("group_id", "0")
    return None if group == "0" else (category, "group", group)


def _parse_shape(element: Element, place: str, export: Export) -> Shape | None:
    if element.tag not in _AREAS:
        export.skipped[f"<{element.tag}> (has no area)"] += 1
        return None
    values = element.attrib
    try:
        rotation = float(values.get("rotation", 0))
        if element.tag == "box":
            left, top = float(values["xtl"]), float(values["ytl"])
            right, bottom = float(values["xbr"]), float(values["ybr"])
            return Box(left, top, right - left, bottom - top, rotation)
        if element.tag == "polygon":
            return make_polygon(
                [float(v) for pair in values["points"].split(";") for v in pair.split(",")]
            )
        if element.tag == "ellipse":
            radii = float(values["rx"]), float(values["ry"])
            return make_ellipse(float(values["cx"]), float(values["cy"]), radii, rotation)
        place_and_size = (int(values[key]) for key in ("left", "top", "width", "height"))
        runs = np.array([int(run) for run in values["rle"].split(",")], np.int64)
        return CroppedMask(*place_and_size, runs)
    except KeyError as error:
        raise ValueError(f"{place}: has no {error}.") from error
    except (OverflowError, ValueError) as error:
        raise ValueError(f"{place}: {error}.") from error


def _make_track_video(task: _Task, is_full: bool, export: Export) -> AnnotatedVideo:
    """Return the video of a task whose annotations are tracks."""
    place = f"{export.path}: task {task.name!r}"
    library, source = export.library, task.source
    frames, numbers = frames_by_number(library, task.name, source, task.numbers, place)
    if missing := len(task.numbers or numbers) - len(numbers):
        export.notes.append(f"{place}: {missing} frames have no image and were skipped.")
    # A track of points or lines only has no key frames left.
    listed = [(track, identity) for track, identity in task.listed if track.keys]
    step = task.numbers.step if task.numbers else 1
    if not is_full and any(_has_gap(track, step) for track, _ in listed):
        export.notes.append(
            f"{export.path}: lists key frames alone; boxes and polygons between them were computed."
        )
    else:
        # Where CVAT lists all frames, a track ends with its last shape.
        for track, _ in listed:
            track.keys[max(track.keys)].lasts = False
    tracks, joined, num_alone = [], FrameTracks(export), 0
    for track, identity in listed:
        # CVAT writes a mask as a track of one frame: those of a group become one object.
        lone = _find_only_frame(track, step)
        num_alone += lone is not None and identity is None
        if lone is None or identity is None:
            tracks.append(track)
        else:
            shape = track.keys[lone].shapes[0]
            joined.add(track.name, lone, track.category, identity, shape)
    if num_alone and len(numbers) > 1:
        export.notes.append(
            f"{export.path}: {num_alone} objects are visible in one frame only. If they are parts "
            "of the same objects, as all masks are, group them in CVAT or give them an attribute "
            f"{export.track_by!r}."
        )
    tracks += joined.tracks(len(numbers))
    name = task.name or PurePosixPath(task.source).stem or PurePosixPath(export.path).stem
    return AnnotatedVideo(name, frames, tracks, numbers, task.size)


def _has_gap(track: Track, step: int) -> bool:
    """Return whether a track lacks a shape for a frame in which its object is visible."""
    listed = sorted(track.keys)
    return any(
        track.keys[one].lasts and other - one > step
        for one, other in zip(listed, listed[1:], strict=False)
    )


def _find_only_frame(track: Track, step: int) -> int | None:
    """Return the only frame in which an object is visible, or None if there are several."""
    visible = [frame for frame, key in track.keys.items() if key.is_visible]
    if len(visible) != 1:
        return None
    frame = visible[0]
    end = min((other for other in track.keys if other > frame), default=None)
    if track.keys[frame].lasts and (end is None or end - frame > step):
        return None
    return frame


def _make_image_videos(task: _Task, export: Export) -> Iterator[AnnotatedVideo]:
    """Yield the videos of a task of images: each folder is a video."""
    folders = defaultdict(list)
    for image in task.images:
        folders[PurePosixPath(image[0]).parent].append(image)
    for folder, images in folders.items():
        images.sort(key=lambda image: natural_sort_key(image[0]))
        name = folder.name or task.name or PurePosixPath(export.path).stem
        sizes = {size for _, _, size, _ in images}
        if len(sizes) > 1:
            raise ValueError(
                f"{export.path}: images of {name!r} have different sizes (height, width): "
                f"{sorted(sizes)[:3]}. The frames of a video have one size; put each size into its "
                "own folder."
            )
        joined = FrameTracks(export)
        for position, (_, _, _, shapes) in enumerate(images):
            for place, category, identity, shape in shapes:
                joined.add(place, position, category, identity, shape)
        tracks = joined.tracks(len(images))
        frames = frames_by_name(export.library, [i[0] for i in images], task.source, export.path)
        yield AnnotatedVideo(name, frames, tracks, size=sizes.pop())
