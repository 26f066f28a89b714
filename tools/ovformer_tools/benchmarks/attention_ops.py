"""Each kernel of the deformable attention that can run here, against the PyTorch one.

Sizes are those of the encoder: every pixel of three levels (strides 32, 16, 8) is a query, with 8
heads of 32 channels and 4 points. Half types are compared with the float32 PyTorch kernel, whose
gradient PyTorch's autograd computes here: the operator's own gradient keeps less, and is slower.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ovformer.arguments import choose_device, positive_int
from ovformer.ops.ms_deform_attn import KERNELS, load_kernel, ms_deform_attn
from ovformer_tools.benchmarks.measure import force_kernel, make_rows, measure

BASELINE = "torch"
STRIDES = (32, 16, 8)
HEADS, CHANNELS, POINTS = 8, 32, 4
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Largest difference from float32 PyTorch, relative to the largest value: a few roundings.
TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--device", default=choose_device(None), help="(default: %(default)s)")
    parser.add_argument(
        "--size",
        type=positive_int,
        nargs=2,
        action="append",
        metavar=("HEIGHT", "WIDTH"),
        help="of the image in pixels, repeatable (default: 360 640, and on a GPU also 480 853 and "
        "800 1333)",
    )
    parser.add_argument(
        "--batch", type=positive_int, default=1, help="images (default: %(default)s)"
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=DTYPES,
        help="of the values (default: float32, and on a GPU all)",
    )
    parser.add_argument("--kernel", nargs="+", choices=KERNELS, help="(default: all that can run)")
    parser.add_argument(
        "--repeats", type=positive_int, default=10, help="the best counts (default: 10)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the input (default: 0)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Check each kernel against the PyTorch one, and time both in turn.

    Raises:
        RuntimeError: a kernel does not agree with the PyTorch one.
    """
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    sizes = args.size or [[360, 640], *([[480, 853], [800, 1333]] if on_gpu else [])]
    unavailable = {name: _unavailable_reason(name, device) for name in args.kernel or KERNELS}
    names = [name for name, reason in unavailable.items() if reason is None]
    rows = []
    for size in sizes:
        for dtype in args.dtype or (DTYPES if on_gpu else ["float32"]):
            inputs = make_inputs(size, args.batch, DTYPES[dtype], device, args.seed)
            for what, function in (("forward", forward), ("forward+backward", forward_backward)):
                differences = _measure_differences(function, inputs, names, dtype)
                # The baseline comes first, and only once.
                ways = {
                    name: _bind(function, inputs, name)
                    for name in dict.fromkeys([BASELINE, *names])
                }
                constants = {"queries": inputs[0].shape[1], "type": dtype, "what": what}
                measured = make_rows(measure(ways, device, args.repeats), BASELINE, **constants)
                rows += [
                    {**row, "difference": differences.get(row["way"], 0.0)} for row in measured
                ]
    return {
        "batch": args.batch,
        **{f"not {name}": reason for name, reason in unavailable.items() if reason is not None},
        "rows": rows,
    }


def make_inputs(
    size: Sequence[int], batch: int, dtype: torch.dtype, device: torch.device, seed: int
) -> tuple[Tensor, ...]:
    """Return the operator's arguments; sampling locations are near each pixel, a few outside.

    Args:
        size: height and width in pixels; padded to a multiple of 32.
        batch: number of images.
        dtype: of the values; the rest is float32.
        device: of all but the sizes.
        seed: seed of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    padded = [-(-side // STRIDES[0]) * STRIDES[0] for side in size]
    shapes = torch.tensor([[side // stride for side in padded] for stride in STRIDES])
    starts = torch.cat((shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]))
    centres = torch.cat(
        [
            torch.stack(
                torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in (h, w)), indexing="ij")[::-1],
                dim=2,
            ).flatten(0, 1)
            for h, w in shapes.tolist()
        ]
    )
    tokens = len(centres)
    sizes = (batch, tokens, HEADS, len(STRIDES), POINTS)
    offsets = 4 * torch.randn(*sizes, 2, generator=generator) / shapes.flip(1)[:, None]
    weights = torch.randn(sizes, generator=generator).flatten(3).softmax(3).view(sizes)
    value = torch.randn(batch, tokens, HEADS, CHANNELS, generator=generator)
    differentiable = (
        value.to(device, dtype),
        (centres[:, None, None, None] + offsets).to(device),
        weights.to(device),
    )
    value, locations, weights = (x.requires_grad_() for x in differentiable)
    return value, shapes, starts, locations, weights


def forward(attend: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run the attention without a gradient."""
    with torch.no_grad():
        return [attend(*inputs)]


def forward_backward(attend: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run the attention and differentiate the sum of squares of its output."""
    output = attend(*inputs)
    return list(torch.autograd.grad(output.float().square().sum(), (inputs[0], *inputs[3:])))


def _bind(function: Callable, inputs: Sequence[Tensor], name: str) -> Callable[[], list[Tensor]]:
    attend = load_kernel(BASELINE).forward if name == BASELINE else ms_deform_attn

    def run_kernel() -> list[Tensor]:
        with force_kernel(name):
            return function(attend, inputs)

    return run_kernel


def _measure_differences(
    function: Callable, inputs: Sequence[Tensor], names: Sequence[str], dtype: str
) -> dict[str, float]:
    """Return each kernel's largest difference from the PyTorch one in float32, or raise."""
    exact = (inputs[0].detach().float().requires_grad_(), *inputs[1:])
    expected = _bind(function, exact, BASELINE)()
    differences = {}
    for name in names:
        got = _bind(function, inputs, name)()
        differences[name] = max(
            ((x.float() - y).abs().max() / y.abs().max()).item()
            for x, y in zip(got, expected, strict=True)
        )
        if not differences[name] <= TOLERANCES[dtype]:
            raise RuntimeError(
                f"kernel {name} differs from {BASELINE} by {differences[name]:.2g} of the largest "
                f"value, in {dtype}"
            )
    return differences


def _unavailable_reason(name: str, device: torch.device) -> str | None:
    if KERNELS[name] not in (None, device.type):
        return f"for {KERNELS[name]} only"
    return load_kernel(name).why_unavailable(device)
