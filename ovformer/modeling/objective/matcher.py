"""One-to-one matching of queries with annotated instances.

Legend: B batch, T frames of a clip, Q queries, N instances of an image or clip, K classes, P
points, Cm channels of the mask features, h w their height and width, H W those of the padded image.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ovformer.d2 import point_sample
from ovformer.modeling.objective.losses import pairwise_dice, pairwise_mask_bce

# Replaces an infinite cost, which SciPy refuses where no finite one is left. Far above any finite
# cost, but sums with it stay exact.
LARGE_COST = 1e9


class HungarianMatcher(nn.Module):
    """Assign each instance to one query, at the least total cost of class and mask.

    The cost of a class is minus the score that inference would give it: the square root of class
    probability times objectness. Masks are compared at random points. Their logits come from mask
    features sampled at the points, which is exact because both steps are linear, and far cheaper
    than the masks of all queries. The points of a clip are the same in all of its frames.

    Sources: DETR, https://arxiv.org/abs/2005.12872, section 3.1; Mask2Former,
    https://arxiv.org/abs/2112.01527, section 3.3, for masks at points.

    Args:
        cost_class: weight of the class cost.
        cost_mask: weight of the masks' binary cross-entropy.
        cost_dice: weight of the masks' dice loss.
        num_points: points at which masks are compared, at least 1.

    Raises:
        ValueError: all weights are 0, or there are no points.
    """

    def __init__(
        self, cost_class: float, cost_mask: float, cost_dice: float, num_points: int
    ) -> None:
        super().__init__()
        if cost_class == cost_mask == cost_dice == 0:
            raise ValueError(
                "MODEL.MASK_FORMER: CLASS_WEIGHT, MASK_WEIGHT and DICE_WEIGHT are all 0, so there "
                "is nothing to match by; set at least one of them"
            )
        if num_points < 1:
            raise ValueError(f"MODEL.MASK_FORMER.TRAIN_NUM_POINTS: expected >= 1, got {num_points}")
        self.cost_class = cost_class
        self.cost_mask = cost_mask
        self.cost_dice = cost_dice
        self.num_points = num_points

    @torch.no_grad()
    def forward(
        self, outputs: Mapping[str, Tensor], targets: Sequence[Mapping[str, Tensor]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Match the queries of each image with its instances.

        Args:
            outputs: ``pred_logits`` (B, Q, K + 1), ``pred_object_logits`` (B, Q, 2), ``mask_embed``
                (B, Q, Cm) and ``mask_features`` (B, Cm, h, w), or (B, T, Cm, h, w) for clips.
            targets: for each image ``labels`` (N,), where K means "no object", and ``masks``
                bool (N, H, W), or (N, T, H, W).

        Returns:
            For each image the indices of matched queries, ascending, and of their instances:
            two int64 tensors of length min(Q, N) on the device of the outputs.

        Raises:
            FloatingPointError: a cost is NaN.
        """
        costs = [
            self.compute_costs({key: value[index] for key, value in outputs.items()}, target)
            for index, target in enumerate(targets)
        ]
        totals = [sum(of_image.values()).clamp(-LARGE_COST, LARGE_COST) for of_image in costs]
        # SciPy solves the assignment on the CPU. One copy for all images: each waits for the GPU.
        on_host = torch.cat([total.flatten() for total in totals]).cpu()
        matches = []
        for index, (total, matrix) in enumerate(
            zip(totals, on_host.split([total.numel() for total in totals]), strict=True)
        ):
            matrix = matrix.view(total.shape).numpy()
            # Clamping left NaN as it is. SciPy would refuse it without saying where it comes from.
            if np.isnan(matrix).any():
                names = [name for name, cost in costs[index].items() if cost.isnan().any()]
                raise FloatingPointError(
                    f"the {' and '.join(names)} cost between queries and instances is NaN in image "
                    f"{index} of the batch: the network's outputs are not finite. Lower "
                    "SOLVER.BASE_LR, or try SOLVER.AMP.PRECISION bfloat16 or SOLVER.AMP.ENABLED "
                    "False"
                )
            matches.append(
                tuple(torch.from_numpy(i).to(total.device) for i in linear_sum_assignment(matrix))
            )
        return matches

    @torch.no_grad()
    def compute_costs(
        self, outputs: Mapping[str, Tensor], target: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the weighted costs of one image by name: ``class``, ``mask``, ``dice``.

        Args:
            outputs: as in :meth:`forward`, without the batch dimension.
            target: as in :meth:`forward`.

        Returns:
            Three float32 tensors (Q, N).
        """
        logits, object_logits, embed, features = (
            outputs[key].float()
            for key in ("pred_logits", "pred_object_logits", "mask_embed", "mask_features")
        )
        # The match depends on differences of costs, and half types would round small ones away.
        with torch.autocast(features.device.type, enabled=False):
            points = torch.rand(1, self.num_points, 2, device=features.device)
            masks = target["masks"].to(features)
            if features.dim() == 3:  # an image is a clip of one frame
                features, masks = features[None], masks[:, None]
            # The same points for all masks, so that the costs of all pairs are one matrix product.
            points = points.expand(len(features), -1, -1)
            # Points of all frames together make one long row for each query and each instance.
            point_features = point_sample(features, points, align_corners=False)  # (T, Cm, P)
            mask_logits = embed @ point_features.transpose(0, 1).flatten(1)
            point_labels = point_sample(masks.transpose(0, 1), points, align_corners=False)
            point_labels = point_labels.transpose(0, 1).flatten(1)
            return {
                "class": self.cost_class * class_cost(logits, object_logits, target["labels"]),
                "mask": self.cost_mask * pairwise_mask_bce(mask_logits, point_labels),
                "dice": self.cost_dice * pairwise_dice(mask_logits, point_labels),
            }


def class_cost(logits: Tensor, object_logits: Tensor, labels: Tensor) -> Tensor:
    """Return minus the score of each instance's label; of "no object" minus its probability.

    Args:
        logits: (Q, K + 1) class logits; the last column is not used.
        object_logits: (Q, 2) logits of "object" and "no object".
        labels: (N,) in [0, K].

    Returns:
        (Q, N).
    """
    is_object, is_none = object_logits.softmax(-1)[:, :, None].unbind(1)
    # A few labels of perhaps a thousand classes: select first, so that only these are computed.
    score = (logits[:, labels].sigmoid() * is_object).sqrt()
    return -torch.where(labels == logits.shape[1] - 1, is_none, score)
