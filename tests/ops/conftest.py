"""Fixtures of the tests of deformable attention: each kernel, and no memory of earlier choices."""

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ovformer.ops import (
    ms_deform_attn,
    ms_deform_attn_cpu,
    ms_deform_attn_cuda,
    ms_deform_attn_triton,
)
from ovformer.ops.build import CUDA_SOURCE

CPU = torch.device("cpu")
CUDA_ON_HOST = Path(__file__).parent / "cuda_on_host"
CACHES = (ms_deform_attn._choose_kernel, ms_deform_attn_cpu._load, ms_deform_attn_cuda._load)


@pytest.fixture
def fresh_choice() -> Iterator[None]:
    """The choice of a kernel, made and logged anew."""
    for cached in CACHES:
        cached.cache_clear()
    yield
    for cached in CACHES:
        cached.cache_clear()


@pytest.fixture(scope="session")
def cuda_on_host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The CUDA kernel's very source as a library for the CPU, with headers that play the GPU."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to run the CUDA source on the CPU")
    path = tmp_path_factory.mktemp("cuda") / "on_host.so"
    # As if for sm_90, which adds four numbers at once.
    flags = ["-O1", "-std=c++17", "-shared", "-fPIC", "-D__CUDA_ARCH__=900"]
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    line = ["g++", *flags, *warnings, f"-I{CUDA_ON_HOST}", "-x", "c++", CUDA_SOURCE, "-o", path]
    subprocess.run(line, check=True)
    library = ctypes.CDLL(str(path))
    ms_deform_attn_cuda.declare_return_types(library)
    return library


@pytest.fixture
def cuda_kernel_on_host(cuda_on_host: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """The module of the CUDA kernel takes the CPU for a GPU: device 0 with the stream 0."""
    changes = {
        "_load": lambda: (cuda_on_host, None),
        "_index": lambda device: 0,
        "_stream": lambda device: 0,
        "why_unavailable": lambda device: None,
    }
    for name, change in changes.items():
        monkeypatch.setattr(ms_deform_attn_cuda, name, change)
    return cuda_on_host


@pytest.fixture(params=ms_deform_attn.KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of each kernel, which the operator then uses, on the CPU."""
    name = request.param
    if name == "cuda":
        request.getfixturevalue("cuda_kernel_on_host")
    if name == "triton":
        if ms_deform_attn_triton.kernels is None:
            pytest.skip("needs triton")
        if torch.cuda.is_available():
            pytest.skip("triton compiles for the GPU here: see test_kernels_on_gpu.py")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        monkeypatch.setattr(ms_deform_attn_triton, "why_unavailable", lambda device: None)
    if reason := ms_deform_attn.load_kernel(name).why_unavailable(CPU):
        if name == "cpu" and shutil.which("g++"):
            pytest.fail(reason)
        pytest.skip(f"{name}: {reason}")
    monkeypatch.setenv("OVFORMER_MSDA", name)
    return name
