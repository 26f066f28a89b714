"""The image model (stage 1).

Legend: N instances, H W pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ovformer.d2 import META_ARCH_REGISTRY, Instances
from ovformer.modeling.meta_arch.base_model import OVFormerBase
from ovformer.modeling.tracks.postprocess import predict_instances

_PER_IMAGE = ("pred_logits", "pred_object_logits", "mask_embed", "mask_features")


@META_ARCH_REGISTRY.register()
class OVFormer(OVFormerBase):
    """Open-vocabulary instance segmentation of images."""

    def forward(
        self, batched_inputs: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Return losses in training, otherwise predictions.

        Args:
            batched_inputs: the batch dict of :mod:`ovformer.data`, one record per image.

        Returns:
            In training the weighted losses by name. Otherwise for each image ``instances`` of the
            record's height and width: pred_masks (N, H, W), pred_boxes, scores and pred_classes,
            highest score first.
        """
        outputs, images = self.run_network(batched_inputs)
        padded_size = tuple(images.tensor.shape[-2:])
        if self.training:
            return self.compute_losses(
                outputs,
                self.prepare_targets(batched_inputs, padded_size),
                batched_inputs[0].get("instance_counts"),
            )
        results = []
        # One image after the other: masks are resized to the sizes of their records, which differ.
        for index, record in enumerate(batched_inputs):
            height, width = images.image_sizes[index]
            instances = predict_instances(
                {key: outputs[key][index] for key in _PER_IMAGE},
                padded_size,
                (height, width),
                (record.get("height", height), record.get("width", width)),
                self.detections_per_image,
            )
            results.append({"instances": instances})
        return results
