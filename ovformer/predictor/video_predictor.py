"""Finds, tracks and names the objects of videos, images and live streams.

Legend: T frames, K classes, D CLIP width, H W pixels.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from ovformer.d2 import CfgNode
from ovformer.d2 import transforms as T
from ovformer.data.catalog.vocabulary import clean_name, parse_vocabulary
from ovformer.data.files.image_embeddings import crop_for_embedding
from ovformer.data.files.video_files import Frame, iterate_frames
from ovformer.data.samples.image_mapper import to_tensor
from ovformer.evaluation.duplicates import MAX_IOU, StreamIdentities
from ovformer.modeling.language.name_embedder import NameEmbedder
from ovformer.modeling.meta_arch.frame_model import OVFormerVideo
from ovformer.modeling.tracks.running_tracks import FrameTracks, RunningTracks
from ovformer.modeling.tracks.tracking import QueryTracker
from ovformer.ops.mask_resize import restore_masks
from ovformer.ops.mask_rle import encode_masks
from ovformer.predictor.predictions import (
    FrameResult,
    FramesResult,
    ObjectInFrame,
    VideoObject,
    VideoResult,
    drop_overlaps,
    make_object_in_frame,
    merge_objects,
)
from ovformer.predictor.pretrained import load_pretrained

# The vocabulary that stands for the names and embeddings inside the weights.
FROM_CHECKPOINT = "checkpoint"
DEFAULT_TEMPLATES = ("simple",)

# Tracks of a stream with at least this part of the score of an object that is shown are not shown,
# but tell which object is which.
WITNESS_RATIO = 0.4


class VideoPredictor:
    """A model with a vocabulary that can be changed at any time.

        predictor = VideoPredictor.from_checkpoint(None, "model.pth", vocabulary="dog, red ball")
        for item in predictor.predict("my.mp4").best(score_threshold=0.3).objects:
            print(item.name, item.score)

    Args:
        model: OVFormer, OVFormerVideo or VideoOVFormer, in evaluation mode.
        embedder: embeds names that are not among ``known``.
        vocabulary: see :meth:`set_vocabulary`.
        min_size: the short edge of frames is resized to this many pixels; 0 for no resizing.
        max_size: the long edge gets at most this many pixels.
        image_format: channel order of the model's input, "RGB" or "BGR".
        clip_image_size: side in pixels of the images that CLIP gets.
        known: names and embeddings (K, D) that the vocabulary "checkpoint" stands for.

    Attributes:
        model: the model, which stays the same.
        names: the K class names of the present vocabulary.
    """

    def __init__(
        self,
        model: nn.Module,
        embedder: NameEmbedder,
        vocabulary: str | PathLike | Iterable[str | PathLike],
        *,
        min_size: int,
        max_size: int,
        image_format: str = "RGB",
        clip_image_size: int = 224,
        known: tuple[Sequence[str], Tensor] | None = None,
    ) -> None:
        self.model = model
        self._embedder = embedder
        self._edges = min_size, max_size
        self._image_format = image_format
        self._clip_image_size = clip_image_size
        self._known = {}
        if known is not None:
            self._known = dict(zip(map(clean_name, known[0]), known[1], strict=True))
        # Frames and names have to be embedded by the same CLIP model.
        model.image_embedder.encoder_factory = embedder.load_encoder
        self.names: list[str] = []
        self.set_vocabulary(vocabulary)

    @classmethod
    def from_checkpoint(
        cls,
        config: str | PathLike | CfgNode | None,
        weights: str | PathLike,
        vocabulary: str | PathLike | Iterable[str | PathLike] | None = None,
        *,
        device: str | None = None,
        architecture: str | None = None,
        templates: Sequence[str] | None = None,
        clip: tuple[str, str] | None = None,
        opts: Sequence[str] = (),
    ) -> "VideoPredictor":
        """Load a model and the CLIP model that embeds names and frames.

        Args:
            config: a YAML file or a config; None for the one inside or beside the weights.
            weights: a checkpoint of a training, of any stage.
            vocabulary: see :meth:`set_vocabulary`; None for that of the weights.
            device: for example "cpu"; None for a GPU where there is one.
            architecture: "image" (each frame by itself), "video" (frame by frame, tracked) or
                "clip"; None for that of the config, with "video" in place of "image".
            templates: prompts in which "{}" stands for a name, or "simple" (7) or "imagenet" (80);
                None for those of the training, or "simple" where they are not known.
            clip: name and weights of the CLIP model, as MODEL.CLIP.NAME and MODEL.CLIP.PRETRAINED;
                None for those of the config.
            opts: alternating keys and values that replace those of the config.

        Raises:
            FileNotFoundError: there are no weights, or no config.
            ValueError: weights, config, vocabulary and CLIP model don't fit each other.
        """
        loaded = load_pretrained(
            config, weights, device=device, architecture=architecture, opts=opts
        )
        node = loaded.cfg.MODEL.CLIP
        # Embeddings inside the weights serve twice: as the vocabulary "checkpoint", and to check
        # that the CLIP model is that of the training.
        known = None
        if loaded.names is not None and loaded.embeddings is not None:
            known = (loaded.names, loaded.embeddings)
        embedder = NameEmbedder(
            clip or (node.NAME, node.PRETRAINED),
            loaded.model.device,
            templates or loaded.templates or DEFAULT_TEMPLATES,
            trained_with=loaded.clip,
            reference=known,
            reference_templates=loaded.templates if loaded.clip else (),
        )
        return cls(
            loaded.model,
            embedder,
            FROM_CHECKPOINT if vocabulary is None else vocabulary,
            min_size=loaded.cfg.INPUT.MIN_SIZE_TEST,
            max_size=loaded.cfg.INPUT.MAX_SIZE_TEST,
            image_format=loaded.cfg.INPUT.FORMAT,
            clip_image_size=node.IMAGE_SIZE,
            known=known,
        )

    def set_vocabulary(self, vocabulary: str | PathLike | Iterable[str | PathLike]) -> list[str]:
        """Change the vocabulary. The model stays loaded.

        Args:
            vocabulary: see :func:`.parse_vocabulary`; "checkpoint" stands for the names inside the
                weights, with their embeddings.

        Returns:
            The class names.

        Raises:
            FileNotFoundError: a file of names does not exist.
            ValueError: there is no name, or the CLIP model is not that of the weights.
        """
        if isinstance(vocabulary, PathLike):
            vocabulary = [vocabulary]
        items = vocabulary.split(",") if isinstance(vocabulary, str) else list(vocabulary)
        known = {}
        if FROM_CHECKPOINT in [str(item).strip() for item in items]:
            known = self._known
            if not known:
                raise ValueError(
                    f"vocabulary {FROM_CHECKPOINT!r}: the weights hold no class names. Give a "
                    "vocabulary: words ('dog, red ball'), a file, or the name of a data set "
                    "('lvis')"
                )
        names = parse_vocabulary(
            vocabulary if isinstance(vocabulary, str) else items, {FROM_CHECKPOINT: list(known)}
        )
        # Embeddings of the training are kept to the last digit; only other names are embedded.
        new = [name for name in names if name not in known]
        computed = dict(zip(new, self._embedder(new), strict=True)) if new else {}
        rows = [known[name] if name in known else computed[name] for name in names]
        self.model.set_text_classifier(torch.stack(rows), names)
        self.names = names
        return names

    def predict(self, video: Any, max_objects: int | None = None) -> VideoResult | FramesResult:
        """Find the objects of a whole video, as in evaluation.

        Scores need the whole video, so it has to end. The model may find a thing under several
        names: :meth:`VideoResult.best` keeps the best one.

        Args:
            video: see :func:`ovformer.data.files.video_files.iterate_frames`.
            max_objects: most objects of the video, or of each frame for the image model; None for
                TEST.DETECTIONS_PER_IMAGE of the config.

        Returns:
            Tracked objects; or those of each frame from the image model, which tracks nothing.

        Raises:
            ValueError: there is no frame, or frames differ in size.
        """
        frames = iter(iterate_frames(video))
        # The size of the first frame is needed before the model takes any.
        first = next(frames, None)
        if first is None:
            raise ValueError("the video has no frame")
        frames = chain([first], frames)
        size = first.image.shape[:2]
        if not self._tracks:
            return self._predict_untracked(frames, size, max_objects)
        times: list[float] = []  # grows while the model takes frames
        with self._limit_objects(max_objects):
            record = self._make_video_record(frames, size, times)
            (prediction,) = self.model.predict_videos([record])
        keys = ("pred_tracks", "pred_scores", "pred_labels", "segmentations")
        columns = zip(*(prediction[key] for key in keys), strict=True)
        objects = [
            VideoObject(track, label, self.names[label], score, tube)
            for track, score, label, tube in columns
        ]
        return VideoResult(self.names, size, times, objects)

    def stream(
        self,
        video: Any,
        *,
        window: int | None = None,
        score_threshold: float = 0.0,
        max_objects: int | None = None,
        max_iou: float = MAX_IOU,
        memory: int | None = None,
    ) -> Iterator[FrameResult]:
        """Yield the objects of each frame as it arrives; the video may be endless.

        No frame is kept, so memory does not grow. A track has one name: the one with the best mean
        score over the frames so far, so it may change. The image model tracks nothing: its scores
        are those of the frame, and ``window`` and ``memory`` change nothing.

        Args:
            video: see :func:`ovformer.data.files.video_files.iterate_frames`.
            window: frames that go through the network together. The results of a frame come when
                its window is full or the video ends. None for 1, or for the clip model
                MODEL.MASK_FORMER.TEST.CLIP_LENGTH.
            score_threshold: least score of an object.
            max_objects: most objects of a frame; None for TEST.DETECTIONS_PER_IMAGE.
            max_iou: masks coincide if their IoU exceeds this. Tracks that coincide in a frame are
                one thing there, shown once; see :class:`.StreamIdentities`.
            memory: number of latest frames over which scores are averaged, about; None for all. For
                long streams, such as a camera's, in which a track may turn to something else.

        Raises:
            ValueError: a number is out of range, or frames differ in size.
        """
        for name, value in (("window", window), ("memory", memory), ("max_objects", max_objects)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        window = window or (self.model.window_size if self.model.SEES_CLIPS else 1)
        limit = max_objects or self.model.detections_per_image
        frames = iter(iterate_frames(video))
        if not self._tracks:
            yield from self._stream_untracked(frames, limit, score_threshold, max_iou)
            return
        # The tracker assigns queries over time; the tracks keep scores and, for one window, masks.
        tracker = QueryTracker(self.model.memory_momentum)
        identities = StreamIdentities(max_iou, memory)
        most_tracks = max(limit, self.model.detections_per_image)
        names, size = None, None
        while batch := list(islice(frames, window)):
            # In the first window, and after set_vocabulary: scores so far are of other names.
            if names is not self.names:
                names = self.names
                ratio = None if self.model.SEES_CLIPS else self.model.frame_score_ratio
                least = WITNESS_RATIO * score_threshold
                tracks = RunningTracks(most_tracks, ratio, least, memory)
            size = size or batch[0].image.shape[:2]  # of the first frame
            # Checked before the network runs: the frames of a window are one batch.
            for frame in batch:
                _check_size(frame.number, frame.image.shape[:2], size)
            sizes = self._run_window(batch, tracker, tracks)
            for frame in batch:
                objects = self._restore_objects(tracks.ready.popleft(), sizes, size, names)
                objects = merge_objects(objects, identities, score_threshold)
                asleep = identities.num_objects - len(objects)
                yield FrameResult(frame.number, frame.time, size, objects[:limit], asleep)

    @property
    def _tracks(self) -> bool:
        """Whether the model tracks objects."""
        return hasattr(self.model, "predict_videos")

    @contextmanager
    def _limit_objects(self, max_objects: int | None) -> Iterator[None]:
        """Make the model return at most this many objects; None for its own limit."""
        before = self.model.detections_per_image
        self.model.detections_per_image = before if max_objects is None else max_objects
        try:
            yield
        finally:
            self.model.detections_per_image = before

    def _make_record(self, frame: Frame) -> dict[str, Any]:
        """Return a frame as an image record; :mod:`ovformer.data` describes it."""
        height, width = frame.image.shape[:2]
        image = frame.image
        if self._edges[0]:  # as in evaluation, except that no side shrinks to 0
            sides = T.ResizeShortestEdge.get_output_shape(height, width, *self._edges)
            resize = T.ResizeTransform(height, width, *(max(1, side) for side in sides))
            image = resize.apply_image(image)
        return {
            "image": to_tensor(image, self._image_format),
            "clip_image": crop_for_embedding(frame.image, self._clip_image_size),
            "height": height,
            "width": width,
        }

    def _make_video_record(
        self, frames: Iterable[Frame], size: tuple[int, int], times: list[float]
    ) -> dict[str, Any]:
        """Return frames as a video record; reading it appends their times to ``times``."""

        def records() -> Iterator[dict[str, Any]]:
            for frame in frames:
                _check_size(frame.number, frame.image.shape[:2], size)
                times.append(frame.time)
                yield self._make_record(frame)

        return {"video_id": 1, "height": size[0], "width": size[1], "frames": records()}

    @torch.no_grad()
    def _run_window(
        self, frames: Sequence[Frame], tracker: QueryTracker, tracks: RunningTracks
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """Run frames through the network and add their queries to the tracks.

        Returns:
            H and W of the padded and of the unpadded network input.
        """
        model: OVFormerVideo = self.model
        records = [self._make_record(frame) for frame in frames]
        padded_size = model.follow(records, tracker, tracks)
        return padded_size, tuple(records[0]["image"].shape[-2:])

    def _restore_objects(
        self,
        found: FrameTracks,
        sizes: tuple[tuple[int, int], tuple[int, int]],
        size: tuple[int, int],
        names: Sequence[str],
    ) -> Iterator[ObjectInFrame]:
        """Yield the objects of a frame that have a pixel at its original size.

        Args:
            found: of the frame, with mask logits of the network's stride.
            sizes: H and W of the padded and of the unpadded network input.
            size: H and W of the original frame.
            names: the K class names of the tracks.
        """
        if not len(found.tracks):
            return
        # Only the tracks that were chosen get masks of full size.
        masks = restore_masks(found.masks, *sizes, size) > 0
        columns = (found.tracks, found.labels, found.scores, masks.flatten(1).any(1))
        for track, label, score, is_seen, rle in zip(
            *(column.tolist() for column in columns), encode_masks(masks), strict=True
        ):
            if is_seen:
                yield make_object_in_frame(track, label, names[label], score, rle)

    def _predict_untracked(
        self, frames: Iterable[Frame], size: tuple[int, int], max_objects: int | None
    ) -> FramesResult:
        """Return the objects that the image model finds in each frame."""
        found: list[list[ObjectInFrame]] = []
        times: list[float] = []
        limit = max_objects or self.model.detections_per_image
        for frame in self._stream_untracked(frames, limit, 0.0, 1.0):
            _check_size(frame.number, frame.size, size)
            times.append(frame.time)
            found.append(frame.objects)
        return FramesResult(self.names, size, times, found)

    @torch.no_grad()
    def _stream_untracked(
        self, frames: Iterable[Frame], limit: int, score_threshold: float, max_iou: float
    ) -> Iterator[FrameResult]:
        """Yield the objects that the image model finds in each frame."""
        for frame in frames:
            with self._limit_objects(limit):
                found = self.model([self._make_record(frame)])[0]["instances"]
            # Empty masks have no box, and would be dropped from drawings anyway.
            found = found[found.pred_masks.flatten(1).any(1)]
            objects = [
                make_object_in_frame(None, label, self.names[label], score, rle)
                for score, label, rle in zip(
                    found.scores.tolist(),
                    found.pred_classes.tolist(),
                    encode_masks(found.pred_masks),
                    strict=True,
                )
                if score >= score_threshold
            ]
            size = frame.image.shape[:2]
            yield FrameResult(frame.number, frame.time, size, drop_overlaps(objects, max_iou))


def _check_size(number: int, size: tuple[int, int], expected: tuple[int, int]) -> None:
    """Raise ValueError if a frame has another height or width than the first."""
    if tuple(size) != tuple(expected):
        raise ValueError(
            f"frame {number} is {size[0]} x {size[1]} pixels (height x width), but the first is "
            f"{expected[0]} x {expected[1]}. The frames of a video need one size: resize them, or "
            "predict the images one by one"
        )
