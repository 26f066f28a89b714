"""The clip model (stage 3): its queries see all frames of a clip.

Legend: B batch, T frames of a clip, N instances, H W pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ovformer.d2 import META_ARCH_REGISTRY, CfgNode, configurable
from ovformer.modeling.meta_arch.base_model import get_instances, pad_masks
from ovformer.modeling.meta_arch.video_inference import VideoInference, iterate_frames
from ovformer.modeling.tracks.tracking import ClipTracks, QueryTracker, TrackSelection
from ovformer.ops.mask_resize import mask_logits


@META_ARCH_REGISTRY.register()
class VideoOVFormer(VideoInference):
    """Open-vocabulary instance segmentation of videos of any length, clip by clip.

    Args:
        clip_length: frames of a clip at inference; the last clip of a video may have fewer.
        clip_overlap: number of its last frames that are in the next clip as well. A frame that is
            in several clips gets the mean of their mask logits.
        **parts: see :class:`.VideoInference`.

    Raises:
        ValueError: a number is out of range.
    """

    SEES_CLIPS = True

    @configurable
    def __init__(self, *, clip_length: int = 5, clip_overlap: int = 0, **parts: Any) -> None:
        if clip_length < 1:
            raise ValueError(
                f"MODEL.MASK_FORMER.TEST.CLIP_LENGTH: expected at least 1, got {clip_length}"
            )
        if not 0 <= clip_overlap < clip_length:
            raise ValueError(
                "MODEL.MASK_FORMER.TEST.CLIP_OVERLAP: expected 0 or more, and less than the "
                f"CLIP_LENGTH of {clip_length}, got {clip_overlap}"
            )
        super().__init__(window_size=clip_length, window_overlap=clip_overlap, **parts)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts and read the keys ``MODEL.MASK_FORMER.TEST.CLIP_*``."""
        test = cfg.MODEL.MASK_FORMER.TEST
        return {
            **super().from_config(cfg),
            "clip_length": test.CLIP_LENGTH,
            "clip_overlap": test.CLIP_OVERLAP,
        }

    def forward(
        self, batched_inputs: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Return losses in training, otherwise predictions.

        Args:
            batched_inputs: the batch dict of :mod:`ovformer.data`, one record per video. In
                training it is a clip, and all clips of a batch have the same number of frames.

        Returns:
            In training the weighted losses by name. Otherwise the prediction dict of each video,
            see :meth:`predict_videos`.

        Raises:
            ValueError: training clips are of different lengths, or have no instances.
        """
        if not self.training:
            return list(self.predict_videos(batched_inputs))
        # The backbone sees the frames of all clips as one batch of images; only the query decoder
        # needs to know which frames are one clip.
        frames = [frame for record in batched_inputs for frame in iterate_frames(record)]
        lengths = [len(record["image"]) for record in batched_inputs]
        if len(set(lengths)) > 1:
            raise ValueError(
                f"the clips of a batch have {lengths} frames, but training needs clips of one "
                "length: INPUT.SAMPLING_FRAME_NUM of each video"
            )
        outputs, images = self.run_network(frames, len(batched_inputs))
        return self.compute_losses(
            outputs,
            self.prepare_targets(batched_inputs, tuple(images.tensor.shape[-2:])),
            batched_inputs[0].get("instance_counts"),
        )

    def prepare_targets(
        self, records: Sequence[Mapping[str, Any]], padded_size: tuple[int, int]
    ) -> list[dict[str, Tensor]]:
        """Return the targets that the criterion compares predictions with.

        Args:
            records: with ``instances``, the same N in each frame: gt_classes (N,), gt_masks, and
                gt_ids (N,), which is -1 where an instance is absent.
            padded_size: height and width of the padded frames.

        Returns:
            For each clip the instances that are present in any frame: ``labels`` (N,), each from
            the first frame where it is present, and ``masks`` (N, T, *padded_size) bool.

        Raises:
            ValueError: a record has no instances.
        """
        targets = []
        for record in records:
            frames = [instances.to(self.device) for instances in get_instances(record)]
            # Only the class of an instance that is present is known to be right.
            present = _find_present(frames)
            # What no frame shows would be an empty mask for a query to match.
            seen = present.any(0)
            labels = torch.stack([instances.gt_classes for instances in frames])
            labels = labels.gather(0, present.byte().argmax(0, keepdim=True))[0]
            masks = torch.stack([instances.gt_masks.tensor for instances in frames], dim=1)
            targets.append({"labels": labels[seen], "masks": pad_masks(masks[seen], padded_size)})
        return targets

    def instance_counts(self, record: Mapping[str, Any]) -> list[int]:
        """Return the number of instances that are present in any frame of a clip."""
        return [int(_find_present(get_instances(record)).any(0).sum())]

    def _create_tracks(self) -> ClipTracks:
        return ClipTracks(self.window_overlap)

    def follow(
        self, window: Sequence[Mapping[str, Any]], tracker: QueryTracker, tracks: ClipTracks
    ) -> tuple[int, int]:
        """Assign the queries of a clip, see :meth:`.VideoInference.follow`."""
        outputs, images = self.run_network(window, num_clips=1)
        # One assignment for the whole clip: inside it a query follows its object by itself.
        order = tracker(outputs["pred_embds"][0])
        masks = mask_logits(outputs["mask_embed"][0, order], outputs["mask_features"][0])
        tracks.append(
            outputs["pred_logits"][0, order], outputs["pred_object_logits"][0, order], masks
        )
        return tuple(images.tensor.shape[-2:])

    def _select_tracks(self, tracks: ClipTracks) -> TrackSelection:
        return tracks.select(self.detections_per_image)


def _find_present(frames: Sequence[Any]) -> Tensor:
    """Return in which frames of a clip each instance is present: bool (T, N)."""
    return torch.stack([instances.gt_ids >= 0 for instances in frames])
