"""Reads COCO's JSON of frames: images that make up videos, annotations that make up tracks.

The video of an image is its "video_id", or else the folder of its file name. Frames are sorted by
"frame_index", or else by name (frame 2 before frame 10). The object of an annotation is its
"track_id" or "instance_id", which may also be among its "attributes", as CVAT writes it.
"""

from collections import defaultdict
from pathlib import PurePosixPath
from typing import Any

from ovformer.data.exports.media import FrameFiles
from ovformer.data.exports.shapes import Box, Region, Shape, make_polygon
from ovformer.data.exports.tracks import AnnotatedVideo, Export, FrameTracks, name_place_in_errors
from ovformer.data.files.image_files import IMAGE_SUFFIXES, natural_sort_key


def read_coco(content: dict[str, Any], export: Export) -> tuple[list[AnnotatedVideo], list[str]]:
    """Read an annotation file of images.

    Args:
        content: of the file.
        export: its options; counts what is skipped.

    Returns:
        The videos, and the names of the classes in the order of their ids.

    Raises:
        FileNotFoundError: frames are missing.
        ValueError: the file is not valid; the message names the place.
    """
    missing = [key for key in ("images", "annotations", "categories") if key not in content]
    if missing:
        raise ValueError(f"{export.path}: has no {missing}. Is it COCO's format of instances?")
    with name_place_in_errors(export.path):
        names = {c["id"]: c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])}
        images = {image["id"]: image for image in content["images"]}
        video_names = {v["id"]: v["name"] for v in content.get("videos") or () if "name" in v}
        groups = defaultdict(list)
        # Exports from Windows have backslashes in their file names.
        for image in images.values():
            folder = str(PurePosixPath(image["file_name"].replace("\\", "/")).parent)
            groups[image.get("video_id", folder)].append(image)
        of_image = defaultdict(list)
        for annotation in content["annotations"]:
            place = f"{export.path}: annotation {annotation['id']}"
            _check(place, annotation, images, names)
            of_image[annotation["image_id"]].append((place, annotation))
    videos = []
    for key, frames in groups.items():
        name = str(video_names.get(key, PurePosixPath(str(key)).name)) or "frames"
        with name_place_in_errors(f"{export.path}: video {name!r}"):
            videos.append(_make_video(name, frames, of_image, names, export))
    return videos, list(names.values())


def _check(place: str, annotation: dict, images: dict, names: dict) -> None:
    for key, known in (("image_id", images), ("category_id", names)):
        if annotation[key] not in known:
            raise ValueError(f"{place}: {key} {annotation[key]!r} is not in the file.")


def _make_video(
    name: str, frames: list[dict], of_image: dict, names: dict, export: Export
) -> AnnotatedVideo:
    # Indices are compared with each other only: a video where some frames lack one uses names.
    if all("frame_index" in frame for frame in frames):
        frames.sort(key=lambda frame: frame["frame_index"])
    else:
        frames.sort(key=lambda frame: natural_sort_key(frame["file_name"]))
    sizes = {(frame.get("height"), frame.get("width")) for frame in frames}
    if len(sizes) > 1:
        raise ValueError(
            f"{export.path}: images of video {name!r} have different sizes (height, width): "
            f"{sorted(sizes, key=str)[:3]}. The frames of a video have one size."
        )
    joined = FrameTracks(export)
    for position, frame in enumerate(frames):
        for place, annotation in of_image[frame["id"]]:
            with name_place_in_errors(place):
                shape = _parse_shape(place, annotation)
                identity = _find_identity(annotation, export)
                category = names[annotation["category_id"]]
                iscrowd = int(annotation.get("iscrowd") in (1, True))
                joined.add(place, position, category, identity, shape, iscrowd)
    files = [
        export.library.find(
            frame["file_name"], IMAGE_SUFFIXES, f"{export.path}: image {frame['id']}"
        )
        for frame in frames
    ]
    size = sizes.pop()
    return AnnotatedVideo(
        name, FrameFiles(files), joined.tracks(len(frames)), size=None if None in size else size
    )


def _parse_shape(place: str, annotation: dict) -> Shape:
    area = annotation.get("segmentation")
    try:
        if isinstance(area, dict):
            return Region(area)
        # One region of all polygons: COCO lists the parts of an object together.
        if area:
            return Region([make_polygon(points).area[0] for points in area])
        # No mask; check_boxes refuses the box later, unless the user asked for boxes as masks.
        x, y, width, height = annotation["bbox"]
        return Box(float(x), float(y), float(width), float(height))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{place}: its segmentation or bbox is not valid ({error}).") from error


def _find_identity(annotation: dict, export: Export) -> tuple | None:
    """Return what joins an annotation with those of other frames, if anything does."""
    for fields in (annotation, annotation.get("attributes") or {}):
        # The key that the user named comes first; dict.fromkeys drops it where it is repeated.
        for key in dict.fromkeys((export.track_by, "track_id", "instance_id")):
            if fields.get(key) is not None:
                return (str(fields[key]),)
    return None
