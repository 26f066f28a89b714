"""Every kernel equals PyTorch in float64 on random shapes, also with extreme locations."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ovformer.ops.ms_deform_attn import load_kernel, ms_deform_attn
from ovformer.ops.self_test import measure_differences, random_inputs, within_tolerance

SHAPES = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4)
EACH_KERNEL = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@EACH_KERNEL
@given(
    shapes=SHAPES,
    batch=st.integers(0, 3),
    queries=st.integers(0, 7),
    heads=st.integers(1, 3),
    channels=st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16, 32, 48, 80, 100, 256, 320]),
    points=st.integers(1, 5),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_each_kernel_equals_pytorch_in_float64(kernel, **arguments) -> None:
    found = measure_differences(kernel, random_inputs(**arguments))
    assert within_tolerance(found, arguments["dtype"]), found


@pytest.mark.parametrize("far", [-1e30, 1e19, 1e37, -1.6, 3.1])
def test_locations_far_outside_sample_nothing(far, kernel) -> None:
    value, shapes, starts, places, weights = random_inputs([(3, 4), (5, 2)], dtype=torch.float32)
    inputs = value.requires_grad_(), shapes, starts, places.fill_(far), weights
    output = ms_deform_attn(*inputs)
    output.sum().backward()
    assert not output.any() and not value.grad.any()


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_nan_location_affects_only_its_query(broken, kernel) -> None:
    inputs = random_inputs([(3, 4), (5, 2)], queries=4, dtype=torch.float32)
    expected = ms_deform_attn(*inputs)
    inputs[3][:, 2] = broken
    grad_output = torch.ones_like(expected)
    output = load_kernel(kernel).forward(*inputs)
    grads = load_kernel(kernel).backward(grad_output, *inputs)
    others = [0, 1, 3]
    assert output[:, others].equal(expected[:, others])
    assert all(x[:, others].isfinite().all() for x in grads[1:])


@pytest.mark.parametrize("edge", [-0.5, 0.0, 0.5, 1.0, 1.5])
def test_locations_on_a_kink_have_the_derivative_of_pytorch(edge, kernel) -> None:
    """At a pixel's centre, or one pixel outside of the map, two derivatives are right."""
    inputs = random_inputs([(1, 1), (2, 2)])
    inputs[3].fill_(edge)
    found = measure_differences(kernel, inputs)
    assert within_tolerance(found, torch.float64), found


def test_inputs_need_not_be_contiguous(kernel) -> None:
    value, shapes, starts, places, weights = random_inputs([(3, 4), (5, 2)], heads=3, channels=4)
    inputs = (value, shapes, starts, places, weights)
    expected = ms_deform_attn(*inputs)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (value, places, weights)]
    strided[1] = strided[1].flip(-1).contiguous().flip(-1)
    columns = torch.stack((shapes, shapes), dim=2)[..., 0]
    tensors = [x.requires_grad_() for x in strided]
    output = ms_deform_attn(tensors[0], columns, starts, *tensors[1:])
    assert output.equal(expected)
    output.backward(torch.ones(1, dtype=output.dtype).expand_as(output))
    grads = load_kernel(kernel).backward(torch.ones_like(output), *inputs)
    assert all(x.grad.equal(y) for x, y in zip(tensors, grads, strict=True))


@pytest.mark.parametrize("kernel", ["cpu"], indirect=True)
def test_the_number_of_threads_changes_no_bit(kernel) -> None:
    inputs = random_inputs([(9, 7), (30, 20)], 2, 300, 3, 16, 4, torch.float32)
    grad_output = torch.randn(2, 300, 48)
    module, threads, results = load_kernel(kernel), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            results.append((module.forward(*inputs), *module.backward(grad_output, *inputs)))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(x.equal(y) for x, y in zip(result, results[0], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["cpu"], indirect=True)
def test_torch_and_the_cpu_kernel_share_their_threads(kernel) -> None:
    """In a process of its own, as other packages bring OpenMP libraries as well."""
    code = (
        "import torch, pathlib\nfrom ovformer.ops import ms_deform_attn_cpu as kernel\n"
        "assert kernel.why_unavailable(torch.device('cpu')) is None\n"
        "words = pathlib.Path('/proc/self/maps').read_text().split()\n"
        "print(*{word for word in words if 'libgomp' in word}, sep='\\n')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(run.stdout.splitlines()) == 1, run.stdout
