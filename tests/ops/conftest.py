"""Fixtures of the tests of deformable attention: each kernel, and no memory of earlier choices."""

import shutil
from collections.abc import Iterator

import pytest
import torch

from ovformer.ops import ms_deform_attn, ms_deform_attn_cpu

CPU = torch.device("cpu")


@pytest.fixture
def fresh_choice() -> Iterator[None]:
    """The choice of a kernel, made and logged anew."""
    caches = (ms_deform_attn._choose_kernel, ms_deform_attn_cpu._load)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.fixture(params=ms_deform_attn.KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of each kernel that can run on a CPU, which the operator then uses."""
    name = request.param
    if reason := ms_deform_attn.load_kernel(name).unavailable(CPU):
        if name == "cpu" and shutil.which("g++"):
            pytest.fail(reason)
        pytest.skip(f"{name}: {reason}")
    monkeypatch.setenv("OVFORMER_MSDA", name)
    return name
