"""Objects of a frame and of a video, and how they become JSON (YouTube-VIS, COCO, results).

Legend: T frames, N objects, H W pixels of the original frames.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ovformer.evaluation.duplicates import MAX_IOU, StreamIdentities, merge_duplicates
from ovformer.evaluation.tube_iou import tube_areas


@dataclass(frozen=True)
class ObjectInFrame:
    """An object in one frame.

    Attributes:
        track_id: the same for an object in all frames. Where nothing is tracked it is None, or the
            number that :meth:`FramesResult.best` gives.
        label: index in the vocabulary.
        name: name in the vocabulary.
        score: 0 to 1.
        rle: the mask as a compressed COCO RLE of the original frame's size.
        box: left, top, right, bottom in pixels; right and bottom are exclusive.
    """

    track_id: int | None
    label: int
    name: str
    score: float
    rle: dict[str, Any]
    box: tuple[float, float, float, float]

    @cached_property
    def mask(self) -> np.ndarray:
        """The mask as bool (H, W), decoded at the first access."""
        return coco_mask.decode(self.rle).astype(bool)


@dataclass(frozen=True)
class FrameResult:
    """The objects of one frame.

    Attributes:
        number: index of the frame in its video, from 0.
        time: of the frame, in seconds.
        size: H and W.
        objects: highest score first.
        num_asleep: objects of earlier frames that are not in this one and would get their number
            back.
    """

    number: int
    time: float
    size: tuple[int, int]
    objects: list[ObjectInFrame]
    num_asleep: int = 0


@dataclass(frozen=True)
class VideoObject:
    """An object in a whole video.

    Attributes:
        track_id: of the track. One that was found under several names is several objects with the
            same number; :meth:`VideoResult.best` numbers what remains from 0, by score.
        label: index in the vocabulary.
        name: name in the vocabulary.
        score: 0 to 1.
        segmentations: T compressed COCO RLEs, with no pixel where the object is not visible.
    """

    track_id: int
    label: int
    name: str
    score: float
    segmentations: list[dict[str, Any]]


@dataclass(frozen=True)
class VideoResult:
    """The objects of a video.

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
        self, score_threshold: float = 0.0, max_objects: int | None = None, max_iou: float = MAX_IOU
    ) -> "VideoResult":
        """Return the objects to show: each thing once, however many names and tracks it has.

        Objects whose masks coincide in most of their common frames are one thing. It gets the name
        and score of the best of them, and its masks in the frames where that one has none. So a
        thing keeps its number while any of its tracks sees it.

        Args:
            score_threshold: least score.
            max_objects: most objects; None for all.
            max_iou: two masks coincide if their IoU exceeds this.
        """
        # Objects are sorted by score, so those below the threshold are the last.
        shown = [item for item in self.objects if item.score >= score_threshold]
        tubes = [item.segmentations for item in shown]
        merged = merge_duplicates(tubes, len(self.times), max_iou, max_objects)
        empty = _encode_empty(self.size)
        objects = [
            replace(shown[n], track_id=row, segmentations=[mask or empty for mask in tube])
            for row, (n, tube) in enumerate(merged)
        ]
        return VideoResult(self.names, self.size, self.times, objects)

    def in_frame(self, t: int) -> list[ObjectInFrame]:
        """Return the objects that are visible in frame ``t``."""
        return [
            make_object_in_frame(item.track_id, item.label, item.name, item.score, rle)
            for item, areas in zip(self.objects, self.areas, strict=True)
            if areas[t] and (rle := item.segmentations[t])
        ]

    def by_frame(self) -> "FramesResult":
        """Return the same objects frame by frame, as if each frame were an image."""
        frames = [self.in_frame(t) for t in range(len(self.times))]
        return FramesResult(self.names, self.size, self.times, frames)

    def take_first(self, count: int) -> "VideoResult":
        """Return the first ``count`` objects."""
        return VideoResult(self.names, self.size, self.times, self.objects[:count])


@dataclass(frozen=True)
class FramesResult:
    """The objects of frames that are predicted one by one, such as images: nothing is tracked.

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
        """The objects of all frames, highest score first."""
        return sorted(chain.from_iterable(self.frames), key=lambda item: -item.score)

    def best(
        self, score_threshold: float = 0.0, max_objects: int | None = None, max_iou: float = 0.7
    ) -> "FramesResult":
        """Keep one object for each thing in each frame, and number the objects by score."""
        kept = []
        for objects in self.frames:
            sure = [item for item in objects if item.score >= score_threshold]
            kept.append(drop_overlaps(sure, max_iou)[:max_objects])
        # Numbered over all frames, by score, so that each object has a colour and a thumbnail.
        places = [(t, n) for t, objects in enumerate(kept) for n in range(len(objects))]
        places.sort(key=lambda place: -kept[place[0]][place[1]].score)
        for number, (t, n) in enumerate(places):
            kept[t][n] = replace(kept[t][n], track_id=number)
        return replace(self, frames=kept)

    def in_frame(self, t: int) -> Sequence[ObjectInFrame]:
        """Return the objects that are visible in frame ``t``."""
        return self.frames[t]

    def by_frame(self) -> "FramesResult":
        """Return itself."""
        return self

    def take_first(self, count: int) -> VideoResult:
        """Return the best ``count`` objects as a video's, each visible in one frame."""
        empty = _encode_empty(self.size)
        # A tube of its own for each object takes memory: only the first ``count`` get one.
        found = [(t, item) for t, objects in enumerate(self.frames) for item in objects]
        found.sort(key=lambda pair: -pair[1].score)
        listed = []
        for t, item in found[:count]:
            tube = [empty] * len(self.times)
            tube[t] = item.rle
            listed.append(VideoObject(item.track_id, item.label, item.name, item.score, tube))
        return VideoResult(self.names, self.size, self.times, listed)


