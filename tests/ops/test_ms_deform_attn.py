"""The operator equals its definition and the recorded numbers with every kernel."""

import itertools
import logging
import math

import numpy as np
import pytest
import torch

from ovformer.ops.ms_deform_attn import KERNELS, choose_kernel, ms_deform_attn, use_torch_operators
from ovformer.ops.self_test import random_inputs

CPU = torch.device("cpu")
OPERATOR = torch.ops.ovformer.ms_deform_attn.default


def differentiable(inputs):
    """Return inputs whose value, locations and weights need a gradient, and these three."""
    inputs = tuple(x.requires_grad_(x.is_floating_point()) for x in inputs)
    return inputs, (inputs[0], *inputs[3:])


def definition(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
    """Compute the output one sample after the other."""
    batch, queries, heads, levels, points, _ = sampling_locations.shape
    output = torch.zeros(batch, queries, heads, value.shape[-1], dtype=value.dtype)
    for index in itertools.product(*map(range, (batch, queries, heads, levels, points))):
        n, q, m, level, _ = index
        height, width = spatial_shapes[level].tolist()
        x = sampling_locations[index][0].item() * width - 0.5
        y = sampling_locations[index][1].item() * height - 0.5
        for row, column in itertools.product(
            (math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)
        ):
            if 0 <= row < height and 0 <= column < width:
                share = (1 - abs(y - row)) * (1 - abs(x - column)) * attention_weights[index]
                token = level_start_index[level] + row * width + column
                output[n, q, m] += share * value[n, token, m]
    return output.flatten(2)


@pytest.mark.parametrize("shapes", [[(4, 5)], [(1, 1), (3, 7)], [(2, 3), (5, 4), (1, 6)]])
def test_it_equals_its_definition(shapes, kernel) -> None:
    inputs = random_inputs(shapes)
    torch.testing.assert_close(ms_deform_attn(*inputs), definition(*inputs), rtol=0, atol=1e-12)


def test_output_and_gradients_are_the_recorded_ones(reference, kernel) -> None:
    arrays = np.load(reference("msdeform_core.npz"))
    recorded = {key: torch.from_numpy(array) for key, array in arrays.items()}
    variables = ("value", "sampling_locations", "attention_weights")
    inputs = {key: recorded[key].requires_grad_() for key in variables}
    shapes = recorded["spatial_shapes"]
    starts = torch.cat([torch.zeros(1, dtype=torch.long), shapes.prod(1).cumsum(0)[:-1]])
    output = ms_deform_attn(spatial_shapes=shapes, level_start_index=starts, **inputs)
    torch.testing.assert_close(output, recorded["output"], rtol=1e-10, atol=1e-12)
    output.backward(recorded["grad_output"])
    for key, value in inputs.items():
        torch.testing.assert_close(value.grad, recorded[f"grad_{key}"], rtol=1e-9, atol=1e-11)


def test_gradients_equal_finite_differences(kernel) -> None:
    if kernel == "triton":
        pytest.skip("takes minutes in Triton's interpreter; on a GPU: test_kernels_on_gpu.py")
    (_, shapes, starts, _, _), variables = differentiable(random_inputs([(2, 3), (4, 3)]))

    def function(value, places, weights):
        return ms_deform_attn(value, shapes, starts, places, weights)

    assert torch.autograd.gradcheck(function, variables)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_values_are_computed_in_float32(dtype, kernel) -> None:
    if kernel == "triton" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter cuts bits off where GPUs round to the nearest")
    value, *others = random_inputs([(3, 4), (6, 8)], dtype=torch.float32)
    output = ms_deform_attn(value.to(dtype), *others)
    assert output.dtype == dtype
    assert output.equal(ms_deform_attn(value.to(dtype).float(), *others).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_values_keep_their_type_and_locations_are_float32(dtype, kernel) -> None:
    value, shapes, starts, places, weights = random_inputs([(3, 4), (6, 8)], dtype=torch.float32)
    coarse = (value.to(dtype), shapes, starts, places.to(dtype), weights.to(dtype))
    coarse, variables = differentiable(coarse)
    expected = ms_deform_attn(coarse[0], shapes, starts, *(x.float() for x in coarse[3:]))
    for function in (ms_deform_attn, OPERATOR):
        with torch.autocast("cpu", torch.bfloat16):
            output = function(*coarse)
            assert function(value, *coarse[1:]).dtype == torch.float32
        assert output.dtype == dtype and output.equal(expected)
        grads = torch.autograd.grad(output.float().sum(), variables)
        assert [x.dtype for x in grads] == [dtype] * 3


def test_the_operator_alone_needs_locations_in_float32() -> None:
    value, shapes, starts, places, weights = random_inputs([(3, 4)], dtype=torch.float32)
    with pytest.raises(ValueError, match="sampling_locations .*float16.*float32"):
        OPERATOR(value, shapes, starts, places.half(), weights)


def test_the_operators_pass_opcheck(kernel) -> None:
    inputs, variables = differentiable(random_inputs([(2, 3), (4, 3)], dtype=torch.float32))
    torch.library.opcheck(OPERATOR, inputs)
    grad_output = torch.randn(2, 3, 6)
    detached = (grad_output, *(x.detach() for x in inputs))
    torch.library.opcheck(torch.ops.ovformer.ms_deform_attn_backward.default, detached)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_it_compiles_as_one_graph(backend, kernel) -> None:
    inputs, variables = differentiable(random_inputs([(2, 3), (4, 3)], dtype=torch.float32))

    def loss(*inputs):
        return ms_deform_attn(*inputs).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(*inputs), loss(*inputs))
    grads = (torch.autograd.grad(function(*inputs), variables) for function in (compiled, loss))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("strict", [False, True])
def test_it_is_exported_and_takes_any_kernel_then(strict, monkeypatch) -> None:
    class Module(torch.nn.Module):
        def forward(self, *inputs):
            return 2 * ms_deform_attn(*inputs)

    inputs = random_inputs([(2, 3), (4, 3)])
    exported = torch.export.export(Module(), inputs, strict=strict)
    assert OPERATOR in [node.target for node in exported.graph.nodes]
    for name in ("auto", "torch"):
        monkeypatch.setenv("OVFORMER_MSDA", name)
        expected = 2 * ms_deform_attn(*inputs)
        torch.testing.assert_close(exported.module()(*inputs), expected, rtol=0, atol=0)


def test_with_torch_operators_it_is_exported_for_any_size() -> None:
    class Module(torch.nn.Module):
        def forward(self, first, second, *samples):
            shapes = [tuple(x.shape[1:3]) for x in (first, second)]
            value = torch.cat([x.flatten(1, 2) for x in (first, second)], dim=1)
            return ms_deform_attn(value, shapes, [0, shapes[0][0] * shapes[0][1]], *samples)

    def inputs(*shapes):
        value, _, _, *samples = random_inputs(shapes)
        lengths = [height * width for height, width in shapes]
        maps = zip(value.split(lengths, dim=1), shapes, strict=True)
        return (*(x.unflatten(1, shape) for x, shape in maps), *samples)

    sizes = {1: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
    with use_torch_operators():
        exported = torch.export.export(
            Module(),
            inputs((2, 3), (4, 5)),
            dynamic_shapes={"first": sizes, "second": sizes, "samples": (None, None)},
            strict=False,
        )
    targets = str([str(node.target) for node in exported.graph.nodes])
    assert "ovformer" not in targets and "aten.grid_sampler" in targets
    other = inputs((5, 4), (2, 7))
    torch.testing.assert_close(exported.module()(*other), Module()(*other))


def test_it_makes_tensors_on_the_device_of_its_inputs(kernel) -> None:
    inputs, variables = differentiable(random_inputs([(2, 3), (4, 3)]))
    with torch.device("meta"):  # tensors without an explicit device would be empty
        output = ms_deform_attn(*inputs)
        grads = torch.autograd.grad(output.sum(), variables)
    assert all(x.device == CPU for x in (output, *grads))


def test_sizes_may_have_any_integer_type_or_be_lists(kernel) -> None:
    value, shapes, starts, *samples = inputs = random_inputs([(2, 3), (4, 3)])
    expected = ms_deform_attn(*inputs)
    for sizes in ((shapes.int(), starts.short()), (shapes.tolist(), starts.tolist())):
        assert ms_deform_attn(value, *sizes, *samples).equal(expected)


@pytest.mark.parametrize(
    ("position", "wrong", "message"),
    [
        (0, torch.zeros(2, 12, 6), r"value \(N, S, M, D\)"),
        (0, torch.zeros(2, 13, 2, 3), "13 tokens"),
        (1, torch.tensor([(3, 4), (1, 1)]), "2 spatial_shapes"),
        (1, torch.tensor([(-3, -4)]), "-3, -4"),
        (1, torch.tensor([3, 4]), r"spatial_shapes .*\(2,\)"),
        (2, torch.tensor([1]), r"level_start_index .*\[1\]"),
        (3, torch.zeros(2, 3, 2, 1, 3, 2), "sampling_locations"),
        (4, torch.zeros(2, 3, 1, 1, 2), "attention_weights"),
    ],
)
def test_wrong_shapes_are_errors(position, wrong, message) -> None:
    inputs = list(random_inputs([(3, 4)], dtype=torch.float32))
    inputs[position] = wrong
    with pytest.raises(ValueError, match=message):
        ms_deform_attn(*inputs)


def test_the_environment_chooses_the_kernel(kernel, fresh_choice, caplog) -> None:
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            ms_deform_attn(*random_inputs([(2, 3)]))
    assert [r.message for r in caplog.records if "Deformable attention" in r.message] == [
        f"Deformable attention on cpu: {kernel} kernel (OVFORMER_MSDA)"
    ]


def test_a_kernel_that_is_unknown_or_can_not_be_used_is_an_error(monkeypatch, fresh_choice) -> None:
    monkeypatch.setenv("OVFORMER_MSDA", "fast")
    with pytest.raises(ValueError, match=f"OVFORMER_MSDA.*'fast'.*auto, {', '.join(KERNELS)}"):
        choose_kernel(CPU)
    monkeypatch.setenv("OVFORMER_MSDA", "cpu")
    with pytest.raises(RuntimeError, match="OVFORMER_MSDA=cpu.* meta.*python -m ovformer.ops"):
        choose_kernel(torch.device("meta"))
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with pytest.raises(RuntimeError, match="/no/such/compiler"):
        ms_deform_attn(*random_inputs([(2, 3)]))


def test_without_a_compiler_pytorch_takes_over_and_says_so_once(
    monkeypatch, fresh_choice, caplog
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("OVFORMER_MSDA", raising=False)
    monkeypatch.setenv("PATH", "/no/such/folder")
    inputs = random_inputs([(2, 3)])
    for _ in range(2):
        ms_deform_attn(*inputs)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "torch kernel" in record.message and "g++, c++, clang++" in record.message
