"""Reads videos for inference: samples whose frames come through an iterator.

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

# Frames that are decoded before the model takes them: two of the published windows.
FRAMES_AHEAD = 20

logger = logging.getLogger(__name__)


class VideoReader:
    """Opens videos for inference: frames come through an iterator and are never all in memory.

    Args:
        augmentations: applied to each frame; nothing random.
        image_format: channel order of "image", "RGB" or "BGR".
        clip_image_size: S in pixels.
        embeddings: store of "clip_features"; without it frames have "clip_image".
    """

    @configurable
    def __init__(
        self,
        *,
        augmentations: Sequence[T.Augmentation],
        image_format: str,
        clip_image_size: int,
        embeddings: ImageEmbeddingStore | None,
    ):
        check_image_format(image_format)
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.clip_image_size = clip_image_size
        self.embeddings = embeddings

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Read the arguments from a config."""
        return {
            "augmentations": build_evaluation_augmentations(
                cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
            ),
            "image_format": cfg.INPUT.FORMAT,
            "clip_image_size": cfg.MODEL.CLIP.IMAGE_SIZE,
            "embeddings": open_embeddings(cfg, "CLIP_IMAGE_PATH"),
        }

    def open(self, record: dict, executor: Executor) -> dict:
        """Start to read a video and return its sample.

        Args:
            record: a dataset dict; it is not changed.
            executor: decodes frames, at most :data:`FRAMES_AHEAD` before they are taken.

        Returns:
            The sample that :mod:`ovformer.data` describes. The iterator raises SampleError, which
            names video and frame, when it comes to a frame that can't be loaded.
        """
        sample = {key: value for key, value in record.items() if key != "annotations"}

        # Small beside the frames, so those of the whole video are looked up at once.
        features = None
        if self.embeddings is not None:
            features = sample["clip_features"] = stack_embeddings(self.embeddings, record)

        def read(t: int) -> tuple[tuple[int, int], dict]:
            return self._read(record, t, features)

        decoded = ReadAhead(read, range(record["length"]), executor, FRAMES_AHEAD)
        frames = sample["frames"] = _raise_sample_errors(_check_sizes(record, decoded))
        # The model takes "frames". These two are for callers that read the keys of a training clip;
        # tee stores nothing as long as neither is used.
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
    """Iterates over the results of a function, which runs in the background on the next items.

    Args:
        function: called with each item.
        items: its arguments, in the order of the results.
        executor: runs it.
        ahead: most results that wait to be taken.
    """

    def __init__(
        self, function: Callable[[Any], Any], items: Iterable, executor: Executor, ahead: int
    ):
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
        # The next item starts only now: frames must not fill the memory where the model is slow.
        self._submit(1)
        return result

    def _submit(self, count: int) -> None:
        for item in itertools.islice(self._items, count):
            self._waiting.append(self._executor.submit(self._function, item))


def read_frame(record: dict, t: int) -> np.ndarray:
    """Read frame ``t`` of a video as uint8 (H, W, 3), RGB.

    Raises:
        FileNotFoundError: the file is missing; the message names video and frame.
        ValueError: the file can't be decoded; the message names video and frame.
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
            "annotations and in the video's other frames. Download or extract it again."
        )


def _frame_name(record: dict, t: int) -> str:
    """Return the name of a frame in messages."""
    if "video_id" in record:
        return f"Frame {t} of video {record['video_id']}"
    return f"Image {record.get('image_id')}"  # the only frame of a pseudo-clip


def stack_embeddings(store: ImageEmbeddingStore, record: dict) -> torch.Tensor:
    """Return the stored embeddings of a record's frames: float32 (T, D)."""
    return torch.stack([store.get(key) for key in record["clip_keys"]])


def _check_sizes(record: dict, decoded: Iterable[tuple]) -> Iterator[dict]:
    """Yield the frames, after checking that all are as large as the first."""
    first = None
    for t, (size, frame) in enumerate(decoded):
        # Some released videos are smaller as a whole than their annotations say: that works.
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


def _raise_sample_errors(frames: Iterator[dict]) -> Iterator[dict]:
    """Yield frames; errors of a frame become SampleError, which the evaluation may skip."""
    try:
        yield from frames
    except (FileNotFoundError, ValueError) as error:
        raise SampleError(str(error)) from error
