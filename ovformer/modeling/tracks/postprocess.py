"""From predictions of queries to instances of an image.

Legend: Q queries, K classes, Cm mask channels, N instances, H W pixels.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ovformer.d2 import Boxes, Instances
from ovformer.ops.mask_resize import mask_logits, restore_masks

# Masks that are resized together. It bounds the memory for large images.
_MASKS_AT_ONCE = 16


def class_scores(logits: Tensor, object_logits: Tensor) -> Tensor:
    """Return the geometric mean of class probability and objectness, as OVFormer defines the score.

    Args:
        logits: (..., Q, K + 1) class logits; the last, "no object", is not used.
        object_logits: (..., Q, 2), of object and no object.

    Returns:
        (..., Q, K) float32.
    """
    # float32 also under autocast: scores are sorted later, and half precision makes some equal.
    objectness = object_logits.float().softmax(-1)[..., :1]
    return (logits[..., :-1].float().sigmoid() * objectness).sqrt()


def select_top(scores: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the best pairs of query and class.

    Args:
        scores: (Q, K).
        limit: number of pairs; all if there are fewer.

    Returns:
        Scores (descending), query indices and classes, all (min(limit, Q * K),).
    """
    best, flat_indices = scores.flatten().topk(min(limit, scores.numel()))
    num_classes = scores.shape[1]
    return best, flat_indices // num_classes, flat_indices % num_classes


def mean_mask_probability(logits: Tensor) -> Tensor:
    """Return the mean probability over the foreground of each mask: (N, H, W) -> (N,)."""
    foreground = logits > 0
    # The small term makes the mean of an empty mask 0 and not NaN.
    total = (logits.sigmoid() * foreground).sum((1, 2))
    return total / (foreground.sum((1, 2)) + 1e-6)


def mask_boxes(masks: Tensor) -> Tensor:
    """Return the box around each mask.

    Args:
        masks: (N, H, W) bool.

    Returns:
        (N, 4) float32: left, top, right, bottom in pixels, the latter two exclusive. Zeros for an
        empty mask.
    """
    # The first true column or row from each side.
    sides = []
    for occupied in (masks.any(1), masks.any(2)):  # columns (N, W), rows (N, H)
        occupied = occupied.byte()  # argmax takes no bool, and returns the first maximum
        sides += [occupied.argmax(1), occupied.shape[1] - occupied.flip(1).argmax(1)]
    left, right, top, bottom = sides
    boxes = torch.stack((left, top, right, bottom), dim=1).float()
    return boxes * masks.flatten(1).any(1)[:, None]


def predict_instances(
    outputs: Mapping[str, Tensor],
    padded_size: tuple[int, int],
    image_size: tuple[int, int],
    output_size: tuple[int, int],
    limit: int,
) -> Instances:
    """Return the best instances of an image. Only their queries get a full-size mask.

    Args:
        outputs: ``pred_logits`` (Q, K + 1), ``pred_object_logits`` (Q, 2), ``mask_embed`` (Q, Cm)
            and ``mask_features`` (Cm, H, W) of one image.
        padded_size: height and width of the padded network input, in pixels.
        image_size: height and width of the network input without padding.
        output_size: height and width of the original image.
        limit: number of instances; fewer if there are fewer pairs of query and class.

    Returns:
        ``pred_masks`` bool (N, *output_size), ``pred_boxes``, ``scores``, ``pred_classes``, highest
        score first.
    """
    scores = class_scores(outputs["pred_logits"], outputs["pred_object_logits"])
    scores, queries, classes = select_top(scores, limit)
    # A query may be chosen with several classes: its mask is made once.
    queries, mask_of_pair = queries.unique(return_inverse=True)
    masks, probabilities = [], []
    for embed in outputs["mask_embed"][queries].split(_MASKS_AT_ONCE):
        logits = mask_logits(embed, outputs["mask_features"])
        logits = restore_masks(logits, padded_size, image_size, output_size)
        masks.append(logits > 0)
        probabilities.append(mean_mask_probability(logits))
    masks = torch.cat(masks)
    # A sharp mask is a better prediction: its probability is part of the score, as published.
    scores, order = (scores * torch.cat(probabilities)[mask_of_pair]).sort(descending=True)
    mask_of_pair = mask_of_pair[order]

    instances = Instances(output_size)
    instances.pred_masks = masks[mask_of_pair]
    instances.pred_boxes = Boxes(mask_boxes(masks)[mask_of_pair])
    instances.scores = scores
    instances.pred_classes = classes[order]
    return instances
