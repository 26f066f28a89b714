"""The image model on videos (stage 2): frame by frame, its queries assigned to each other.

Legend: T frames, Q queries, N predictions, D CLIP width, S side of CLIP's image, H W pixels.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, zip_longest
from typing import Any

import torch
from torch import Tensor

from ovformer.d2 import META_ARCH_REGISTRY, CfgNode, configurable
from ovformer.modeling.mask_store import MaskSizes, encode_tubes
from ovformer.modeling.meta_arch_base import annotated
from ovformer.modeling.ovformer_model import OVFormer
from ovformer.modeling.tracking import QueryTracker, VideoTracks
from ovformer.ops.mask_resize import mask_logits

_END = object()


@META_ARCH_REGISTRY.register()
class OVFormerVideo(OVFormer):
    """Open-vocabulary instance segmentation of videos of any length."""

    @configurable
    def __init__(
        self,
        *,
        window_size: int = 10,
        memory_momentum: float = 0.7,
        frame_score_ratio: float = 0.1,
        **parts: Any,
    ) -> None:
        """Combine the parts.

        Args:
            window_size: frames that go through the network together.
            memory_momentum: weight of the current frame in the memory of a track.
            frame_score_ratio: a mask is left out of a frame in which its score is below so many
                times its score in the video.
            **parts: of the image model.

        Raises:
            ValueError: a number is out of range.
        """
        super().__init__(**parts)
        for key, value, valid, expected in (
            ("WINDOW_SIZE", window_size, window_size >= 1, "at least 1"),
            ("MEMORY_MOMENTUM", memory_momentum, 0 < memory_momentum <= 1, "more than 0, up to 1"),
            ("FRAME_SCORE_RATIO", frame_score_ratio, frame_score_ratio >= 0, "0 or more"),
        ):
            if not valid:
                raise ValueError(f"MODEL.MASK_FORMER.TEST.{key}: expected {expected}, got {value}")
        self.window_size = window_size
        self.memory_momentum = memory_momentum
        self.frame_score_ratio = frame_score_ratio

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the image model's parts and read the keys ``MODEL.MASK_FORMER.TEST.*``."""
        test = cfg.MODEL.MASK_FORMER.TEST
        return {
            **super().from_config(cfg),
            "window_size": test.WINDOW_SIZE,
            "memory_momentum": test.MEMORY_MOMENTUM,
            "frame_score_ratio": test.FRAME_SCORE_RATIO,
        }

    def forward(
        self, batched_inputs: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Return losses in training, and else predictions.

        Args:
            batched_inputs: the batch dict of :mod:`ovformer.data`, one record per video. In
                training its frames are images to learn from; an instance does not count in a frame
                where its ``gt_ids`` is -1.

        Returns:
            In training the weighted losses by name. Else the prediction dict of each video:
            ``video_id``, ``image_size`` (height, width), ``pred_scores``, ``pred_labels`` and
            ``segmentations`` (for each prediction T COCO codes), highest score first.
        """
        if not self.training:
            return list(self.predict_videos(batched_inputs))
        frames = [frame for record in batched_inputs for frame in frame_records(record)]
        for frame in frames:
            if "instances" in frame:
                frame["instances"] = _visible_instances(frame["instances"])
        return super().forward(frames)

    def instance_counts(self, record: Mapping[str, Any]) -> list[int]:
        """Return the number of instances that are visible in each frame of a video."""
        return [len(_visible_instances(instances)) for instances in annotated(record)]

    def predict_videos(self, records: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Find and follow the objects of videos, one video after the other.

        Frames are taken from a record a window at a time and not kept. What has to be known of all
        frames until the end is kept by :class:`ovformer.modeling.tracking.VideoTracks`. The masks
        of a video are encoded in the background while the network sees the next one.

        Args:
            records: of videos.

        Yields:
            The prediction dict of each video. A video without frames has no predictions.

        Raises:
            ValueError: the frames of a video differ in size, or there are more or fewer than its
                record says. The predictions of all videos before it were yielded.
        """
        with ThreadPoolExecutor(1, "masks") as background:
            pending = None
            try:
                for record in records:
                    tracks, sizes = self._track(record)
                    if pending is not None:
                        done, pending = pending, None
                        yield done.result()
                    video_id = record.get("video_id")
                    pending = background.submit(self._prediction, video_id, tracks, sizes)
            finally:  # also when the next video could not be read or tracked
                if pending is not None:
                    yield pending.result()

    @torch.no_grad()
    def _track(self, record: Mapping[str, Any]) -> tuple[VideoTracks, MaskSizes]:
        """Run the network over a video and assign its queries to tracks."""
        frames = frame_records(record)
        tracker = QueryTracker(self.memory_momentum)
        tracks = VideoTracks()
        image_size = padded_size = (0, 0)
        while window := list(islice(frames, self.window_size)):
            if not tracks.num_frames:
                image_size = tuple(window[0]["image"].shape[-2:])
            _check_sizes(record, window, image_size, tracks.num_frames)
            images = self.normalize_images([frame["image"] for frame in window]).tensor
            padded_size = tuple(images.shape[-2:])
            clip_features = self.clip_features(window, self.device)
            outputs = self.sem_seg_head(self.backbone(images), clip_features)
            self._follow(outputs, tracker, tracks)
        _check_length(record, tracks.num_frames)
        output_size = (record.get("height", image_size[0]), record.get("width", image_size[1]))
        return tracks, MaskSizes(padded_size, image_size, output_size)

    @torch.no_grad()
    def _prediction(
        self, video_id: int | None, tracks: VideoTracks, sizes: MaskSizes
    ) -> dict[str, Any]:
        """Return the prediction dict of a video that was tracked."""
        scores, labels, tubes = [], [], []
        with tracks:
            if tracks.num_frames:
                best = tracks.select(self.detections_per_image, self.frame_score_ratio)
                scores, labels = best.scores.tolist(), best.classes.tolist()
                visible = best.visible.cpu().numpy()
                tubes = encode_tubes(
                    tracks.masks, best.queries.tolist(), visible, sizes, self.device
                )
        return {
            "video_id": video_id,
            "image_size": sizes.output,
            "pred_scores": scores,
            "pred_labels": labels,
            "segmentations": tubes,
        }

    @staticmethod
    def _follow(outputs: Mapping[str, Tensor], tracker: QueryTracker, tracks: VideoTracks) -> None:
        """Assign the queries of a window's frames to tracks, one frame after the other."""
        for logits, object_logits, mask_embed, mask_features, embeddings in zip(
            outputs["pred_logits"],
            outputs["pred_object_logits"],
            outputs["mask_embed"],
            outputs["mask_features"],
            outputs["pred_embds"],
            strict=True,
        ):
            order = tracker(embeddings)
            masks = mask_logits(mask_embed[order], mask_features)
            tracks.append(logits[order], object_logits[order], masks)


def frame_records(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the frames of a video as records of images.

    Args:
        record: ``image``: T frames, in a list or from an iterator; if there are any,
            ``clip_features`` (T, D) or else ``clip_image``, a list of T images uint8 (3, S, S) or
            an iterator that is advanced together with ``image``; ``file_names`` and ``instances``,
            lists of T.

    Raises:
        ValueError: these are not of the same number of frames.
    """
    fields = {"image": record["image"]}
    if record.get("clip_features") is not None:
        fields["clip_features"] = record["clip_features"][:, None]
    elif "clip_image" in record:
        fields["clip_image"] = record["clip_image"]
    if "instances" in record:
        fields["instances"] = record["instances"]
    if "file_names" in record:
        fields["file_name"] = record["file_names"]
    shared = {key: record[key] for key in ("instance_counts",) if key in record}
    for number, values in enumerate(zip_longest(*fields.values(), fillvalue=_END)):
        frame = dict(zip(fields, values, strict=True))
        ended = [name for name, value in frame.items() if value is _END]
        if ended:
            raise ValueError(
                f"video {record.get('video_id')!r}: {' and '.join(ended)} of {number} frames, but "
                f"{' and '.join(name for name in fields if name not in ended)} of more"
            )
        yield {**frame, **shared}


def _check_length(record: Mapping[str, Any], num_frames: int) -> None:
    """Raise ValueError when a video had not as many frames as its record says."""
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
    """Raise ValueError when a frame of a window is of another size than the video's first."""
    for number, frame in enumerate(window, start=first):
        got = tuple(frame["image"].shape[-2:])
        if got != size:
            name = f" ({frame['file_name']})" if "file_name" in frame else ""
            raise ValueError(
                f"video {record.get('video_id')!r}: frame {number}{name} is {got[0]} x {got[1]} "
                f"(height x width) for the network, but frame 0 is {size[0]} x {size[1]}. The "
                "frames of a video have to be of one size: bring them to that of its first frame"
            )


def _visible_instances(instances: Any) -> Any:
    """Return those instances of a frame that are not absent from it."""
    return instances[instances.gt_ids >= 0]
