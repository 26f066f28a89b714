"""Each kernel for GPUs equals PyTorch in float64 there: all types, streams, devices, compiled."""

from collections.abc import Iterator

import pytest
import torch

from ovformer.ops.ms_deform_attn import choose_kernel, load_kernel, ms_deform_attn
from ovformer.ops.self_test import TOLERANCES, measure_differences, random_inputs, within_tolerance

pytestmark = pytest.mark.gpu
SHAPES = [(12, 20), (24, 40), (48, 80)]


@pytest.fixture(params=["cuda", "triton", "torch"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a kernel, which the operator then uses on the GPU."""
    if reason := load_kernel(request.param).why_unavailable(torch.device("cuda", 0)):
        pytest.skip(f"{request.param}: {reason}")
    monkeypatch.setenv("OVFORMER_MSDA", request.param)
    yield request.param
    torch.cuda.synchronize()  # an error of this test is not one of the next


def differentiable(inputs):
    """Return inputs whose value, locations and weights need a gradient, and these three."""
    inputs = tuple(x.requires_grad_(x.is_floating_point()) for x in inputs)
    return inputs, (inputs[0], *inputs[3:])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("channels", [1, 3, 32, 48, 100, 256])
def test_it_equals_pytorch_in_float64(channels, dtype, kernel) -> None:
    inputs = random_inputs([(3, 5), (0, 4), (9, 7)], 2, 301, 8, channels, 4, dtype, "cuda")
    found = measure_differences(kernel, inputs)
    assert within_tolerance(found, dtype), found


@pytest.mark.parametrize(
    "sizes", [{"batch": 0}, {"queries": 0}, {"heads": 1, "points": 1}, {"shapes": []}]
)
def test_empty_inputs(sizes, kernel) -> None:
    inputs = random_inputs(**{"shapes": [(3, 4)], "device": "cuda", **sizes})
    found = measure_differences(kernel, inputs)
    assert within_tolerance(found, torch.float64), found


def test_gradients_equal_finite_differences(kernel) -> None:
    inputs = random_inputs([(2, 3), (4, 3)], device="cuda")
    (_, shapes, starts, _, _), variables = differentiable(inputs)
    assert torch.autograd.gradcheck(
        lambda value, *others: ms_deform_attn(value, shapes, starts, *others),
        variables,
        nondet_tol=1e-12,
    )


def test_it_runs_in_the_current_stream(kernel) -> None:
    inputs = random_inputs(SHAPES, 1, 5000, 8, 32, 4, torch.float32, "cuda")
    expected = ms_deform_attn(*inputs)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        late = torch.zeros_like(inputs[0])
        torch.cuda._sleep(100_000_000)
        late.copy_(inputs[0])  # a kernel in another stream would see the zeros
        output = ms_deform_attn(late, *inputs[1:])
        torch.cuda.current_stream().synchronize()
    torch.testing.assert_close(output, expected, rtol=0, atol=0)


def test_it_runs_on_the_device_of_its_inputs(kernel) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    inputs = random_inputs([(3, 4)], dtype=torch.float32, device="cuda:1")
    output = ms_deform_attn(*inputs)
    assert output.device == inputs[0].device and torch.cuda.current_device() == 0
    expected = ms_deform_attn(*(x.to("cuda:0") for x in inputs))
    torch.testing.assert_close(output.cpu(), expected.cpu())


def test_it_compiles_as_one_graph(kernel) -> None:
    inputs = random_inputs([(2, 3), (4, 3)], dtype=torch.float32, device="cuda")
    inputs, variables = differentiable(inputs)

    def loss(*inputs):
        return ms_deform_attn(*inputs).square().sum()

    compiled = torch.compile(loss, fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), loss(*inputs))
    grads = (torch.autograd.grad(function(*inputs), variables) for function in (compiled, loss))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_values_keep_their_type(dtype, kernel) -> None:
    value, *others = random_inputs([(3, 4)], dtype=torch.float32, device="cuda")
    with torch.autocast("cuda", dtype):
        assert ms_deform_attn(value.to(dtype), *others).dtype == dtype
        assert ms_deform_attn(value, *others).dtype == torch.float32


def test_a_map_of_more_than_2_to_the_31_numbers(kernel) -> None:
    if kernel == "torch" or torch.cuda.get_device_properties(0).total_memory < 20e9:
        pytest.skip("needs 20 GB, and a kernel that takes the values as they are")
    side, heads, channels = 3000, 8, 32  # 2.3e9 numbers
    value = torch.zeros(1, side * side, heads, channels, dtype=torch.float16, device="cuda")
    value[:, -1] = 1
    shapes, starts = torch.tensor([(side, side)]), torch.tensor([0])
    places = torch.full((1, 1, heads, 1, 1, 2), 1 - 0.5 / side, device="cuda")
    weights = torch.ones(1, 1, heads, 1, 1, device="cuda")
    output = ms_deform_attn(value, shapes, starts, places, weights)
    torch.testing.assert_close(output, torch.ones_like(output), rtol=0, atol=2e-3)


def test_the_default_is_a_kernel_for_gpus(monkeypatch) -> None:
    monkeypatch.delenv("OVFORMER_MSDA", raising=False)
    assert choose_kernel(torch.device("cuda", 0)) in ("cuda", "triton")
