"""The Triton programs compile for GPUs, and their module says why it can't be used elsewhere."""

import os
import subprocess
import sys

import pytest
import torch

from ovformer.ops import ms_deform_attn_triton
from ovformer.ops.self_test import measure_differences, random_inputs, within_tolerance


def test_it_is_for_gpus_with_triton(monkeypatch) -> None:
    if ms_deform_attn_triton.kernels is not None:
        assert ms_deform_attn_triton.why_unavailable(torch.device("cuda")) is None
        assert ms_deform_attn_triton.why_unavailable(torch.device("cpu")) == "it is for GPUs"
    monkeypatch.setattr(ms_deform_attn_triton, "kernels", None)
    reason = ms_deform_attn_triton.why_unavailable(torch.device("cuda"))
    assert reason == "the package triton is not installed"


def test_without_triton_the_operator_works() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from ovformer.ops.ms_deform_attn import KERNELS, load_kernel\n"
        "import torch; print(load_kernel('triton').why_unavailable(torch.device('cuda')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "the package triton is not installed\n"


@pytest.mark.parametrize("kernel", ["triton"], indirect=True)
@pytest.mark.parametrize(("queries", "channels"), [(60, 8), (9, 200), (3, 1)])
def test_rows_of_several_programs(queries, channels, kernel) -> None:
    found = measure_differences(kernel, random_inputs([(3, 4)], 1, queries, 3, channels, 1))
    assert within_tolerance(found, torch.float64), found


@pytest.mark.slow
def test_the_programs_compile_for_a_gpu(tmp_path) -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    line = [sys.executable, __file__, "90"]
    run = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(run.stdout.splitlines()) == 8


def compile_all(capability: int) -> None:
    """Print the size of each program's machine code, for one kind of GPU, which need not exist."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ovformer.ops import triton_kernels

    # Number of arrays that follow the weights.
    for function, others in {"forward_kernel": 1, "backward_kernel": 4}.items():
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
    compile_all(int(sys.argv[1]))
