"""Reads videos for inference: an element of the batch whose frames come through an iterator.

Legend: T frames, D CLIP width, H W pixels, S side of the image that CLIP takes.
"""

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
import torch

from ovformer.d2 import CfgNode, configurable
from ovformer.d2 import transforms as T
from ovformer.data.files.image_embeddings import ImageEmbeddingStore, crop_for_embedding
from ovformer.data.samples.augmentation import build_evaluation_augmentations
from ovformer.data.samples.broken_samples import SampleError
from ovformer.data.samples.image_mapper import (
    check_image_format,
    open_embeddings,
    read_rgb,
    to_tensor,
)

# How many frames of a video are decoded before they are asked for: two published windows.
FRAMES_AHEAD = 20

logger = logging.getLogger(__name__)


class VideoReader:
    """Opens videos for inference: frames come through an iterator and are never all in memory."""

    @configurable
    def __init__(
        self,
        *,
        augmentations: Sequence[T.Augmentation],
        image_format: str,
        clip_image_size: int,
        clip_features: ImageEmbeddingStore | None,
    ):
        """Take plain values; see ``from_config`` for the config.

        Args:
            augmentations: what is done to each frame; nothing random.
            image_format: channel order of "image", "RGB" or "BGR".
            clip_image_size: S in pixels.
            clip_features: where "clip_features" come from; without it there is "clip_image".
        """
        check_image_format(image_format)
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.clip_image_size = clip_image_size
        self.clip_features = clip_features

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Read the arguments from a config."""
        return {
            "augmentations": build_evaluation_augmentations(
                cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
            ),
            "image_format": cfg.INPUT.FORMAT,
            "clip_image_size": cfg.MODEL.CLIP.IMAGE_SIZE,
            "clip_features": open_embeddings(cfg, "CLIP_IMAGE_PATH"),
        }

    def open(self, record: dict, executor: Executor) -> dict:
        """Start to read a video and return its element of the batch.

        Args:
            record: a dataset dict; it is not changed.
            executor: decodes frames. No more than :data:`FRAMES_AHEAD` wait to be taken.

        Returns:
            The record that :mod:`ovformer.data` describes. A frame that can't be loaded raises
            SampleError, which names video and frame, where it is taken from the iterator.
        """
        sample = {key: value for key, value in record.items() if key != "annotations"}

        features = None
        if self.clip_features is not None:
            features = sample["clip_features"] = stack_embeddings(self.clip_features, record)

        def read(t: int) -> tuple[tuple[int, int], dict]:
            return self._read(record, t, features)

        decoded = ReadAhead(read, range(record["length"]), executor, FRAMES_AHEAD)
        frames = sample["frames"] = _with_sample_errors(_of_one_size(record, decoded))
        # The model takes "frames". The two keys of before keep nothing while nobody reads them.
        images, views = itertools.tee(frames)
        sample["image"] = (frame["image"] for frame in images)
        if features is None:
            sample["clip_image"] = (frame["clip_image"] for frame in views)
        return sample

    def _read(
        self, record: dict, t: int, features: torch.Tensor | None
    ) -> tuple[tuple[int, int], dict]:
        """Return the size of a frame in its file, and the frame as the record of an image."""
        pixels = read_frame(record, t)
        frame = {"file_name": record["file_names"][t]}
        if features is None:
            frame["clip_image"] = crop_for_embedding(pixels, self.clip_image_size)
        else:
            frame["clip_features"] = features[t, None]
        augmented = T.AugInput(pixels)
        self.augmentations(augmented)
        frame["image"] = to_tensor(augmented.image, self.image_format)
        return pixels.shape[:2], frame


class ReadAhead(Iterator):
    """Calls a function on items in the background, in order, a bounded number ahead."""

    def __init__(
        self, function: Callable[[Any], Any], items: Iterable, executor: Executor, ahead: int
    ):
        """Start.

        Args:
            function: called with each item.
            items: its arguments.
            executor: runs it.
            ahead: how many results may wait to be taken.
        """
        self._function = function
        self._items = iter(items)
        self._executor = executor
        self._waiting: deque = deque()
        self._submit(ahead)

    def __next__(self) -> Any:
        """Return the next result, or raise what the function raised."""
        if not self._waiting:
            raise StopIteration
        result = self._waiting.popleft().result()
        self._submit(1)
        return result

    def _submit(self, count: int) -> None:
        for item in itertools.islice(self._items, count):
            self._waiting.append(self._executor.submit(self._function, item))


def read_frame(record: dict, t: int) -> np.ndarray:
    """Return frame ``t`` of a video as uint8 (H, W, 3), RGB.

    Raises:
        FileNotFoundError: the file is missing; the message names video and frame.
        ValueError: it can't be decoded; likewise.
    """
    try:
        return read_rgb(record["file_names"][t])
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{_frame_name(record, t)}: {error}") from error


def check_frame_size(
    record: dict, t: int, found: tuple[int, int], expected: tuple[int, int]
) -> None:
    """Raise ValueError if frame ``t`` of a video is not ``expected`` (height, width) pixels."""
    if tuple(found) != tuple(expected):
        raise ValueError(
            f"{_frame_name(record, t)} ({record['file_names'][t]}) has {found[0]} x {found[1]} "
            f"pixels (height x width), expected {expected[0]} x {expected[1]} as in the "
            "annotations and, of a video, in all its frames. Download or extract it again."
        )


def _frame_name(record: dict, t: int) -> str:
    """Return how messages call a frame; a record without "video_id" is of an image."""
    if "video_id" in record:
        return f"Frame {t} of video {record['video_id']}"
    return f"Image {record.get('image_id')}"


def stack_embeddings(store: ImageEmbeddingStore, record: dict) -> torch.Tensor:
    """Return CLIP's features of the frames of a record: float32 (T, D)."""
    return torch.stack([store.get(key) for key in record["clip_keys"]])


def _of_one_size(record: dict, decoded: Iterable[tuple]) -> Iterator[dict]:
    """Yield the frames, after checking that all are as large as the first."""
    first = None
    for t, (size, frame) in enumerate(decoded):
        if first is None and size != (record["height"], record["width"]):
            logger.warning(
                "Video %s: frames of %d x %d pixels, but %d x %d in the annotations. Predictions "
                "get the size of the annotations.",
                record["video_id"],
                *size,
                record["height"],
                record["width"],
            )
        first = first or size
        check_frame_size(record, t, size, first)
        yield frame


def _with_sample_errors(frames: Iterator[dict]) -> Iterator[dict]:
    try:
        yield from frames
    except (FileNotFoundError, ValueError) as error:
        raise SampleError(str(error)) from error
