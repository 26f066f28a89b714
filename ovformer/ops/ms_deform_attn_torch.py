"""Multi-scale deformable attention in PyTorch alone: it runs everywhere and is the reference.

Legend: N batch, S tokens of all levels, M heads, D channels of a head, L levels, P points,
Lq queries.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

BILINEAR, ZEROS = 0, 0  # interpolation and padding mode of grid_sample's backward


def why_unavailable(device: torch.device) -> str | None:
    """Return None: this kernel runs on every device."""
    return None


def forward(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[tuple[int, int]],
    level_start_index: Tensor | Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Return the output (N, Lq, M * D), differentiable; see :mod:`ovformer.ops.ms_deform_attn`."""
    batch, _, heads, channels = value.shape
    output = sampling_locations.new_zeros(batch * heads, channels, sampling_locations.shape[1])
    weights = _by_head(attention_weights)
    for level, maps, grids in _levels(value, spatial_shapes, level_start_index, sampling_locations):
        output = output + (_sample(maps, grids) * weights[:, None, :, level]).sum(-1)
    output = output.unflatten(0, (batch, heads)).flatten(1, 2).transpose(1, 2)
    return output.to(value.dtype).contiguous()


def backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of value, sampling locations and attention weights."""
    weights = _by_head(attention_weights)
    grad_output = grad_output.to(weights.dtype).unflatten(2, value.shape[2:])
    grad_output = grad_output.permute(0, 2, 3, 1).flatten(0, 1).unsqueeze(-1)  # (N*M, D, Lq, 1)
    grad_maps = [grad_output[:, :, :0, 0]]  # empty, for inputs without levels
    grad_grids = weights.new_zeros(*weights.shape, 2)
    grad_weights = torch.zeros_like(weights)
    # From the inputs alone, level by level: no samples of the forward pass are kept in memory.
    for level, maps, grids in _levels(value, spatial_shapes, level_start_index, sampling_locations):
        grad_weights[:, :, level] = (grad_output * _sample(maps, grids)).sum(1)
        grad_map, grad_grids[:, :, level] = torch.ops.aten.grid_sampler_2d_backward(
            grad_output * weights[:, None, :, level],
            maps,
            grids,
            BILINEAR,
            ZEROS,
            align_corners=False,
            output_mask=(True, True),
        )
        grad_maps.append(grad_map.flatten(2))
    batch, _, heads, _ = value.shape
    grad_value = torch.cat(grad_maps, dim=2).unflatten(0, (batch, heads)).permute(0, 3, 1, 2)

    def by_query(x: Tensor) -> Tensor:
        return x.unflatten(0, (batch, heads)).transpose(1, 2).contiguous()

    return (
        grad_value.to(value.dtype).contiguous(),
        by_query(2 * grad_grids),  # grids go from -1 to 1, sampling locations from 0 to 1
        by_query(grad_weights),
    )


def _by_head(x: Tensor) -> Tensor:
    """Reshape (N, Lq, M, ...) to (N*M, Lq, ...), as the channels of a head are sampled together."""
    return x.transpose(1, 2).flatten(0, 1)


def _levels(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[tuple[int, int]],
    level_start_index: Tensor | Sequence[int],
    sampling_locations: Tensor,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield index, maps (N*M, D, H, W) and grid (N*M, Lq, P, 2) of each level that has pixels."""
    tokens = value.to(sampling_locations.dtype).permute(0, 2, 3, 1).flatten(0, 1)  # (N*M, D, S)
    # grid_sample counts from -1 to 1, sampling locations from 0 to 1.
    grids = _by_head(2 * sampling_locations - 1)
    starts, shapes = (
        x.tolist() if isinstance(x, Tensor) else x for x in (level_start_index, spatial_shapes)
    )
    for level, (start, shape) in enumerate(zip(starts, shapes, strict=True)):
        # grid_sample refuses maps without pixels.
        if length := shape[0] * shape[1]:
            maps = tokens[..., start : start + length].unflatten(2, shape)
            yield level, maps, grids[:, :, level]


def _sample(maps: Tensor, grids: Tensor) -> Tensor:
    """Return (N*M, D, Lq, P) from maps (N*M, D, H, W) and grids (N*M, Lq, P, 2)."""
    return F.grid_sample(maps, grids, mode="bilinear", padding_mode="zeros", align_corners=False)
