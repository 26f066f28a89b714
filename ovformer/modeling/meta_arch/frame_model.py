"""The image model on videos (stage 2): frame by frame, its queries assigned to each other.

Legend: T frames, Q queries.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ovformer.d2 import META_ARCH_REGISTRY, CfgNode, configurable
from ovformer.modeling.meta_arch.base_model import get_instances
from ovformer.modeling.meta_arch.image_model import OVFormer
from ovformer.modeling.meta_arch.video_inference import VideoInference, iterate_frames
from ovformer.modeling.tracks.tracking import QueryTracker, TrackSelection, VideoTracks
from ovformer.ops.mask_resize import mask_logits


@META_ARCH_REGISTRY.register()
class OVFormerVideo(VideoInference, OVFormer):
    """Open-vocabulary instance segmentation of videos of any length, frame by frame.

    Args:
        window_size: frames that go through the network together; 0 leaves it to the device.
        memory_momentum: weight of the current frame in the memory of a track.
        frame_score_ratio: a mask is left out of a frame where its score is below this ratio times
            its score in the video.
        **parts: see :class:`.VideoInference`.

    Raises:
        ValueError: a number is out of range.
    """

    @configurable
    def __init__(
        self,
        *,
        window_size: int = 0,
        memory_momentum: float = 0.7,
        frame_score_ratio: float = 0.1,
        **parts: Any,
    ) -> None:
        for key, value, valid, expected in (
            ("WINDOW_SIZE", window_size, window_size >= 0, "0 or more"),
            ("MEMORY_MOMENTUM", memory_momentum, 0 < memory_momentum <= 1, "more than 0, up to 1"),
            ("FRAME_SCORE_RATIO", frame_score_ratio, frame_score_ratio >= 0, "0 or more"),
        ):
            if not valid:
                raise ValueError(f"MODEL.MASK_FORMER.TEST.{key}: expected {expected}, got {value}")
        super().__init__(window_size=window_size, memory_momentum=memory_momentum, **parts)
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
        """Return losses in training, otherwise predictions.

        Args:
            batched_inputs: the batch dict of :mod:`ovformer.data`, one record per video. In
                training its frames are images to learn from; an instance does not count in a frame
                where its ``gt_ids`` is -1.

        Returns:
            In training the weighted losses by name. Otherwise the prediction dict of each video:
            ``video_id``, ``image_size`` (height, width), ``pred_scores``, ``pred_labels`` and
            ``segmentations`` (for each prediction T COCO RLEs), highest score first.
        """
        if not self.training:
            return list(self.predict_videos(batched_inputs))
        frames = [frame for record in batched_inputs for frame in iterate_frames(record)]
        for frame in frames:
            # Without instances the error of the image model says what is missing.
            if "instances" in frame:
                frame["instances"] = _select_present(frame["instances"])
        return super().forward(frames)

    def instance_counts(self, record: Mapping[str, Any]) -> list[int]:
        """Return the number of instances that are visible in each frame of a video."""
        return [len(_select_present(instances)) for instances in get_instances(record)]

    def _create_tracks(self) -> VideoTracks:
        return VideoTracks()

    def follow(
        self, window: Sequence[Mapping[str, Any]], tracker: QueryTracker, tracks: VideoTracks
    ) -> tuple[int, int]:
        """Assign the queries of each frame, one frame after the other."""
        outputs, images = self.run_network(window)
        # The tracker needs the CPU, and each frame waits for the one before: one copy for all.
        on_host = outputs["pred_embds"].cpu()
        orders = torch.stack([tracker(embeddings) for embeddings in on_host]).to(self.device)
        # Reordered before the masks are made of them: embeddings are much smaller than masks.
        logits, object_logits, mask_embed = (
            outputs[key].take_along_dim(orders[..., None], dim=1)
            for key in ("pred_logits", "pred_object_logits", "mask_embed")
        )
        masks = mask_logits(mask_embed, outputs["mask_features"])
        tracks.extend(logits, object_logits, masks)
        return tuple(images.tensor.shape[-2:])

    def _select_tracks(self, tracks: VideoTracks) -> TrackSelection:
        return tracks.select(self.detections_per_image, self.frame_score_ratio)


def _select_present(instances: Any) -> Any:
    """Return the instances that are present in a frame."""
    return instances[instances.gt_ids >= 0]
