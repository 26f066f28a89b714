"""The CUDA kernel's module checks its inputs; its source is right beyond one launch."""

import ctypes

import pytest
import torch

from ovformer.ops import ms_deform_attn_cuda as cuda
from ovformer.ops.self_test import measure_differences, random_inputs, within_tolerance

NAMES = ("value", "spatial_shapes", "level_start_index", "sampling_locations", "attention_weights")


def inputs():
    return dict(zip(NAMES, random_inputs([(3, 4), (2, 2)], dtype=torch.float32), strict=True))


@pytest.mark.parametrize("dtype", cuda.DTYPES)
def test_more_levels_than_one_launch_takes_and_no_level(dtype, cuda_kernel_on_host) -> None:
    found = measure_differences("cuda", random_inputs([(1, 2)] * 300, 1, 3, 2, 16, 1, dtype))
    assert within_tolerance(found, dtype), found
    none = cuda.forward(*random_inputs([], channels=4, dtype=dtype))
    assert none.shape == (2, 3, 8) and not none.any()


@pytest.mark.parametrize("dtype", cuda.DTYPES)
def test_values_that_are_not_aligned_to_16_bytes(dtype, cuda_kernel_on_host) -> None:
    """A view into a larger tensor may begin anywhere; reading 16 bytes there fails on a GPU."""
    value, *others = random_inputs([(3, 4), (2, 2)], channels=16, dtype=dtype)
    shifted = torch.cat([value.new_zeros(1), value.flatten()])[1:].view_as(value)
    assert shifted.data_ptr() % 16
    assert cuda.forward(shifted, *others).equal(cuda.forward(value, *others))


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("value", torch.zeros(2, 16, 2, 3, dtype=torch.int32), "is torch.int32, expected"),
        ("value", torch.zeros(2, 16, 3, 2).transpose(2, 3), "is .* on cpu, strided; exp"),
        ("spatial_shapes", torch.zeros(2, 2), r"is \(2, 2\), torch.float32"),
        ("spatial_shapes", torch.zeros(2, 2, device="meta"), "is .* on meta"),
        ("level_start_index", torch.tensor([0]), r"is \(1,\).* expected \(2,\)"),
        ("sampling_locations", torch.zeros(2, 3, 2, 2, 2, 2).half(), "is .*float16"),
        ("sampling_locations", torch.zeros(2, 3, 2, 2, 2, 3), r"expected \(2, 3, 2, 2, 2, 2\)"),
        ("attention_weights", torch.zeros(2, 4, 2, 2, 2), r"is \(2, 4, 2"),
        ("attention_weights", torch.zeros(2, 3, 2, 2, 2, device="meta"), "is .* on meta"),
        ("grad_output", torch.zeros(2, 3, 7), r"is .* expected \(2, 3, 6\), torch.float32"),
        ("grad_output", torch.zeros(2, 3, 6).half(), r"is .* expected \(2, 3, 6\), torch.float32"),
    ],
)
def test_wrong_inputs_are_errors_before_the_library_is_called(
    name, wrong, message, monkeypatch
) -> None:
    monkeypatch.setattr(cuda, "_load", lambda: pytest.fail("the library was called"))
    tensors = {"grad_output": torch.zeros(2, 3, 6), **inputs(), name: wrong}
    if name == "value":
        tensors["grad_output"] = tensors["grad_output"].to(wrong.dtype)
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        cuda.backward(**tensors)
    if tensors.pop("grad_output") is not wrong:
        with pytest.raises(ValueError, match=f"{name}.*{message}"):
            cuda.forward(**tensors)


@pytest.mark.parametrize(
    ("index", "stream", "message"), [(1, 0, "invalid device ordinal"), (0, 8, "invalid resource")]
)
def test_device_and_stream_reach_cuda_and_its_errors_are_raised(
    index, stream, message, cuda_kernel_on_host, monkeypatch
) -> None:
    monkeypatch.setattr(cuda, "_index", lambda device: index)
    monkeypatch.setattr(cuda, "_stream", lambda device: stream)
    tensors = inputs()
    with pytest.raises(RuntimeError, match=f"ms_deform_attn_forward_float32 on cpu: {message}"):
        cuda.forward(**tensors)
    with pytest.raises(RuntimeError, match=f"ms_deform_attn_backward_float32 on cpu: {message}"):
        cuda.backward(torch.zeros(2, 3, 6), **tensors)


def test_the_reason_why_it_is_unavailable(
    cuda_on_host: ctypes.CDLL, monkeypatch, tmp_path, fresh_choice
) -> None:
    gpu = torch.device("cuda:1")
    assert cuda.why_unavailable(torch.device("cpu")) == "it is for NVIDIA GPUs"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert cuda.why_unavailable(gpu) == "this torch was built without CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(cuda, "find_cuda_library", lambda: None)
    assert "not compiled: `python -m ovformer.ops.build`" in cuda.why_unavailable(gpu)
    cuda._load.cache_clear()
    damaged = tmp_path / "damaged.so"
    damaged.write_bytes(b"no library, but as long as a checksum")
    monkeypatch.setattr(cuda, "find_cuda_library", lambda: damaged)
    assert cuda.why_unavailable(gpu) == f"{damaged} is damaged"
    monkeypatch.setattr(cuda, "_load", lambda: (cuda_on_host, None))
    assert cuda.why_unavailable(gpu).startswith(
        "invalid device ordinal (`python -m ovformer.ops.build`"
    )
    assert cuda.why_unavailable(torch.device("cuda:0")) is None
