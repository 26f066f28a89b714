"""How both video models see a video: a few frames at a time, whose queries are assigned to tracks.

Legend: T frames, Q queries, N predictions, D CLIP width, S side of CLIP's image, H W pixels.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import torch

from ovformer.modeling.meta_arch.base_model import OVFormerBase
from ovformer.modeling.tracks.mask_store import MaskSizes, encode_tubes
from ovformer.modeling.tracks.tracking import QueryTracker, TrackSelection, TrackStore

AUTOMATIC_WINDOW = 10  # frames, as in the published code


class VideoInference(OVFormerBase):
    """A model that predicts videos of any length; subclasses define what happens in a window.

    Args:
        window_size: frames that go through the network together; 0 is one on a CPU, whose
            caches hold no more, and :data:`AUTOMATIC_WINDOW` elsewhere.
        window_overlap: number of the last frames that are in the next window as well.
        memory_momentum: weight of the current queries in the memory of a track.
        **parts: see :class:`.OVFormerBase`.
    """

    def __init__(
        self,
        *,
        window_size: int,
        window_overlap: int = 0,
        memory_momentum: float = 1.0,
        **parts: Any,
    ) -> None:
        super().__init__(**parts)
        self.window_size = window_size
        self.window_overlap = window_overlap
        self.memory_momentum = memory_momentum

    def _create_tracks(self) -> TrackStore:
        """Return an empty store for the tracks of a video."""
        raise NotImplementedError

    def follow(
        self, window: Sequence[Mapping[str, Any]], tracker: QueryTracker, tracks: TrackStore
    ) -> tuple[int, int]:
        """Run the network on the next frames and assign its queries to tracks.

        Args:
            window: records of the frames.
            tracker: assigns the queries.
            tracks: the predictions of the assigned queries are appended to it.

        Returns:
            Height and width of the padded frames.
        """
        raise NotImplementedError

    def _select_tracks(self, tracks: TrackStore) -> TrackSelection:
        """Choose the predictions of a video."""
        raise NotImplementedError

    def predict_videos(self, records: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Find and follow the objects of videos, one video after the other.

        Frames are taken from a record one window at a time and then dropped.
        :class:`.TrackStore` holds what the end of a video needs of all its frames. The masks of a
        video are encoded in the background, while the network sees the next video.

        Args:
            records: of videos.

        Yields:
            The prediction dict of each video. A video without frames has no predictions.

        Raises:
            ValueError: the frames of a video differ in size, or their number is not that of the
                record. The predictions of all videos before it were yielded.
        """
        # One thread, so at most one finished video waits in memory besides the one being tracked.
        with ThreadPoolExecutor(1, "masks") as background:
            pending = None
            try:
                for record in records:
                    tracks, sizes = self._track(record)
                    if pending is not None:
                        # Cleared first: if the caller stops at this yield, ``finally`` must not
                        # yield the same video again.
                        done, pending = pending, None
                        yield done.result()
                    video_id = record.get("video_id")
                    pending = background.submit(self._build_prediction, video_id, tracks, sizes)
            finally:  # an error in the next video must not lose the predictions of this one
                if pending is not None:
                    yield pending.result()

    @torch.no_grad()
    def _track(self, record: Mapping[str, Any]) -> tuple[TrackStore, MaskSizes]:
        """Run the network over a video and assign its queries to tracks.

        Args:
            record: of the video.

        Returns:
            The tracks, and the sizes of the frames.
        """
        tracker = QueryTracker(self.memory_momentum)
        tracks = self._create_tracks()
        image_size = padded_size = (0, 0)
        frames = iterate_frames(record)
        size = self.window_size or (1 if self.device.type == "cpu" else AUTOMATIC_WINDOW)
        for first, window in split_into_windows(frames, size, self.window_overlap):
            if first == 0:
                image_size = tuple(window[0]["image"].shape[-2:])
            _check_sizes(record, window, image_size, first)
            padded_size = self.follow(window, tracker, tracks)
        # Only now is the number of frames known: they may come from an iterator.
        _check_length(record, tracks.num_frames)
        output_size = (record.get("height", image_size[0]), record.get("width", image_size[1]))
        return tracks, MaskSizes(padded_size, image_size, output_size)

    @torch.no_grad()
    def _build_prediction(
        self, video_id: int | None, tracks: TrackStore, sizes: MaskSizes
    ) -> dict[str, Any]:
        """Choose the best tracks of a video and encode their masks.

        Returns:
            The prediction dict.
        """
        scores, labels, numbers, tubes = [], [], [], []
        with tracks:  # deletes their temporary file at the end
            # A video without frames has no logits to choose from.
            if tracks.num_frames:
                best = self._select_tracks(tracks)
                scores, labels = best.scores.tolist(), best.classes.tolist()
                numbers = best.queries.tolist()
                visible = best.visible.cpu().numpy()
                tubes = encode_tubes(tracks.masks, numbers, visible, sizes, self.device)
        return {
            "video_id": video_id,
            "image_size": sizes.output,
            "pred_scores": scores,
            "pred_labels": labels,
            "pred_tracks": numbers,
            "segmentations": tubes,
        }


