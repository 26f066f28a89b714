"""Reads annotations of videos in the format of YouTube-VIS, which OVIS, LV-VIS and BURST share.

The file is one JSON object with "videos" {id, height, width, length, file_names}, "categories" {id,
name} and "annotations" {id, video_id, category_id, segmentations, ...}; "segmentations" holds one
entry per frame: polygons, an RLE (compressed or not), or null where the object is absent. Files
without labels (validation and test sets that a server scores) have no or null "annotations".
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pycocotools import mask as coco_mask

from ovformer.d2 import BoxMode
from ovformer.data.files.image_embeddings import make_image_key
from ovformer.data.files.json_file import (
    IDS,
    LIST,
    NUMBER,
    SIDE,
    TEXT,
    TEXTS,
    WHOLE,
    Kind,
    index_by_id,
    name_file_in_errors,
    read_json,
    shorten,
)
from ovformer.data.files.untrusted_masks import (
    check_num_pixels,
    check_polygons,
    find_fault,
    polygons_to_rle,
    runs_to_rle,
)

# Groups by the flag that the YouTube-VIS category tables carry.
BASE_AND_NOVEL = {"base": ("novel", (False,)), "novel": ("novel", (True,))}

_VIDEO = {"height": SIDE, "width": SIDE, "file_names": TEXTS}
_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")
_ANNOTATION = {"video_id": WHOLE, "category_id": WHOLE, "segmentations": LIST}
_AREAS = Kind(
    "null or a list of numbers and nulls",
    lambda areas: (
        areas is None
        or (isinstance(areas, list) and all(a is None or NUMBER.fits(a) for a in areas))
    ),
)
# RLEs that are checked in one call.
_BLOCK = 2048

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
        FileNotFoundError: the file does not exist.
        ValueError: the file is not valid JSON, lacks a field, has an id twice, refers to a video or
            a category that it lacks, or holds a mask that is not valid.
    """
    content = read_json(path)
    if not (isinstance(content, dict) and content.get("videos") and content.get("categories")):
        raise ValueError(
            f"{path} is not a video annotation file: expected an object with non-empty "
            '"videos" and "categories". mAP.py takes a results.json with --dt.'
        )
    with name_file_in_errors(path):
        _check(content)
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
        FileNotFoundError: the file does not exist.
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
    # Annotations are per object, dataset dicts per video and frame.
    tracks = defaultdict(list)
    for annotation in content.get("annotations") or []:
        tracks[annotation["video_id"]].append(annotation)
    logger.info("%s: %d videos", path, len(content["videos"]))
    return [
        _make_record(video, tracks[video["id"]], image_folder, contiguous_ids)
        for video in sorted(content["videos"], key=lambda video: video["id"])
    ]


def parse_frame_name(name: str) -> str:
    """Return the path of a frame below the folder of frames.

    Some released files were written on Windows, and start with a folder of that machine.
    """
    return "/".join(name.split("\\")[-2:])


def to_rle(segmentation: dict | list | None, height: int, width: int) -> dict | None:
    """Turn one mask, in any of the formats of a YouTube-VIS file, into a compressed RLE.

    Args:
        segmentation: polygons, an RLE with "counts" as list, str or bytes, or ``None``.
        height: of the frame in pixels, used for polygons (an RLE knows its own size).
        width: of the frame in pixels.

    Returns:
        A COCO RLE whose "counts" are a str, or ``None`` where the mask is absent. An RLE that is
        compressed already is not checked here: see :func:`find_fault`.

    Raises:
        ValueError: the mask has none of these formats.
    """
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        # A polygon of one or two points has no area.
        polygons = [
            p for p in segmentation if not isinstance(p, list) or (len(p) >= 6 and len(p) % 2 == 0)
        ]
        if not polygons:
            return None
        check_polygons(polygons, height, width)
        segmentation = polygons_to_rle(polygons, height, width)
    elif not isinstance(segmentation, dict):
        raise ValueError(f"expected polygons, an RLE or null, got {shorten(segmentation)}")
    elif isinstance(segmentation.get("counts"), list):
        segmentation = runs_to_rle(segmentation.get("size"), segmentation["counts"])
    counts = segmentation.get("counts")
    if not isinstance(counts, bytes):
        return segmentation
    return {"size": [int(side) for side in segmentation["size"]], "counts": counts.decode("ascii")}


