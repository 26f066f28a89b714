"""Losses and matching costs of masks.

Legend: Q queries, N instances, P points. All inputs are float32 unless said otherwise.
"""

from torch import Tensor
from torch.nn import functional as F


def mask_bce_loss(logits: Tensor, labels: Tensor, num_masks: Tensor) -> Tensor:
    """Binary cross-entropy of matched masks: mean over points, sum over masks / ``num_masks``.

    Args:
        logits: (N, P) predicted mask logits at points.
        labels: (N, P) target masks at the same points, in [0, 1].
        num_masks: scalar that the sum is divided by.

    Returns:
        Scalar; 0 for no masks.
    """
    loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return loss.mean(1).sum() / num_masks


def dice_loss(logits: Tensor, labels: Tensor, num_masks: Tensor) -> Tensor:
    """Dice loss of matched masks, smoothed by 1.

    Source: V-Net, https://arxiv.org/abs/1606.04797, section 3, with sums in place of the sums of
    squares, as in Mask2Former.

    Args:
        logits: (N, P) predicted mask logits at points.
        labels: (N, P) target masks at the same points, in [0, 1].
        num_masks: scalar that the sum is divided by.

    Returns:
        Scalar; 0 for no masks.
    """
    overlap = (logits.sigmoid() * labels).sum(1)
    size = logits.sigmoid().sum(1) + labels.sum(1)
    # With the 1, a mask that is empty and predicted as empty has no loss, and nothing is 0 / 0.
    return (1 - (2 * overlap + 1) / (size + 1)).sum() / num_masks


def pairwise_mask_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of each prediction with each target, mean over points.

    With softplus(-x) = softplus(x) - x the two terms of the cross-entropy need one matrix product.

    Args:
        logits: (Q, P) predicted mask logits at points.
        labels: (N, P) target masks at the same points, in [0, 1].

    Returns:
        (Q, N).
    """
    return (F.softplus(logits).sum(1, keepdim=True) - logits @ labels.T) / logits.shape[1]


def pairwise_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """Dice loss of each prediction with each target: (Q, P), (N, P) -> (Q, N)."""
    probability = logits.sigmoid()
    size = probability.sum(1, keepdim=True) + labels.sum(1)
    return 1 - (2 * probability @ labels.T + 1) / (size + 1)
