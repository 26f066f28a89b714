"""What is found in a frame and in a video, and the JSON formats that it is written in.

Legend: T frames, N objects, H W pixels of the original frames.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ovformer.evaluation.tube_iou import tube_areas, tube_iou


@dataclass(frozen=True)
class ObjectInFrame:
    """An object in one frame.

    Attributes:
        track_id: the same for an object in all frames; None where nothing is tracked.
        label: its number in the vocabulary.
        name: its name in the vocabulary.
        score: 0 to 1.
        rle: the mask as a compressed COCO RLE of the original frame's size.
        box: left, top, right, bottom in pixels, the latter two exclusive.
    """

    track_id: int | None
    label: int
    name: str
    score: float
    rle: dict[str, Any]
    box: tuple[float, float, float, float]

    @cached_property
    def mask(self) -> np.ndarray:
        """The mask as bool (H, W), decoded when it is first asked for."""
        return coco_mask.decode(self.rle).astype(bool)


@dataclass(frozen=True)
class FrameResult:
    """What is found in one frame.

    Attributes:
        number: of the frame in its video, counted from 0.
        time: of the frame, in seconds.
        size: H and W.
        objects: highest score first.
    """

    number: int
    time: float
    size: tuple[int, int]
    objects: list[ObjectInFrame]


@dataclass(frozen=True)
class VideoObject:
    """An object in a whole video.

    Attributes:
        track_id: its number among the objects of the video, by score.
        label: its number in the vocabulary.
        name: its name in the vocabulary.
        score: 0 to 1.
        segmentations: T compressed COCO RLEs, empty where the object is not seen.
    """

    track_id: int
    label: int
    name: str
    score: float
    segmentations: list[dict[str, Any]]


@dataclass(frozen=True)
class VideoResult:
    """What is found in a video.

    Attributes:
        names: the vocabulary.
        size: H and W.
        times: of the T frames, in seconds.
        objects: highest score first.
    """

    names: Sequence[str]
    size: tuple[int, int]
    times: Sequence[float]
    objects: list[VideoObject] = field(default_factory=list)

    @cached_property
    def areas(self) -> np.ndarray:
        """Pixels of each object in each frame, (N, T)."""
        return tube_areas([item.segmentations for item in self.objects], len(self.times))

    def best(
        self, score_threshold: float = 0.0, max_objects: int | None = None, max_iou: float = 0.7
    ) -> "VideoResult":
        """Return the objects that are worth showing: one name for each thing.

        Args:
            score_threshold: least score.
            max_objects: how many, at most; None for all.
            max_iou: an object that overlaps a better one by more than this is left out: mostly it
                is the same thing with another name.
        """
        kept: list[int] = []
        for number, item in enumerate(self.objects):
            if item.score < score_threshold or len(kept) == max_objects:
                break
            if self.areas[number].any() and not self._is_covered(number, kept, max_iou):
                kept.append(number)
        objects = [replace(self.objects[n], track_id=row) for row, n in enumerate(kept)]
        return VideoResult(self.names, self.size, self.times, objects)

    def _is_covered(self, number: int, others: Sequence[int], max_iou: float) -> bool:
        """Tell whether an object overlaps one of some others by more than ``max_iou``."""
        seen = self.areas[number] > 0
        others = [other for other in others if self.areas[other, seen].any()]
        if not others:
            return False
        tubes = [self.objects[other].segmentations for other in others]
        own = [self.objects[number].segmentations]
        overlaps = tube_iou(own, tubes, self.areas[[number]], self.areas[others])
        return bool(overlaps.max() > max_iou)

    def in_frame(self, t: int) -> list[ObjectInFrame]:
        """Return the objects that are seen in frame ``t``."""
        return [
            object_in_frame(item.track_id, item.label, item.name, item.score, rle)
            for item, areas in zip(self.objects, self.areas, strict=True)
            if areas[t] and (rle := item.segmentations[t])
        ]


def object_in_frame(
    track_id: int | None, label: int, name: str, score: float, rle: dict[str, Any]
) -> ObjectInFrame:
    """Return an object, with the box around its mask."""
    left, top, width, height = map(float, coco_mask.toBbox(rle))
    return ObjectInFrame(track_id, label, name, score, rle, (left, top, left + width, top + height))


def without_overlaps(objects: Iterable[ObjectInFrame], max_iou: float) -> list[ObjectInFrame]:
    """Leave out objects that overlap a better one by more than ``max_iou``, best first."""
    kept: list[ObjectInFrame] = []
    for item in objects:
        others = [other.rle for other in kept]
        if not others or coco_mask.iou([item.rle], others, [0] * len(others)).max() <= max_iou:
            kept.append(item)
    return kept


def categories(names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a vocabulary as categories, whose ids count from 1."""
    return [{"id": number, "name": name} for number, name in enumerate(names, start=1)]


def evaluation_results(result: VideoResult, per_frame: bool) -> list[dict[str, Any]]:
    """Return objects as entries of a results.json, as evaluations write it.

    Args:
        result: of a video, whose id is 1.
        per_frame: write the entries of images instead: each frame is one, with ids from 1.
    """
    if not per_frame:
        return [
            {
                "video_id": 1,
                "score": item.score,
                "category_id": item.label + 1,
                "segmentations": item.segmentations,
            }
            for item in result.objects
        ]
    return [
        {
            "image_id": t + 1,
            "category_id": item.label + 1,
            "bbox": coco_mask.toBbox(item.segmentations[t]).tolist(),
            "score": item.score,
            "segmentation": item.segmentations[t],
        }
        for item, areas in zip(result.objects, result.areas, strict=True)
        for t in np.flatnonzero(areas).tolist()
    ]


def annotations(result: VideoResult, file_names: Sequence[str], per_frame: bool) -> dict[str, Any]:
    """Return objects as an annotation file of YouTube-VIS, or of COCO.

    Args:
        result: with one object for each thing, see :meth:`VideoResult.best`.
        file_names: of the T frames.
        per_frame: write COCO's format, in which each frame is an image.
    """
    height, width = result.size
    size = {"height": height, "width": width}
    found: list[dict[str, Any]] = []
    content = {"categories": categories(result.names), "annotations": found}
    for item, areas in zip(result.objects, result.areas.tolist(), strict=True):
        tube = [rle if area else None for rle, area in zip(item.segmentations, areas, strict=True)]
        boxes = [rle and coco_mask.toBbox(rle).tolist() for rle in tube]
        common = {"category_id": item.label + 1, "iscrowd": 0, "score": item.score}
        if per_frame:
            found += [
                {"image_id": t + 1, "segmentation": rle, "bbox": box, "area": area, **common}
                for t, (rle, box, area) in enumerate(zip(tube, boxes, areas, strict=True))
                if rle
            ]
        else:
            areas_or_none = [area or None for area in areas]
            own = {"segmentations": tube, "bboxes": boxes, "areas": areas_or_none}
            found.append({"video_id": 1, **own, **size, **common})
    for number, annotation in enumerate(found, start=1):
        annotation["id"] = number
    if per_frame:
        names = enumerate(file_names, start=1)
        return {"images": [{"id": n, "file_name": name, **size} for n, name in names], **content}
    video = {"id": 1, "file_names": list(file_names), "length": len(result.times), **size}
    return {"videos": [video], **content}
