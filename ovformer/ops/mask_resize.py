"""Mask logits and their resizing: products and resizing are linear, so their order may change.

Legend: ... leading dimensions (batch, frames), Q queries, Cm mask channels, N masks, H W pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def mask_logits(mask_embed: Tensor, mask_features: Tensor) -> Tensor:
    """Return the mask logits, in float32 also under autocast.

    Args:
        mask_embed: (..., Q, Cm).
        mask_features: (..., Cm, H, W).

    Returns:
        (..., Q, H, W).
    """
    with torch.autocast(mask_embed.device.type, enabled=False):
        return torch.einsum("...qc,...chw->...qhw", mask_embed.float(), mask_features.float())


def resize_mask_features(mask_features: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Resize mask features bilinearly to several sizes.

    The product of an embedding with the result is the resized mask of that embedding, so one
    resizing per size is enough for all queries and layers.

    Args:
        mask_features: (..., Cm, H, W).
        sizes: (height, width) in pixels.

    Returns:
        One (..., Cm, height, width) float32 tensor per size.
    """
    flat = mask_features.float().flatten(0, -4)
    return [
        F.interpolate(flat, size=size, mode="bilinear", align_corners=False).unflatten(
            0, mask_features.shape[:-3]
        )
        for size in sizes
    ]


def restore_masks(
    logits: Tensor,
    padded_size: tuple[int, int],
    image_size: tuple[int, int],
    output_size: tuple[int, int],
) -> Tensor:
    """Bring mask logits from the network's resolution to that of the original image.

    Args:
        logits: (N, H, W) of the padded network input.
        padded_size: height and width of the padded network input, in pixels.
        image_size: height and width of the network input without padding (bottom and right).
        output_size: height and width of the original image.

    Returns:
        (N, *output_size) logits.
    """
    logits = F.interpolate(logits[None], size=padded_size, mode="bilinear", align_corners=False)
    logits = logits[..., : image_size[0], : image_size[1]]
    return F.interpolate(logits, size=output_size, mode="bilinear", align_corners=False)[0]
