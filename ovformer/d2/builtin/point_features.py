"""PointRend's points (https://arxiv.org/abs/1912.08193): sampling maps, choosing uncertain points.

Legend: N maps, C channels, P points, H W pixels. Points are (x, y) in [0, 1].
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def point_sample(input: Tensor, point_coords: Tensor, **kwargs: Any) -> Tensor:
    """Sample feature maps at points, bilinearly.

    Args:
        input: (N, C, H, W).
        point_coords: (N, P, 2) or (N, H', W', 2), (x, y) in [0, 1].
        kwargs: of :func:`torch.nn.functional.grid_sample`.

    Returns:
        (N, C, P) or (N, C, H', W').
    """
    is_point_list = point_coords.dim() == 3
    # grid_sample counts from -1 to 1.
    grid = 2.0 * (point_coords.unsqueeze(2) if is_point_list else point_coords) - 1.0
    sampled = F.grid_sample(input, grid, **kwargs)
    return sampled.squeeze(3) if is_point_list else sampled


def get_uncertain_point_coords_with_randomness(
    coarse_logits: Tensor,
    uncertainty_func: Callable[[Tensor], Tensor],
    num_points: int,
    oversample_ratio: float,
    importance_sample_ratio: float,
) -> Tensor:
    """Choose points where a prediction is uncertain, and random ones (PointRend, section 3.1).

    Random numbers are drawn in this order: (N, P * oversample_ratio, 2) candidates, then the
    random points.

    Args:
        coarse_logits: (N, C, H, W).
        uncertainty_func: maps logits (N, C, P) at points to uncertainties (N, 1, P).
        num_points: P.
        oversample_ratio: candidates per point, at least 1.
        importance_sample_ratio: share of the points that are chosen for their uncertainty.

    Returns:
        (N, P, 2): the uncertain points, then the random ones.

    Raises:
        AssertionError: a ratio is out of its range (detectron2's type).
    """
    if oversample_ratio < 1 or not 0 <= importance_sample_ratio <= 1:
        raise AssertionError(
            "Expected an oversample ratio >= 1 and an importance sample ratio in [0, 1], got "
            f"{oversample_ratio} and {importance_sample_ratio}"
        )
    count, device = coarse_logits.shape[0], coarse_logits.device
    candidates = torch.rand(count, int(num_points * oversample_ratio), 2, device=device)
    # The uncertainty of the interpolated logit; interpolating uncertainties would miss edges.
    logits = point_sample(coarse_logits, candidates, align_corners=False)
    num_uncertain = int(importance_sample_ratio * num_points)
    best = uncertainty_func(logits)[:, 0].topk(num_uncertain, dim=1).indices
    points = candidates.gather(1, best.unsqueeze(2).expand(-1, -1, 2))
    if num_uncertain == num_points:
        return points
    random_points = torch.rand(count, num_points - num_uncertain, 2, device=device)
    return torch.cat([points, random_points], dim=1)
