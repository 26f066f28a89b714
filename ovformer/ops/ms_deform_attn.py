"""Multi-scale deformable attention (Deformable DETR, https://arxiv.org/abs/2010.04159, equation 3).

One PyTorch operator, ``ovformer::ms_deform_attn``, with several kernels behind it. A kernel is a
module of three functions on checked, contiguous inputs:

* ``why_unavailable(device) -> str | None``: the reason why it can't run there, or None;
* ``forward(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)``;
* ``backward(grad_output, value, ...)``: the gradients of ``value``, ``sampling_locations`` and
  ``attention_weights``.

It gets ``spatial_shapes`` and ``level_start_index`` as int64 tensors on the CPU, and
``sampling_locations`` and ``attention_weights`` in float32, or float64 if ``value`` is float64.

Legend: N batch, S tokens of all levels, M heads, D channels of a head, L levels, P points,
Lq queries.
"""

import functools
import importlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# Kernel -> its type of device (None: any), fastest first: ``auto`` takes the first that can run.
KERNELS = {"cuda": "cuda", "triton": "cuda", "cpu": "cpu", "torch": None}

_uses_torch_operators = False


@contextmanager
def use_torch_operators() -> Iterator[None]:
    """Compute with PyTorch's own operators in a ``with`` block, so that a trace needs no others.

    Such a trace runs without OVFormer, and in other software. If the sizes of levels are given as
    integers, it may have symbols for them and then takes any size.
    """
    global _uses_torch_operators
    before, _uses_torch_operators = _uses_torch_operators, True
    try:
        yield
    finally:
        _uses_torch_operators = before


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[tuple[int, int]],
    level_start_index: Tensor | Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Sample several feature maps bilinearly and return the weighted sum of the samples.

    Outside a map the value is zero. Differentiable in ``value``, ``sampling_locations`` and
    ``attention_weights``. Values may have 16 bits, also under autocast; sums, locations and
    weights are computed in float32 then.

    Args:
        value: (N, S, M, D); the tokens of a level are its pixels, row by row.
        spatial_shapes: (L, 2) integers, height and width in pixels of each level. The
            host reads them, so a tensor on a GPU costs a synchronisation.
        level_start_index: (L,) integers, index of each level's first token.
        sampling_locations: (N, Lq, M, L, P, 2), x and y; 0 and 1 are the outer edges of a map.
        attention_weights: (N, Lq, M, L, P).

    Returns:
        (N, Lq, M * D), in the dtype of ``value``.

    Raises:
        ValueError: the shapes do not match, or ``$OVFORMER_MSDA`` is not a kernel.
        RuntimeError: ``$OVFORMER_MSDA`` names a kernel that can't be used here.
    """
    # Outside of the operator, so that autograd casts the gradients back to 16 bits.
    samples = _to_full_precision(value, sampling_locations, attention_weights)
    if _uses_torch_operators:
        # Called directly: a trace would hold the operator as one opaque node.
        return load_kernel("torch").forward(value, spatial_shapes, level_start_index, *samples)
    sizes = (to_host_tensor(spatial_shapes), to_host_tensor(level_start_index))
    return _forward(value, *sizes, *samples)


def to_host_tensor(numbers: Tensor | Sequence) -> Tensor:
    """Return sizes or indices as a tensor; one that is made here is on the CPU."""
    return numbers if isinstance(numbers, Tensor) else torch.tensor(numbers, device="cpu")


def choose_kernel(device: torch.device) -> str:
    """Return the name of the kernel to use, from ``$OVFORMER_MSDA`` (default ``auto``).

    Raises:
        ValueError: ``$OVFORMER_MSDA`` is neither ``auto`` nor a kernel.
        RuntimeError: ``$OVFORMER_MSDA`` names a kernel that can't be used on this device.
    """
    return _choose_kernel(device, os.environ.get("OVFORMER_MSDA", "auto"))


def load_kernel(name: str) -> ModuleType:
    """Return the module of a kernel, one of ``KERNELS``."""
    return importlib.import_module(f"ovformer.ops.ms_deform_attn_{name}")


# The variable is an argument, so that a change of it is noticed in spite of the cache.
@functools.cache
def _choose_kernel(device: torch.device, wanted: str) -> str:
    """Choose a kernel as :func:`choose_kernel`, and log it once per device."""
    if wanted != "auto" and wanted not in KERNELS:
        known = ", ".join(["auto", *KERNELS])
        raise ValueError(f"OVFORMER_MSDA: unknown kernel {wanted!r}. Known: {known}")
    if wanted != "auto":
        if reason := load_kernel(wanted).why_unavailable(device):
            usable = [name for name in KERNELS if not load_kernel(name).why_unavailable(device)]
            raise RuntimeError(
                f"OVFORMER_MSDA={wanted}, but this kernel can't be used on {device}: {reason}. "
                f"Usable there: {', '.join(usable)}. `python -m ovformer.ops` says more."
            )
        logger.info("Deformable attention on %s: %s kernel (OVFORMER_MSDA)", device, wanted)
        return wanted
    skipped = []
    for name, device_type in KERNELS.items():
        if device_type not in (None, device.type):
            continue
        reason = load_kernel(name).why_unavailable(device)
        if reason is None:
            break
        skipped.append(f"; not {name}: {reason}")
    # PyTorch instead of a faster kernel costs much time, so it is a warning.
    level = logging.WARNING if name == "torch" and skipped else logging.INFO
    logger.log(level, "Deformable attention on %s: %s kernel%s", device, name, "".join(skipped))
    return name


def _to_full_precision(
    value: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Return locations and weights in float32, or float64 as the value: 16 bits are too coarse."""
    dtype = torch.promote_types(value.dtype, torch.float32)
    return sampling_locations.to(dtype), attention_weights.to(dtype)


