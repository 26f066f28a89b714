"""Multi-scale deformable attention in Triton: for GPUs without the compiled CUDA kernel.

Legend: N batch, S tokens of all levels, M heads, D channels of a head, L levels, P points,
Lq queries.
"""

import torch
from torch import Tensor

try:
    from ovformer.ops import triton_kernels as kernels
except ModuleNotFoundError as error:
    if error.name != "triton":
        raise
    kernels = None

NUMBERS = 1024  # rows times channels of one program: 8 for each thread of 4 warps


def why_unavailable(device: torch.device) -> str | None:
    """Return why this kernel can't run on a device, or None."""
    if kernels is None:
        return "the package triton is not installed"
    return None if device.type == "cuda" else "it is for GPUs"


def forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Return the output (N, Lq, M * D); see :mod:`ovformer.ops.ms_deform_attn`."""
    batch, _, heads, channels = value.shape
    output = value.new_empty(batch, sampling_locations.shape[1], heads * channels)
    levels = _on_device(value, spatial_shapes, level_start_index)
    _launch(kernels.forward_kernel, levels, value, sampling_locations, attention_weights, output)
    return output


def backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of value, sampling locations and attention weights.

    The gradient of value is summed in an order that differs from call to call.
    """
    inputs = (value, sampling_locations, attention_weights)
    # Many samples add to one pixel: summed in 16 bits, small shares would be lost.
    grad_value = torch.zeros_like(value, dtype=sampling_locations.dtype)
    gradients = (grad_value, *(torch.empty_like(x) for x in inputs[1:]))
    levels = _on_device(value, spatial_shapes, level_start_index)
    _launch(kernels.backward_kernel, levels, *inputs, grad_output, *gradients)
    return grad_value.to(value.dtype), *gradients[1:]


def _on_device(value: Tensor, spatial_shapes: Tensor, level_start_index: Tensor) -> Tensor:
    """Return height, width and first token of each level, (L, 3), without waiting for the GPU."""
    levels = torch.cat([spatial_shapes, level_start_index[:, None]], dim=1)
    return levels.to(value.device, non_blocking=True)


def _launch(
    kernel, levels: Tensor, value: Tensor, locations: Tensor, weights: Tensor, *others: Tensor
) -> None:
    """Launch a kernel on the value's device and current stream; each program takes a few rows."""
    batch, tokens, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    rows = batch * queries * heads
    block = kernels.next_power_of_2(max(channels, 1))
    rows_per_program = max(NUMBERS // block, 1)
    # CUDA refuses to launch a grid without programs.
    if rows == 0:
        return
    sizes = (rows, tokens, heads, channels, queries, len(levels), points)
    with torch.cuda.device_of(value):
        kernel[(-(-rows // rows_per_program),)](  # rounded up
            *(levels, value, locations, weights, *others, *sizes),
            ROWS=rows_per_program,
            BLOCK=block,
        )
