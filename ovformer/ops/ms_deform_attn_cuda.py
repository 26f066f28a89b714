"""Multi-scale deformable attention on NVIDIA GPUs, in CUDA C++.

``python -m ovformer.ops.build`` compiles it beforehand; this module only loads the library.

Legend: N batch, S tokens of all levels, M heads, D channels of a head, L levels, P points,
Lq queries.
"""

import ctypes
import functools

import torch
from torch import Tensor

from ovformer.ops.build import find_cuda_library
from ovformer.ops.extension import BuildError, load_library

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def why_unavailable(device: torch.device) -> str | None:
    """Return why this kernel can't run on a device, or None."""
    if device.type != "cuda":
        return "it is for NVIDIA GPUs"
    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    library, reason = _load()
    if library is None:
        return reason
    error = library.ms_deform_attn_usable(_index(device))
    return error and f"{error.decode()} (`python -m ovformer.ops.build` compiles it for more GPUs)"


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
    inputs = (value, sampling_locations, attention_weights)
    _call("forward", spatial_shapes, level_start_index, inputs, (), (output,))
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
    _call("backward", spatial_shapes, level_start_index, inputs, (grad_output,), gradients)
    return grad_value.to(value.dtype), *gradients[1:]


class _Sizes(ctypes.Structure):
    """The struct ``Sizes`` of the CUDA source."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("batch", "tokens", "heads", "channels", "queries", "levels", "points")
        ),
        ("shapes", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
    ]


def _call(
    function: str,
    shapes: Tensor,
    starts: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    grad_output: tuple[Tensor, ...],
    results: tuple[Tensor, ...],
) -> None:
    """Launch a function of the library on the tensors' device and current stream.

    Raises:
        ValueError: a tensor has the wrong shape, dtype or device.
        RuntimeError: CUDA reports an error.
    """
    value, locations, weights = inputs
    _check(value, shapes, starts, locations, weights, *grad_output)
    _, queries, _, levels, points, _ = locations.shape
    sizes = _Sizes(*value.shape, queries, levels, points, *(x.data_ptr() for x in (shapes, starts)))
    name = f"ms_deform_attn_{function}_{str(value.dtype).removeprefix('torch.')}"
    pointers = (ctypes.c_void_p(x.data_ptr()) for x in (*grad_output, *inputs, *results))
    stream = ctypes.c_void_p(_stream(value.device))
    with torch.cuda.device_of(value):
        function = getattr(_load()[0], name)
        error = function(ctypes.byref(sizes), _index(value.device), stream, *pointers)
    if error:
        raise RuntimeError(f"{name} on {value.device}: {error.decode()}")


def _check(
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    locations: Tensor,
    weights: Tensor,
    grad_output: Tensor | None = None,
) -> None:
    """Raise ValueError for a wrong tensor: the library would read or write outside its memory."""
    if value.dtype not in DTYPES:
        raise ValueError(f"ms_deform_attn: value is {value.dtype}, expected one of {DTYPES}")
    batch, _, heads, channels = value.shape
    # The library's functions are named by the dtype of value alone; it fixes the others.
    accurate = torch.promote_types(value.dtype, torch.float32)
    host, levels = torch.device("cpu"), len(shapes)
    rows = (batch, locations.shape[1], heads)
    samples = (*rows, levels, *locations.shape[4:5])
    expected = {
        "value": (value, value.shape, value.dtype, value.device),
        "spatial_shapes": (shapes, (levels, 2), torch.int64, host),
        "level_start_index": (starts, (levels,), torch.int64, host),
        "sampling_locations": (locations, (*samples, 2), accurate, value.device),
        "attention_weights": (weights, samples, accurate, value.device),
    }
    if grad_output is not None:
        shape = (*rows[:2], heads * channels)
        expected["grad_output"] = (grad_output, shape, value.dtype, value.device)
    for name, (x, shape, dtype, device) in expected.items():
        wanted = (tuple(shape), dtype, device, True)
        if (tuple(x.shape), x.dtype, x.device, x.is_contiguous()) != wanted:
            kind = "contiguous" if x.is_contiguous() else "strided"
            raise ValueError(
                f"ms_deform_attn: {name} is {tuple(x.shape)}, {x.dtype} on {x.device}, {kind}; "
                f"expected {tuple(shape)}, {dtype} on {device}, contiguous"
            )


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """Return the library, or None and the reason."""
    path = find_cuda_library()
    if path is None:
        return None, "it is not compiled: `python -m ovformer.ops.build` does so (needs nvcc)"
    try:
        library = load_library(path)
    except BuildError as error:
        return None, str(error)
    declare_return_types(library)
    return library, None


def declare_return_types(library: ctypes.CDLL) -> None:
    """Declare that the library's functions return None or an error message."""
    library.ms_deform_attn_usable.restype = ctypes.c_char_p
    for dtype in DTYPES:
        for function in ("forward", "backward"):
            name = f"ms_deform_attn_{function}_{str(dtype).removeprefix('torch.')}"
            getattr(library, name).restype = ctypes.c_char_p
