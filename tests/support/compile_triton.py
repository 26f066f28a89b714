"""Compile the Triton programs for GPUs that need not be there: `python compile_triton.py 90 80`."""

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ovformer.ops import triton_kernels

ARRAYS = {"forward_kernel": 1, "backward_kernel": 4}  # arrays behind the weights


def compile_all(capability: int) -> None:
    """Print the size of each program's machine code, for one kind of GPU."""
    for function, others in ARRAYS.items():
        kernel = getattr(triton_kernels, function)
        for value, accurate in (("fp32",) * 2, ("fp64",) * 2, ("fp16", "fp32"), ("bf16", "fp32")):
            like_value = {"value", "output", "grad_output"}
            types = ["*i64", *["*"] * (3 + others), *["i32"] * 7, "constexpr", "constexpr"]
            signature = {
                name: kind if kind != "*" else kind + (value if name in like_value else accurate)
                for name, kind in zip(kernel.arg_names, types, strict=True)
            }
            source = ASTSource(fn=kernel, signature=signature, constexprs={"ROWS": 32, "BLOCK": 32})
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
            print(f"sm_{capability} {function} {value}: {len(compiled.asm['cubin'])} bytes")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        compile_all(int(argument))