def split_into_windows(
    frames: Iterator[Any], size: int, overlap: int
) -> Iterator[tuple[int, list]]:
    """Yield the windows of a video.

    Args:
        frames: of the video; they are taken as they are needed.
        size: frames of a window. The last may have fewer.
        overlap: number of the last frames of a window that are in the next one as well.

    Yields:
        The number of a window's first frame, and its frames. At least one of them is in no earlier
        window.
    """
    first, window = 0, []
    # Frames that the next window shares are kept, never read twice: the iterator is read once.
    while new := list(islice(frames, size - len(window))):
        window += new
        yield first, window
        first += max(len(window) - overlap, 0)
        window = window[-overlap:] if overlap else []


def iterate_frames(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the frames of a video as records of images.

    Args:
        record: ``frames``, an iterator of records of images; or else ``image``, T frames in a list
            or from an iterator, and where they exist ``clip_features`` (T, D) or else
            ``clip_image``, T images uint8 (3, S, S) in a list or from an iterator that is advanced
            together with ``image``, and the lists ``file_names`` and ``instances``.

    Raises:
        ValueError: these have different numbers of frames.
    """
    shared = {key: record[key] for key in ("instance_counts", "least_size") if key in record}
    if "frames" in record:
        for frame in record["frames"]:
            yield {**frame, **shared}
        return
    fields = {"image": record["image"]}
    if record.get("clip_features") is not None:
        # A frame has one CLIP token, as an image has: (T, D) -> T of (1, D).
        fields["clip_features"] = record["clip_features"][:, None]
    elif "clip_image" in record:
        fields["clip_image"] = record["clip_image"]
    if "instances" in record:
        fields["instances"] = record["instances"]
    if "file_names" in record:
        fields["file_name"] = record["file_names"]
    # Lists are compared at once, before the network sees a frame; zip(strict=True) below compares
    # iterators when they end.
    lengths = {key: len(values) for key, values in fields.items() if hasattr(values, "__len__")}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"video {record.get('video_id')!r}: expected one number of frames, got {lengths}"
        )
    for values in zip(*fields.values(), strict=True):
        yield {**dict(zip(fields, values, strict=True)), **shared}


def _check_length(record: Mapping[str, Any], num_frames: int) -> None:
    """Raise ValueError when the number of frames of a video is not that of its record."""
    if record.get("length", num_frames) != num_frames:
        raise ValueError(
            f"video {record.get('video_id')!r}: its record says {record['length']} frames, but "
            f"{num_frames} were read"
        )


def _check_sizes(
    record: Mapping[str, Any],
    window: Sequence[Mapping[str, Any]],
    size: tuple[int, int],
    first: int,
) -> None:
    """Raise ValueError when a frame has another size than the first frame of its video."""
    for number, frame in enumerate(window, start=first):
        got = tuple(frame["image"].shape[-2:])
        if got != size:
            name = f" ({frame['file_name']})" if "file_name" in frame else ""
            raise ValueError(
                f"video {record.get('video_id')!r}: frame {number}{name} is {got[0]} x {got[1]} "
                f"(height x width) for the network, but frame 0 is {size[0]} x {size[1]}. The "
                "frames of a video have to be of one size: bring them to that of its first frame"
            )
