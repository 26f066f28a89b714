"""Annotations of videos in the YouTube-VIS format: OVIS, LV-VIS and (converted) BURST use it too.

The file is one JSON object with "videos" {id, height, width, length, file_names}, "categories" {id,
name} and "annotations" {id, video_id, category_id, segmentations, ...}; "segmentations" holds one
entry per frame: polygons, an RLE (compressed or not), or null where the object is absent. Files
without labels (validation and test sets that a server scores) have no or null "annotations".
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from pycocotools import mask as coco_mask

from ovformer.d2 import BoxMode
from ovformer.data.clip_features import clip_key
from ovformer.data.json_file import read_json
from ovformer.data.lvis_json import run_total

# Groups by the flag that the YouTube-VIS category tables carry.
BASE_AND_NOVEL = {"base": ("novel", (False,)), "novel": ("novel", (True,))}

_VIDEO_KEYS = ("id", "height", "width", "file_names")
_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")
_ANNOTATION_KEYS = ("id", "video_id", "category_id", "segmentations")

logger = logging.getLogger(__name__)


def load_vis_json(path: Path) -> dict:
    """Load a YouTube-VIS style annotation file and check that it is one.

    Args:
        path: the file.

    Returns:
        Its content with "videos", "categories" and, unless the file has no labels, "annotations".
        Each video has a "length"; each entry of "segmentations" is a compressed RLE or ``None``.
        BURST's "neg_category_ids" (looked for and not found) and "not_exhaustive_category_ids" (not
        all instances annotated) hold ids of "categories".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not valid JSON, lacks a field, lists an id twice, refers to a video or a
            category that it lacks, or holds a mask that is none.
    """
    content = read_json(path)
    if not (isinstance(content, dict) and content.get("videos") and content.get("categories")):
        raise ValueError(
            f'{path} is no video annotation file: an object with non-empty "videos" and '
            '"categories" was expected. A results.json is given elsewhere (mAP.py: --dt).'
        )
    videos = _by_id(path, "video", content["videos"], _VIDEO_KEYS)
    categories = _by_id(path, "category", content["categories"], ("id", "name"))
    for video in videos.values():
        video["length"] = len(video["file_names"])
    if "cate_ori" in content:
        _renumber_lists(content)
    annotations = content.get("annotations") or []
    for number, annotation in _by_id(path, "annotation", annotations, _ANNOTATION_KEYS).items():
        place = f"{path}: annotation {number}"
        if annotation["video_id"] not in videos:
            raise ValueError(
                f"{place} belongs to video {annotation['video_id']}, which is not among the file's "
                f"{len(videos)} videos."
            )
        if annotation["category_id"] not in categories:
            raise ValueError(
                f"{place} has category id {annotation['category_id']}, which is not among the "
                f"file's {len(categories)} categories."
            )
        _encode(place, annotation, videos[annotation["video_id"]])
    for track in {annotation["video_id"]: annotation for annotation in annotations}.values():
        # A sample: a tool that writes masks of another size than it says does so everywhere.
        try:
            check_rle(next((mask for mask in track["segmentations"] if mask), None))
        except ValueError as error:
            raise ValueError(f"{path}: annotation {track['id']}: {error}.") from error
    return content


def read_vis_json(path: Path, image_folder: Path, categories: Sequence[dict]) -> list[dict]:
    """Read a YouTube-VIS style annotation file into dataset dicts.

    Args:
        path: the annotation file.
        image_folder: the folder that its "file_names" are relative to.
        categories: the category table; its order defines the contiguous category ids.

    Returns:
        One dict per video, by video id: ``video_id``, ``height``, ``width``, ``length`` (T),
        ``file_names`` and ``clip_keys`` (T str each), ``annotations`` (T lists, one dict per
        visible instance: ``id``, which is the same in all frames, ``category_id`` contiguous,
        ``bbox``, ``bbox_mode``, ``segmentation`` a compressed RLE, ``iscrowd``), and where the file
        has them ``neg_category_ids`` and ``not_exhaustive_category_ids`` (the file's own ids).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not valid, or has a category that the table lacks.
    """
    content = load_vis_json(path)
    contiguous_ids = {category["id"]: index for index, category in enumerate(categories)}
    for category in content["categories"]:
        if category["id"] not in contiguous_ids:
            raise ValueError(
                f"{path}: category {category['id']} ({category['name']!r}) is not in the category "
                f"table ({len(contiguous_ids)} categories, ids {min(contiguous_ids)} to "
                f"{max(contiguous_ids)}). The file belongs to another data set."
            )
    tracks = defaultdict(list)
    for annotation in content.get("annotations") or []:
        tracks[annotation["video_id"]].append(annotation)
    logger.info("%s: %d videos", path, len(content["videos"]))
    return [
        _video_record(video, tracks[video["id"]], image_folder, contiguous_ids)
        for video in sorted(content["videos"], key=lambda video: video["id"])
    ]


def frame_name(name: str) -> str:
    """Return the path of a frame below the folder of frames.

    Some released files were written on Windows, with a foreign folder in front.
    """
    return "/".join(name.split("\\")[-2:])


def to_rle(segmentation: dict | list | None, height: int, width: int) -> dict | None:
    """Turn one mask, in any of the formats of a YouTube-VIS file, into a compressed RLE.

    Args:
        segmentation: polygons, an RLE with "counts" as list, str or bytes, or ``None``.
        height: of the frame in pixels, used for polygons (an RLE knows its own size).
        width: likewise.

    Returns:
        A COCO RLE whose "counts" are a str, or ``None`` where there is no mask.
    """
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        # A polygon needs three points.
        polygons = [p for p in segmentation if len(p) >= 6 and len(p) % 2 == 0]
        if not polygons:
            return None
        segmentation = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, *segmentation["size"])
    counts = segmentation["counts"]
    if isinstance(counts, str):
        return segmentation
    return {"size": [int(side) for side in segmentation["size"]], "counts": counts.decode("ascii")}


def category_groups(
    categories: Sequence[dict], groups: Mapping[str, tuple[str, tuple]], table: Sequence[dict]
) -> dict[str, list[int]]:
    """Sort the categories of an annotation file into the groups of a data set.

    Args:
        categories: "categories" of the file.
        groups: group -> (field, values of that field which belong to it), of a ``DatasetSpec``.
        table: the category table of the data set, for categories of the same id and name that do
            not have the field in the file.

    Returns:
        group -> ids of its categories.
    """
    known = {(category["id"], category["name"]): category for category in table}
    full = [known.get((c["id"], c["name"]), {}) | c for c in categories]
    return {
        name: [category["id"] for category in full if category.get(key) in values]
        for name, (key, values) in groups.items()
    }


def check_rle(rle: dict | None) -> None:
    """Raise ValueError if a compressed RLE does not cover its frame: comparing it may never end."""
    if rle and (total := run_total(rle["counts"])) != rle["size"][0] * rle["size"][1]:
        height, width = rle["size"]
        raise ValueError(f"an RLE of {total} pixels does not cover a frame of {height} x {width}")


def _by_id(path: Path, kind: str, entries: list[dict], keys: tuple[str, ...]) -> dict[int, dict]:
    """Index entries by their id, after checking that each has the keys and an id of its own."""
    index = {}
    for number, entry in enumerate(entries):
        missing = [key for key in keys if key not in entry]
        if missing:
            raise ValueError(
                f"{path}: {kind} {entry.get('id', f'number {number}')} has no {missing}."
            )
        if entry["id"] in index:
            raise ValueError(f"{path}: {kind} {entry['id']} is listed twice.")
        index[entry["id"]] = entry
    return index


def _renumber_lists(content: dict) -> None:
    """Turn TAO's category ids, which files made from BURST keep in these lists, into the file's."""
    pairs = zip(content["cate_ori"], content["categories"], strict=True)
    own = {original["id"]: category["id"] for original, category in pairs}
    for video in content["videos"]:
        for key in _LISTS:
            if key in video:
                video[key] = [own[number] for number in video[key] if number in own]


def _encode(place: str, annotation: dict, video: dict) -> None:
    """Turn the masks of an annotation into compressed RLEs, in place."""
    masks = annotation["segmentations"]
    if len(masks) != video["length"]:
        raise ValueError(
            f"{place} has {len(masks)} segmentations, but video {video['id']} has "
            f"{video['length']} frames; expected one per frame, null where the object is absent."
        )
    size = video["height"], video["width"]
    try:
        annotation["segmentations"] = [to_rle(mask, *size) for mask in masks]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{place} has a mask that is not valid: {error}.") from error


def _video_record(video: dict, tracks: list[dict], folder: Path, contiguous_ids: dict) -> dict:
    names = list(map(frame_name, video["file_names"]))
    prefix = clip_key(folder)
    annotations = [[] for _ in names]
    for track in tracks:
        for frame, mask in zip(annotations, track["segmentations"], strict=True):
            if mask is not None:
                frame.append(
                    {
                        "id": track["id"],
                        "category_id": contiguous_ids[track["category_id"]],
                        "bbox": coco_mask.toBbox(mask).tolist(),
                        "bbox_mode": BoxMode.XYWH_ABS,
                        "segmentation": mask,
                        "iscrowd": track.get("iscrowd", 0),
                    }
                )
    record = {
        "video_id": video["id"],
        "file_names": [f"{folder}/{name}" for name in names],
        "clip_keys": [f"{prefix}/{name}" for name in names],
        "length": video["length"],
        "height": video["height"],
        "width": video["width"],
        "annotations": annotations,
    }
    return record | {key: video[key] for key in _LISTS if key in video}
