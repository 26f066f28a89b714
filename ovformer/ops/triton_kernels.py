"""Triton programs of multi-scale deformable attention; see ``ms_deform_attn_triton.py``.

A program takes ROWS rows, each one head of one query, and BLOCK channels. BLOCK is a power of two;
channels beyond the last are masked. Sums have the dtype of the sampling locations.

``levels`` is (L, 3): height, width, first token. Other arrays and sizes as in the legend: N batch,
S tokens of all levels, M heads, D channels of a head, L levels, P points, Lq queries.
"""

import triton
import triton.language as tl
from triton import next_power_of_2

__all__ = ["backward_kernel", "forward_kernel", "next_power_of_2"]

# Sizes that differ from call to call: Triton must not compile a kernel for each value.
VARYING = ["rows", "tokens", "queries"]


@triton.jit
def _locate(levels, level, locations, sample, active):
    """Return the pixel up left of each location and the shares; `near`: any pixel is in the map."""
    height, width = tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1)
    x = tl.load(locations + 2 * sample, mask=active, other=0.0) * width - 0.5
    y = tl.load(locations + 2 * sample + 1, mask=active, other=0.0) * height - 0.5
    near = active & (x >= -1) & (x < width) & (y >= -1) & (y < height)  # false for NaN
    x, y = tl.where(near, x, 0.0), tl.where(near, y, 0.0)
    column, row = tl.floor(x), tl.floor(y)
    return near, height, width, row.to(tl.int64), column.to(tl.int64), y - row, x - column


@triton.jit
def _corner(head, start, row, column, height, width, stride, near, channel, within):
    """Return the offsets of a pixel's channels, and a mask of those that exist."""
    inside = near & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    pixel = head + (start + row * width + column) * stride
    return pixel[:, None] + channel[None, :], inside[:, None] & within[None, :]


@triton.jit(do_not_specialize=VARYING)
def forward_kernel(
    levels,
    value,
    locations,
    weights,
    output,
    rows,
    tokens,
    heads,
    channels,
    queries,
    level_count,
    points,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the output (N, Lq, M, D)."""
    accurate = weights.dtype.element_ty
    # int64, as an array may have more than 2**31 numbers.
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    active, within = row < rows, channel < channels
    stride = heads * channels
    # Rows are ordered (N, Lq, M): the offset of a row's head in the first token of its batch.
    head = (row // heads // queries * tokens * heads + row % heads) * channels
    sample = row * level_count * points
    sums = tl.zeros((ROWS, BLOCK), dtype=accurate)
    for level in range(level_count):
        start = tl.load(levels + 3 * level + 2)
        for _ in range(points):
            near, height, width, i, j, down, right = _locate(
                levels, level, locations, sample, active
            )
            weight = tl.load(weights + sample, mask=near, other=0.0)
            for corner in tl.static_range(4):
                y, x = i + corner // 2, j + corner % 2
                at, inside = _corner(
                    head, start, y, x, height, width, stride, near, channel, within
                )
                share = weight * (down if corner // 2 else 1 - down)
                share = share * (right if corner % 2 else 1 - right)
                numbers = tl.load(value + at, mask=inside, other=0.0).to(accurate)
                sums += share[:, None] * numbers
            sample += 1
    at = row[:, None] * channels + channel[None, :]
    sums = sums.to(output.dtype.element_ty)
    tl.store(output + at, sums, mask=active[:, None] & within[None, :])


@triton.jit
def _visit(value, grad_value, at, inside, share, grad):
    """Add a share of the output's gradient to that of a pixel; return the pixel's values."""
    # Atomic, as samples of other programs may be next to the same pixel.
    tl.atomic_add(grad_value + at, share[:, None] * grad, mask=inside, sem="relaxed")
    return tl.load(value + at, mask=inside, other=0.0).to(grad.dtype)


@triton.jit(do_not_specialize=VARYING)
def backward_kernel(
    levels,
    value,
    locations,
    weights,
    grad_output,
    grad_value,
    grad_locations,
    grad_weights,
    rows,
    tokens,
    heads,
    channels,
    queries,
    level_count,
    points,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add to the gradient of value (N, S, M, D); write those of locations and weights."""
    # int64, as an array may have more than 2**31 numbers.
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    active, within = row < rows, channel < channels
    stride = heads * channels
    # Rows are ordered (N, Lq, M): the offset of a row's head in the first token of its batch.
    head = (row // heads // queries * tokens * heads + row % heads) * channels
    sample = row * level_count * points
    at = row[:, None] * channels + channel[None, :]
    grad = tl.load(grad_output + at, mask=active[:, None] & within[None, :], other=0.0)
    grad = grad.to(weights.dtype.element_ty)
    for level in range(level_count):
        start = tl.load(levels + 3 * level + 2)
        for _ in range(points):
            near, height, width, i, j, down, right = _locate(
                levels, level, locations, sample, active
            )
            weight = tl.load(weights + sample, mask=near, other=0.0)
            up, left = 1 - down, 1 - right
            at, inside = _corner(head, start, i, j, height, width, stride, near, channel, within)
            up_left = _visit(value, grad_value, at, inside, weight * up * left, grad)
            at, inside = _corner(
                head, start, i, j + 1, height, width, stride, near, channel, within
            )
            up_right = _visit(value, grad_value, at, inside, weight * up * right, grad)
            at, inside = _corner(
                head, start, i + 1, j, height, width, stride, near, channel, within
            )
            down_left = _visit(value, grad_value, at, inside, weight * down * left, grad)
            at, inside = _corner(
                head, start, i + 1, j + 1, height, width, stride, near, channel, within
            )
            down_right = _visit(value, grad_value, at, inside, weight * down * right, grad)
            # The slopes of bilinear interpolation are differences of the four corners. Locations
            # are shares of the map, so their gradients have the factors width and height.
            above, below = up_right - up_left, down_right - down_left
            top, bottom = up_left + right[:, None] * above, down_left + right[:, None] * below
            across, along = above + down[:, None] * (below - above), bottom - top
            grad_x = weight * width * tl.sum(grad * across, axis=1)
            grad_y = weight * height * tl.sum(grad * along, axis=1)
            grad_weight = tl.sum(grad * (top + down[:, None] * along), axis=1)
            tl.store(grad_locations + 2 * sample, grad_x, mask=active)
            tl.store(grad_locations + 2 * sample + 1, grad_y, mask=active)
            tl.store(grad_weights + sample, grad_weight, mask=active)
            sample += 1
