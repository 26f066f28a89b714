"""What is found in a frame and in a video, and the JSON formats that it is written in.

Legend: T frames, N objects, H W pixels of the original frames.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ovformer.evaluation.tube_iou import tube_areas, tube_iou


@dataclass(frozen=True)
class ObjectInFrame:
    """An object in one frame.

    Attributes:
        track_id: the same for an object in all frames. Where nothing is tracked it is None, or the
            number that :meth:`FramesResult.best` gives.
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

    def by_frame(self) -> "FramesResult":
        """Return the same as what is found in each frame by itself."""
        frames = [self.in_frame(t) for t in range(len(self.times))]
        return FramesResult(self.names, self.size, self.times, frames)

    def listed(self, count: int) -> "VideoResult":
        """Return the first ``count`` objects."""
        return VideoResult(self.names, self.size, self.times, self.objects[:count])


@dataclass(frozen=True)
class FramesResult:
    """What is found in frames that are looked at one by one, such as pictures: nothing is tracked.

    Attributes:
        names: the vocabulary.
        size: H and W.
        times: of the T frames, in seconds.
        frames: the objects of each frame, highest score first.
    """

    names: Sequence[str]
    size: tuple[int, int]
    times: Sequence[float]
    frames: Sequence[Sequence[ObjectInFrame]]

    @cached_property
    def objects(self) -> list[ObjectInFrame]:
        """Those of all frames, highest score first."""
        return sorted(chain.from_iterable(self.frames), key=lambda item: -item.score)

    def best(
        self, score_threshold: float = 0.0, max_objects: int | None = None, max_iou: float = 0.7
    ) -> "FramesResult":
        """Do in each frame what :meth:`VideoResult.best` does, and number what is left."""
        kept = []
        for objects in self.frames:
            sure = [item for item in objects if item.score >= score_threshold]
            kept.append(without_overlaps(sure, max_iou)[:max_objects])
        places = [(t, n) for t, objects in enumerate(kept) for n in range(len(objects))]
        places.sort(key=lambda place: -kept[place[0]][place[1]].score)
        for number, (t, n) in enumerate(places):
            kept[t][n] = replace(kept[t][n], track_id=number)
        return replace(self, frames=kept)

    def in_frame(self, t: int) -> Sequence[ObjectInFrame]:
        """Return the objects that are seen in frame ``t``."""
        return self.frames[t]

    def by_frame(self) -> "FramesResult":
        """Return itself."""
        return self

    def listed(self, count: int) -> VideoResult:
        """Return the best ``count`` objects as those of a video, each of which is seen once."""
        empty = coco_mask.encode(np.zeros(self.size, np.uint8, order="F"))
        seen = [(t, item) for t, objects in enumerate(self.frames) for item in objects]
        seen = sorted(seen, key=lambda pair: -pair[1].score)[:count]
        count = len(self.times)
        tubes = [[item.rle if t == own else empty for t in range(count)] for own, item in seen]
        listed = [
            VideoObject(item.track_id, item.label, item.name, item.score, tube)
            for (_, item), tube in zip(seen, tubes, strict=True)
        ]
        return VideoResult(self.names, self.size, self.times, listed)


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


def evaluation_results(result: VideoResult | FramesResult) -> list[dict[str, Any]]:
    """Return objects as entries of a results.json, as evaluations write it.

    Args:
        result: of a video, whose id is 1; or of frames, each of which is an image, with ids from 1.
    """
    if isinstance(result, VideoResult):
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
            "image_id": number,
            "category_id": item.label + 1,
            "bbox": coco_mask.toBbox(item.rle).tolist(),
            "score": item.score,
            "segmentation": item.rle,
        }
        for number, objects in enumerate(result.frames, start=1)
        for item in objects
    ]


def annotations(result: VideoResult | FramesResult, file_names: Sequence[str]) -> dict[str, Any]:
    """Return objects as an annotation file of YouTube-VIS, or of COCO.

    Args:
        result: with one object for each thing, see :meth:`VideoResult.best`; of frames, COCO's
            format is written, in which each of them is an image.
        file_names: of the T frames.
    """
    height, width = result.size
    size = {"height": height, "width": width}
    if isinstance(result, VideoResult):
        video = {"id": 1, "file_names": list(file_names), "length": len(result.times), **size}
        content = {"videos": [video]}
        found = [{**annotation, **size} for annotation in _video_annotations(result)]
    else:
        names = enumerate(file_names, start=1)
        content = {"images": [{"id": n, "file_name": name, **size} for n, name in names]}
        found = list(_image_annotations(result))
    for number, annotation in enumerate(found, start=1):
        annotation["id"] = number
    return {"categories": categories(result.names), "annotations": found, **content}


def _video_annotations(result: VideoResult) -> Iterator[dict[str, Any]]:
    """Yield the annotations of a video but for their ids."""
    for item, areas in zip(result.objects, result.areas.tolist(), strict=True):
        tube = [rle if area else None for rle, area in zip(item.segmentations, areas, strict=True)]
        yield {
            "video_id": 1,
            "segmentations": tube,
            "bboxes": [rle and coco_mask.toBbox(rle).tolist() for rle in tube],
            "areas": [area or None for area in areas],
            **_common(item),
        }


def _image_annotations(result: FramesResult) -> Iterator[dict[str, Any]]:
    """Yield the annotations of images but for their ids."""
    for number, objects in enumerate(result.frames, start=1):
        for item in objects:
            yield {
                "image_id": number,
                "segmentation": item.rle,
                "bbox": coco_mask.toBbox(item.rle).tolist(),
                "area": int(coco_mask.area(item.rle)),
                **_common(item),
            }


def _common(item: VideoObject | ObjectInFrame) -> dict[str, Any]:
    """Return what annotations of videos and of images have alike."""
    return {"category_id": item.label + 1, "iscrowd": 0, "score": item.score}