@torch.library.custom_op("ovformer::ms_deform_attn", mutates_args=())
def _forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Run the chosen kernel; see :func:`ms_deform_attn`."""
    # Checked here, not by the caller: an exported program calls the operator alone.
    inputs = _check_inputs(
        value, spatial_shapes, level_start_index, sampling_locations, attention_weights
    )
    return load_kernel(choose_kernel(value.device)).forward(*inputs)


@torch.library.custom_op("ovformer::ms_deform_attn_backward", mutates_args=())
def _backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of value, sampling locations and attention weights."""
    inputs = _check_inputs(
        value, spatial_shapes, level_start_index, sampling_locations, attention_weights
    )
    # A gradient may be expanded, as that of a sum is; kernels read plain memory.
    kernel = load_kernel(choose_kernel(value.device))
    return kernel.backward(grad_output.contiguous(), *inputs)


@_forward.register_fake
def _(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
    batch, _, heads, channels = value.shape
    return value.new_empty(batch, sampling_locations.shape[1], heads * channels)


@_backward.register_fake
def _(grad_output, value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
    inputs = (value, sampling_locations, attention_weights)
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs)


def _save_inputs(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    grad_value, grad_locations, grad_weights = _backward(grad_output, *ctx.saved_tensors)
    return grad_value, None, None, grad_locations, grad_weights


_forward.register_autograd(_differentiate, setup_context=_save_inputs)


def _autocast(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
    """Keep the dtype of the value under autocast: reading it takes the time, not computing."""
    with torch.autocast(value.device.type, enabled=False):
        return ms_deform_attn(
            value, spatial_shapes, level_start_index, sampling_locations, attention_weights
        )


_library = torch.library.Library("ovformer", "FRAGMENT")
for _key in ("AutocastCPU", "AutocastCUDA", "AutocastMPS"):
    _library.impl("ms_deform_attn", _autocast, _key)


def _check_inputs(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, ...]:
    """Return contiguous inputs with sizes on the CPU; raise ValueError if they do not match."""
    if value.dim() != 4 or sampling_locations.dim() != 6 or attention_weights.dim() != 5:
        raise ValueError(
            "ms_deform_attn: expected value (N, S, M, D), sampling_locations (N, Lq, M, L, P, 2) "
            f"and attention_weights (N, Lq, M, L, P), got {tuple(value.shape)}, "
            f"{tuple(sampling_locations.shape)} and {tuple(attention_weights.shape)}"
        )
    accurate = torch.promote_types(value.dtype, torch.float32)
    for name, x in (
        ("sampling_locations", sampling_locations),
        ("attention_weights", attention_weights),
    ):
        if x.device != value.device or x.dtype != accurate:
            raise ValueError(
                f"ms_deform_attn: {name} is {x.dtype} on {x.device}, expected {accurate} on "
                f"{value.device}, for a value of {value.dtype}"
            )
    if spatial_shapes.dim() != 2 or spatial_shapes.shape[1] != 2:
        raise ValueError(
            f"ms_deform_attn: spatial_shapes is {tuple(spatial_shapes.shape)}, expected (L, 2)"
        )
    # Callers may pass any integer type on any device; kernels get one.
    spatial_shapes = spatial_shapes.to("cpu", torch.int64)
    level_start_index = level_start_index.to("cpu", torch.int64)
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
    negative = any(side < 0 for shape in shapes for side in shape)
    # A kernel would read outside of the value's memory.
    if starts.pop() != tokens or level_start_index.tolist() != starts or negative:
        raise ValueError(
            f"ms_deform_attn: levels of {shapes} pixels start at tokens {starts}, but value has "
            f"{tokens} tokens and level_start_index is {level_start_index.tolist()}"
        )
    sizes = (spatial_shapes, level_start_index)
    return tuple(x.contiguous() for x in (value, *sizes, sampling_locations, attention_weights))
