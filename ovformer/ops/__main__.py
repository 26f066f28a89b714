"""``python -m ovformer.ops``: list the kernels of deformable attention and test them."""

import logging
import os
import sys

import torch

from ovformer.ops import self_test
from ovformer.ops.ms_deform_attn import KERNELS, choose_kernel, load_kernel

SHAPES = ((12, 20), (24, 40), (48, 80))  # strides 32, 16 and 8 of an image of 360x640, padded
SMALL_SHAPES = ((3, 5), (6, 10), (12, 20))  # in float32 a location is more exact on a small map
HEADS, CHANNELS, POINTS = 8, 32, 4
TOKENS = sum(height * width for height, width in SHAPES)


def list_devices() -> list[torch.device]:
    """Return this machine's types of devices that have a kernel."""
    names = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return [torch.device(name) for name in names]


def print_kernels(device: torch.device) -> list[str]:
    """Print which kernels a device can use and why not the others; return the usable ones."""
    usable = []
    for name in KERNELS:
        reason = load_kernel(name).why_unavailable(device)
        print(f"  {name:<8} {'usable' if reason is None else f'not usable: {reason}'}")
        if reason is None:
            usable.append(name)
    return usable


def print_self_test(name: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Print a kernel's differences from PyTorch and its times; return whether it is correct."""
    kernel = load_kernel(name)
    sizes = (HEADS, CHANNELS, POINTS, dtype, device)
    found = self_test.measure_differences(
        name, self_test.random_inputs(SMALL_SHAPES, 2, 1000, *sizes)
    )
    right = self_test.within_tolerance(found, dtype)
    inputs = self_test.random_inputs(SHAPES, 1, TOKENS, *sizes)
    grad = torch.randn(1, TOKENS, HEADS * CHANNELS).to(inputs[0])
    forward = self_test.time_call(lambda: kernel.forward(*inputs), device)
    backward = self_test.time_call(lambda: kernel.backward(grad, *inputs), device)
    print(
        f"  {name:<8} {str(dtype).removeprefix('torch.'):<9} {1e3 * forward:9.2f} ms "
        f"{1e3 * backward:9.2f} ms {max(found.values()):11.1e}  {'' if right else 'WRONG'}"
    )
    return right


def main() -> None:
    """Print the report; exit with status 1 if a kernel is wrong or the wanted one can't be used."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    print(f"OVFORMER_MSDA={os.environ.get('OVFORMER_MSDA', 'auto')}")
    all_right = True
    for device in list_devices():
        print(f"\n{device}:")
        usable = print_kernels(device)
        try:
            choose_kernel(device)
        except (ValueError, RuntimeError) as error:
            print(error)
            all_right = False
        print(
            f"Self-test, {TOKENS} queries, {HEADS} heads of {CHANNELS} channels, {len(SHAPES)} "
            f"levels, {POINTS} points, {torch.get_num_threads()} threads:\n"
            f"  {'kernel':<8} {'type':<9} {'forward':>12} {'backward':>12} {'difference':>11}"
        )
        half = [torch.float16, torch.bfloat16] if device.type == "cuda" else []
        for dtype in (torch.float32, *half):
            for name in usable:
                all_right = print_self_test(name, dtype, device) and all_right
    sys.exit(0 if all_right else 1)


if __name__ == "__main__":
    main()