def group_categories(
    categories: Sequence[dict], groups: Mapping[str, tuple[str, tuple]], table: Sequence[dict]
) -> dict[str, list[int]]:
    """Sort the categories of an annotation file into the groups of a data set.

    Args:
        categories: "categories" of the file.
        groups: group -> (field, values of that field which belong to it), of a ``DatasetSpec``.
        table: the category table of the data set. Its categories of the same id and name provide
            the fields that the file lacks.

    Returns:
        group -> ids of its categories.
    """
    # By id and name: the same id may mean something else in a file of another version.
    known = {(category["id"], category["name"]): category for category in table}
    full = [known.get((c["id"], c["name"]), {}) | c for c in categories]
    return {
        name: [category["id"] for category in full if category.get(key) in values]
        for name, (key, values) in groups.items()
    }


def _check(content: dict) -> None:
    """Check the parts of a file, and compress its masks in place."""
    videos = index_by_id("video", content["videos"], _VIDEO, dict.fromkeys(_LISTS, IDS))
    categories = index_by_id("category", content["categories"], {"name": TEXT})
    for number, video in videos.items():
        video["length"] = len(video["file_names"])
        if not video["length"]:
            raise ValueError(f"video {number} has no frame: its file_names are empty.")
        check_num_pixels(f"video {number}", video["height"], video["width"])
    # Files that were converted from BURST have TAO's categories in "cate_ori".
    if "cate_ori" in content:
        _renumber_lists(content)
    annotations = content.get("annotations")
    annotations = index_by_id(
        "annotation",
        [] if annotations is None else annotations,
        _ANNOTATION,
        {"iscrowd": WHOLE, "areas": _AREAS},
    )
    for number, annotation in annotations.items():
        place = f"annotation {number}"
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
        _compress_masks(place, annotation, videos[annotation["video_id"]])
    # From here on masks go to pycocotools, which does not check them.
    _check_rles(annotations.values())


def _check_rles(annotations: Iterable[dict]) -> None:
    """Check compressed RLEs in large blocks, which is faster than one by one."""
    places = [
        (annotation["id"], frame, rle)
        for annotation in annotations
        for frame, rle in enumerate(annotation["segmentations"])
        if rle is not None
    ]
    for start in range(0, len(places), _BLOCK):
        if fault := find_fault(rle for _, _, rle in places[start : start + _BLOCK]):
            number, frame, _ = places[start + fault.index]
            raise ValueError(
                f"annotation {number} has a mask that is not valid, in frame {frame}: "
                f"{fault.reason}."
            )


def _renumber_lists(content: dict) -> None:
    """Replace TAO's category ids by the file's own, in the two lists of files made from BURST."""
    # The two lists of categories are in the same order, which is all that joins them.
    originals = list(index_by_id("cate_ori", content["cate_ori"], {}))
    if len(originals) != len(content["categories"]):
        raise ValueError(
            f"cate_ori: expected an entry for each of the {len(content['categories'])} categories, "
            f"got {len(originals)}."
        )
    own = dict(zip(originals, (c["id"] for c in content["categories"]), strict=True))
    for video in content["videos"]:
        for key in _LISTS:
            if key in video:
                video[key] = [own[number] for number in video[key] if number in own]


def _compress_masks(place: str, annotation: dict, video: dict) -> None:
    """Turn the masks of an annotation into compressed RLEs, in place."""
    masks = annotation["segmentations"]
    if len(masks) != video["length"]:
        raise ValueError(
            f"{place} has {len(masks)} segmentations, but video {video['id']} has "
            f"{video['length']} frames; expected one per frame, null where the object is absent."
        )
    rles: list[dict | None] = []
    for frame, mask in enumerate(masks):
        try:
            rles.append(to_rle(mask, video["height"], video["width"]))
        except ValueError as error:
            raise ValueError(
                f"{place} has a mask that is not valid, in frame {frame}: {error}."
            ) from error
    annotation["segmentations"] = rles


def _make_record(video: dict, tracks: list[dict], folder: Path, contiguous_ids: dict) -> dict:
    names = list(map(parse_frame_name, video["file_names"]))
    prefix = make_image_key(folder)
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
