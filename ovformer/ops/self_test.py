"""Compares the kernels of deformable attention with the PyTorch one, on random inputs.

Legend: N batch, M heads, D channels of a head, L levels, P points, Lq queries.
"""

from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import Tensor

from ovformer.ops.ms_deform_attn import load_kernel

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
RESULTS = ("output", "grad_value", "grad_sampling_locations", "grad_attention_weights")
# Largest difference from PyTorch in float64, relative to the largest value.
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
}


def random_inputs(
    shapes: Sequence[tuple[int, int]],
    batch: int = 2,
    queries: int = 3,
    heads: int = 2,
    channels: int = 3,
    points: int = 2,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Inputs:
    """Return inputs of the operator; some locations are outside of the maps, none near a kink.

    The gradient of a location jumps at the centre of a pixel, where roundings would matter.

    Args:
        shapes: height and width of each level in pixels; 0 is allowed.
        batch: N.
        queries: Lq.
        heads: M.
        channels: D.
        points: P.
        dtype: of the values; locations and weights have at least float32.
        device: of all tensors except shapes and starts.
        seed: of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = [height * width for height, width in shapes]
    sizes = (batch, queries, heads, len(shapes), points)
    value = torch.randn(batch, sum(lengths), heads, channels, generator=generator)
    spatial_shapes = torch.tensor(shapes, dtype=torch.int64).reshape(-1, 2)
    starts = torch.tensor([0, *lengths]).cumsum(0)[:-1]
    extents = spatial_shapes.flip(1)[:, None]  # width and height, (L, 1, 2)
    # From two pixels before the map to two behind it, a tenth of a pixel or more from any centre.
    pixels = torch.rand(*sizes, 2, generator=generator, dtype=torch.float64) * (extents + 4) - 2
    pixels = pixels.floor() + 0.1 + 0.8 * pixels.frac().abs()
    locations = (pixels + 0.5) / extents.clamp(min=1)
    weights = torch.randn(sizes, generator=generator).flatten(3).softmax(3).view(sizes)
    accurate = torch.promote_types(dtype, torch.float32)
    return (
        value.to(device, dtype),
        spatial_shapes,
        starts,
        locations.to(device, accurate),
        weights.to(device, accurate),
    )


def measure_differences(name: str, inputs: Inputs) -> dict[str, float]:
    """Compare a kernel, forward and backward, with the PyTorch one in float64.

    Args:
        name: of the kernel.
        inputs: those of :func:`random_inputs`.

    Returns:
        For each of ``RESULTS`` the largest difference, relative to the largest value.
    """
    value, shapes, starts, locations, weights = inputs
    generator = torch.Generator().manual_seed(1)
    size = (len(value), locations.shape[1], value.shape[2] * value.shape[3])
    grad_output = torch.randn(size, generator=generator).to(value)
    # The reference computes in float64, so that the difference is the kernel's error alone.
    exact = (value.double(), shapes, starts, locations.double(), weights.double())
    results = []
    for kernel, arguments in ((name, inputs), ("torch", exact)):
        module = load_kernel(kernel)
        grads = module.backward(grad_output.to(arguments[0].dtype), *arguments)
        results.append((module.forward(*arguments), *grads))
    found = {}
    for result, got, expected in zip(RESULTS, *results, strict=True):
        scale = expected.abs().max().item() if expected.numel() else 0.0
        difference = (got.double() - expected).abs().max().item() if expected.numel() else 0.0
        found[result] = difference / scale if scale else difference
    return found


def within_tolerance(found: dict[str, float], dtype: torch.dtype) -> bool:
    """Return whether all differences can be roundings; NaN cannot."""
    return all(difference <= TOLERANCES[dtype] for difference in found.values())


def time_call(function: Callable[[], object], device: torch.device, seconds: float = 0.4) -> float:
    """Call a function repeatedly and return its shortest time in seconds.

    Args:
        function: called at least twice, as the first call may prepare something.
        device: where it computes.
        seconds: how long to repeat.
    """
    best, end = float("inf"), perf_counter() + seconds
    for call in range(1000):
        # GPUs compute asynchronously: wait before and after, so that all of the call is timed.
        _wait_for(device)
        start = perf_counter()
        function()
        _wait_for(device)
        best = min(best, perf_counter() - start)
        if call and perf_counter() > end:
            break
    return best


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
