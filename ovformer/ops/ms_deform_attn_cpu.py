"""Multi-scale deformable attention on the CPU, in C++ that is compiled at the first use.

Legend: N batch, S tokens of all levels, M heads, D channels of a head, L levels, P points,
Lq queries.
"""

import ctypes
import functools
import os
import shlex
import shutil
from pathlib import Path

import torch
from torch import Tensor

from ovformer.ops.extension import BuildError, build_on_first_use

SOURCE = Path(__file__).parent / "csrc" / "ms_deform_attn_cpu.cpp"
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=c++17")
COMPILERS = ("g++", "c++", "clang++")


def why_unavailable(device: torch.device) -> str | None:
    """Return why this kernel can't run on a device, or None; compile it if necessary."""
    if device.type != "cpu":
        return "it is for the CPU"
    return _load()[1]


def forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Return the output (N, Lq, M * D); see :mod:`ovformer.ops.ms_deform_attn`."""
    batch, _, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    output = sampling_locations.new_empty(batch, queries, heads * channels)
    # The C++ source knows float32 and float64; 16-bit values are computed in float32.
    exact = value.to(sampling_locations.dtype)
    _call(
        "forward",
        _Sizes.of(value, spatial_shapes, level_start_index, sampling_locations),
        (exact, sampling_locations, attention_weights, output),
    )
    return output.to(value.dtype)


def backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of value, sampling locations and attention weights."""
    dtype = sampling_locations.dtype
    exact = value.to(dtype)
    inputs = (exact, sampling_locations, attention_weights)
    gradients = tuple(torch.empty_like(x) for x in inputs)
    _call(
        "backward",
        _Sizes.of(value, spatial_shapes, level_start_index, sampling_locations),
        (grad_output.to(dtype), *inputs, *gradients),
    )
    return gradients[0].to(value.dtype), gradients[1], gradients[2]


class _Sizes(ctypes.Structure):
    """The struct ``Sizes`` of the C++ source."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("batch", "tokens", "heads", "channels", "queries", "levels", "points")
        ),
        ("shapes", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        ("threads", ctypes.c_int),
    ]

    @classmethod
    def of(cls, value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor) -> "_Sizes":
        _, queries, _, levels, points, _ = locations.shape
        # Bare pointers: the caller keeps both tensors alive until the library returns.
        pointers = (shapes.data_ptr(), starts.data_ptr())
        return cls(*value.shape, queries, levels, points, *pointers, torch.get_num_threads())


def _call(function: str, sizes: _Sizes, tensors: tuple[Tensor, ...]) -> None:
    """Call a function of the library on the tensors' memory.

    Raises:
        MemoryError: there is no memory for the function's buffers.
    """
    dtype = str(tensors[0].dtype).removeprefix("torch.")
    function = getattr(_load()[0], f"ms_deform_attn_{function}_{dtype}")
    if function(ctypes.byref(sizes), *(ctypes.c_void_p(x.data_ptr()) for x in tensors)):
        raise MemoryError(f"ms_deform_attn: no memory for maps of {sizes.tokens} tokens")


# A failure is cached, too: a compiler that does not work is not tried for each batch.
@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """Return the library, or None and the reason."""
    compiler = shlex.split(os.environ.get("CXX", "")) or list(filter(shutil.which, COMPILERS))[:1]
    if not compiler:
        return None, f"none of {', '.join(COMPILERS)} is on PATH (CXX can name a C++ compiler)"
    try:
        return build_on_first_use(SOURCE, [*compiler, *FLAGS, *_openmp_of_torch()]), None
    except BuildError as error:
        return None, str(error)


def _openmp_of_torch() -> list[str]:
    """Return flags that link torch's own OpenMP library: two libraries would not share threads."""
    found = sorted(str(path) for path in Path(torch.__file__).parent.glob("lib/libgomp*.so*"))
    return ["-Wl,--no-as-needed", *found, "-Wl,--as-needed"] if found else []
