"""Multi-scale deformable attention (Deformable DETR, https://arxiv.org/abs/2010.04159, equation 3).

Legend: N batch, S tokens of all levels, M heads, D channels of a head, L levels, P points,
Lq queries.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Sum values sampled bilinearly at given places of several feature maps, with given weights.

    Outside a map the value is zero. Differentiable in ``value``, ``sampling_locations`` and
    ``attention_weights``. 16-bit inputs are computed in float32.

    Args:
        value: (N, S, M, D); the tokens of a level are its pixels, row by row.
        spatial_shapes: (L, 2) integers, height and width in pixels of each level. They are read
            on the host, so a tensor on the CPU saves a synchronisation.
        level_start_index: (L,) integers, position of each level's first token.
        sampling_locations: (N, Lq, M, L, P, 2), x and y; 0 and 1 are the outer edges of the map.
        attention_weights: (N, Lq, M, L, P).

    Returns:
        (N, Lq, M * D), of the type of ``value``.

    Raises:
        ValueError: the shapes do not fit together.
    """
    levels = _check_inputs(
        value, spatial_shapes, level_start_index, sampling_locations, attention_weights
    )
    batch, _, heads, _ = value.shape
    dtype = torch.promote_types(value.dtype, sampling_locations.dtype)
    dtype = torch.promote_types(dtype, torch.float32)

    # One image per (batch element, head): the channels of a head are sampled together.
    maps = value.to(dtype).permute(0, 2, 3, 1).flatten(0, 1)  # (N*M, D, S)
    grids = (2 * sampling_locations.to(dtype) - 1).transpose(1, 2).flatten(0, 1)
    weights = attention_weights.to(dtype).transpose(1, 2).flatten(0, 1).unsqueeze(1)
    output = maps.new_zeros(())
    for level, (start, height, width) in enumerate(levels):
        sampled = F.grid_sample(
            maps[..., start : start + height * width].unflatten(2, (height, width)),
            grids[:, :, level],
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )  # (N*M, D, Lq, P)
        output = output + (sampled * weights[..., level, :]).sum(-1)
    output = output.unflatten(0, (batch, heads)).flatten(1, 2).transpose(1, 2)
    return output.to(value.dtype)


def _check_inputs(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> list[tuple[int, int, int]]:
    """Return (first token, height, width) of each level, or say which shapes do not fit."""
    if value.dim() != 4 or sampling_locations.dim() != 6 or attention_weights.dim() != 5:
        raise ValueError(
            "ms_deform_attn: expected value (N, S, M, D), sampling_locations (N, Lq, M, L, P, 2) "
            f"and attention_weights (N, Lq, M, L, P), got {tuple(value.shape)}, "
            f"{tuple(sampling_locations.shape)} and {tuple(attention_weights.shape)}"
        )
    batch, tokens, heads, _ = value.shape
    shapes = [tuple(shape) for shape in spatial_shapes.tolist()]
    queries, points = attention_weights.shape[1], attention_weights.shape[4]
    expected = (batch, queries, heads, len(shapes), points)
    for name, shape, wanted in (
        ("attention_weights", attention_weights.shape, expected),
        ("sampling_locations", sampling_locations.shape, (*expected, 2)),
    ):
        if tuple(shape) != wanted:
            raise ValueError(
                f"ms_deform_attn: {name} is {tuple(shape)}, expected {wanted} from value "
                f"{tuple(value.shape)} and {len(shapes)} spatial_shapes"
            )
    starts = [0]
    for height, width in shapes:
        starts.append(starts[-1] + height * width)
    if starts.pop() != tokens or level_start_index.tolist() != starts:
        raise ValueError(
            f"ms_deform_attn: levels of {shapes} pixels start at tokens {starts}, but value has "
            f"{tokens} tokens and level_start_index is {level_start_index.tolist()}"
        )
    return [(start, *shape) for start, shape in zip(starts, shapes, strict=True)]
