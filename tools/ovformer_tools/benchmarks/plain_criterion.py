"""The training objective in its plainest form, for comparison: the same losses.

Matching and losses take the masks of all queries and layers from the plain network. Random numbers
are drawn in the same order as ours, so that a seed gives the same loss.

Legend: B batch, T frames of a clip (1 for an image), Q queries, N instances, K classes, P points,
H W pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from ovformer.d2 import get_uncertain_point_coords_with_randomness, point_sample
from ovformer.modeling.objective.federated_loss import (
    federated_class_loss,
    sample_federated_classes,
)
from ovformer.modeling.objective.losses import (
    dice_loss,
    mask_bce_loss,
    pairwise_dice,
    pairwise_mask_bce,
)
from ovformer.modeling.objective.matcher import class_cost


def total_loss(
    criterion: nn.Module, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Tensor]]
) -> Tensor:
    """Return the weighted sum of all losses of a batch of one process, without accumulation.

    Args:
        criterion: a ``SetCriterion``; its settings are used.
        outputs: outputs of the plain network.
        targets: for each image ``labels`` (N,) and ``masks`` (N, H, W), or (N, T, H, W).
    """
    layers = {"": outputs}
    layers |= {f"_{i}": aux for i, aux in enumerate(outputs["aux_outputs"])}
    total = outputs["pred_logits"].new_zeros(())
    with torch.autocast(total.device.type, enabled=False):
        for suffix, layer in layers.items():
            layer = {key: value.float() for key, value in layer.items() if key != "aux_outputs"}
            for name, loss in _layer_losses(criterion, layer, targets).items():
                total = total + criterion.weight_dict[name + suffix] * loss
    return total


def _layer_losses(
    criterion: nn.Module, layer: Mapping[str, Tensor], targets: Sequence[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    matches = [
        _match(criterion.matcher, {key: value[index] for key, value in layer.items()}, target)
        for index, target in enumerate(targets)
    ]
    logits, object_logits = layer["pred_logits"], layer["pred_object_logits"]
    num_classes = criterion.num_classes
    labels = torch.full(logits.shape[:2], num_classes, device=logits.device)
    for row, target, (queries, instances) in zip(labels, targets, matches, strict=True):
        row[queries] = target["labels"][instances]
    # Queries without an instance have the label num_classes.
    is_object = labels < num_classes
    chosen = sample_federated_classes(
        labels.unique(), criterion.freq_weight, criterion.fed_loss_num_classes
    )
    class_loss = federated_class_loss(logits[is_object][:, :-1], labels[is_object], chosen)
    count = max(1, sum(len(target["labels"]) for target in targets))
    norm = count if criterion.class_loss_norm == "instances" else labels.numel()

    masks = torch.cat(
        [
            x[queries].flatten(0, 1)
            for x, (queries, _) in zip(layer["pred_masks"], matches, strict=True)
        ]
    )[:, None]
    truth = torch.cat(
        [
            target["masks"][instances].to(masks).flatten(0, -3)
            for target, (_, instances) in zip(targets, matches, strict=True)
        ]
    )[:, None]
    with torch.no_grad():
        points = get_uncertain_point_coords_with_randomness(
            masks,
            lambda point_logits: -point_logits.abs(),
            criterion.num_points,
            criterion.oversample_ratio,
            criterion.importance_sample_ratio,
        )
        point_labels = point_sample(truth, points, align_corners=False).squeeze(1)
    point_logits = point_sample(masks, points, align_corners=False).squeeze(1)
    return {
        "loss_ce": criterion.class_loss_scale * class_loss / norm,
        "loss_object_ce": F.cross_entropy(
            object_logits.flatten(0, 1),
            (~is_object).flatten().long(),
            criterion.empty_object_weight,
        ),
        "loss_mask": mask_bce_loss(point_logits, point_labels, count),
        "loss_dice": dice_loss(point_logits, point_labels, count),
    }


@torch.no_grad()
def _match(
    matcher: nn.Module, layer: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the indices of matched queries and of their instances in one image."""
    masks = layer["pred_masks"]  # (Q, T, H / 4, W / 4)
    truth = target["masks"].to(masks)
    truth = truth if truth.dim() == 4 else truth[:, None]
    points = torch.rand(1, matcher.num_points, 2, device=masks.device)
    point_logits, point_labels = (
        point_sample(x, points.expand(len(x), -1, -1), align_corners=False).flatten(1)
        for x in (masks, truth)
    )
    cost = (
        matcher.cost_class
        * class_cost(layer["pred_logits"], layer["pred_object_logits"], target["labels"])
        + matcher.cost_mask * pairwise_mask_bce(point_logits, point_labels)
        + matcher.cost_dice * pairwise_dice(point_logits, point_labels)
    )
    queries, instances = linear_sum_assignment(cost.cpu().numpy())
    return torch.from_numpy(queries), torch.from_numpy(instances)
