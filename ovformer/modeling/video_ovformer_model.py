"""The clip model (stage 3): its queries see all frames of a clip.

Legend: B batch, T frames of a clip, N instances, H W pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ovformer.d2 import META_ARCH_REGISTRY
from ovformer.modeling.meta_arch_base import OVFormerBase, annotated, pad_masks
from ovformer.modeling.ovformer_model_video import frame_records


@META_ARCH_REGISTRY.register()
class VideoOVFormer(OVFormerBase):
    """Open-vocabulary instance segmentation of videos, trained on clips."""

    SEES_CLIPS = True

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return the losses of training.

        Args:
            batched_inputs: the batch dict of :mod:`ovformer.data`, one record per clip. All clips
                of a batch have the same number of frames.

        Returns:
            The weighted losses by name.

        Raises:
            ValueError: clips are of different lengths, or have no instances.
        """
        frames = [frame for record in batched_inputs for frame in frame_records(record)]
        lengths = [len(record["image"]) for record in batched_inputs]
        if len(set(lengths)) > 1:
            raise ValueError(
                f"the clips of a batch have {lengths} frames, but training needs clips of one "
                "length: INPUT.SAMPLING_FRAME_NUM of each video"
            )
        outputs, images = self.outputs(frames, len(batched_inputs))
        return self.losses(
            outputs,
            self.targets(batched_inputs, tuple(images.tensor.shape[-2:])),
            batched_inputs[0].get("instance_counts"),
        )

    def targets(
        self, records: Sequence[Mapping[str, Any]], padded_size: tuple[int, int]
    ) -> list[dict[str, Tensor]]:
        """Return what the criterion compares with.

        Args:
            records: with ``instances``: of each frame the same ones, which have gt_classes (N,),
                gt_ids (N,), -1 where one is absent, and gt_masks.
            padded_size: height and width of the padded frames.

        Returns:
            For each clip, of the instances that are present in any frame, ``labels`` (N,), from the
            first frame that they are present in, and ``masks`` (N, T, *padded_size) bool.

        Raises:
            ValueError: a record has no instances.
        """
        targets = []
        for record in records:
            frames = [instances.to(self.device) for instances in annotated(record)]
            present = _presence(frames)
            seen = present.any(0)
            labels = torch.stack([instances.gt_classes for instances in frames])
            labels = labels.gather(0, present.byte().argmax(0, keepdim=True))[0]
            masks = torch.stack([instances.gt_masks.tensor for instances in frames], dim=1)
            targets.append({"labels": labels[seen], "masks": pad_masks(masks[seen], padded_size)})
        return targets

    def instance_counts(self, record: Mapping[str, Any]) -> list[int]:
        """Return the number of instances that are present in any frame of a clip."""
        return [int(_presence(annotated(record)).any(0).sum())]


def _presence(frames: Sequence[Any]) -> Tensor:
    """Tell in which frames of a clip an instance is present: bool (T, N)."""
    return torch.stack([instances.gt_ids >= 0 for instances in frames])