def make_object_in_frame(
    track_id: int | None, label: int, name: str, score: float, rle: dict[str, Any]
) -> ObjectInFrame:
    """Return an object of a frame, with the box around its mask."""
    left, top, width, height = map(float, coco_mask.toBbox(rle))
    return ObjectInFrame(track_id, label, name, score, rle, (left, top, left + width, top + height))


def merge_objects(
    objects: Iterable[ObjectInFrame], identities: StreamIdentities, score_threshold: float
) -> list[ObjectInFrame]:
    """Return the tracked objects of the next frame of a stream, each thing once.

    Args:
        objects: of the frame, highest score first.
        identities: knows the frames before, and numbers the objects.
        score_threshold: least score of an object in the result. Others tell who is who.
    """
    objects = list(objects)
    rles = [item.rle for item in objects]
    ious = np.reshape(coco_mask.iou(rles, rles, [0] * len(rles)), (len(rles), len(rles)))
    tracks, scores = [item.track_id for item in objects], [item.score for item in objects]
    shown = identities.update(tracks, scores, ious, score_threshold)
    return [replace(objects[index], track_id=number) for index, number in shown]


def drop_overlaps(objects: Iterable[ObjectInFrame], max_iou: float) -> list[ObjectInFrame]:
    """Return the objects without those whose IoU with a better one exceeds ``max_iou``.

    Args:
        objects: of one frame, highest score first.
        max_iou: largest mask IoU of two objects that are kept.
    """
    kept: list[ObjectInFrame] = []
    for item in objects:
        others = [other.rle for other in kept]
        if not others or coco_mask.iou([item.rle], others, [0] * len(others)).max() <= max_iou:
            kept.append(item)
    return kept


def _encode_empty(size: tuple[int, int]) -> dict[str, Any]:
    """Return the RLE of a mask (H, W) without a pixel."""
    return coco_mask.encode(np.zeros(size, np.uint8, order="F"))


def to_categories(names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a vocabulary as categories of an annotation file, with ids from 1."""
    return [{"id": number, "name": name} for number, name in enumerate(names, start=1)]


def to_evaluation_results(result: VideoResult | FramesResult) -> list[dict[str, Any]]:
    """Return objects as the entries of a results.json, in the format of evaluations.

    Args:
        result: of a video, which gets the id 1; or of frames, which become images with ids from 1.
    """
    if isinstance(result, VideoResult):
        return [
            {
                "video_id": 1,
                "score": item.score,
                "category_id": item.label + 1,
                "segmentations": item.segmentations,
                "track_id": item.track_id,
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


def to_annotations(result: VideoResult | FramesResult, file_names: Sequence[str]) -> dict[str, Any]:
    """Return objects as an annotation file of YouTube-VIS, or of COCO.

    Args:
        result: with one object for each thing, see :meth:`VideoResult.best`. A video's becomes
            YouTube-VIS, that of frames COCO, with an image for each frame.
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
    return {"categories": to_categories(result.names), "annotations": found, **content}


def _video_annotations(result: VideoResult) -> Iterator[dict[str, Any]]:
    """Yield the annotations of a video, without ids."""
    for item, areas in zip(result.objects, result.areas.tolist(), strict=True):
        tube = [rle if area else None for rle, area in zip(item.segmentations, areas, strict=True)]
        yield {
            "video_id": 1,
            "segmentations": tube,
            "bboxes": [rle and coco_mask.toBbox(rle).tolist() for rle in tube],
            "areas": [area or None for area in areas],
            **_shared_fields(item),
        }


def _image_annotations(result: FramesResult) -> Iterator[dict[str, Any]]:
    """Yield the annotations of images, without ids."""
    for number, objects in enumerate(result.frames, start=1):
        for item in objects:
            yield {
                "image_id": number,
                "segmentation": item.rle,
                "bbox": coco_mask.toBbox(item.rle).tolist(),
                "area": int(coco_mask.area(item.rle)),
                **_shared_fields(item),
            }


def _shared_fields(item: VideoObject | ObjectInFrame) -> dict[str, Any]:
    """Return the fields that annotations of videos and of images share."""
    return {"category_id": item.label + 1, "iscrowd": 0, "score": item.score}
