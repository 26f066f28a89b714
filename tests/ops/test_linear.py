"""Linear layers by oneDNN and by PyTorch."""

import pytest
import torch
from torch.nn import functional as F

from ovformer.ops import linear as module
from ovformer.ops.linear import linear


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 7, 5), (2, 0, 5)])
def test_it_equals_pytorchs_linear(shape, bias, relu) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    weight, constant = torch.randn(4, 5, generator=generator), torch.randn(4, generator=generator)
    constant = constant if bias else None
    expected = F.linear(x, weight, constant)
    expected = expected.relu() if relu else expected
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight, constant, relu), expected)
        columns = x.unsqueeze(-1).transpose(-1, -2).expand(*x.shape[:-1], 2, 5)
        torch.testing.assert_close(
            linear(columns, weight, constant, relu),
            expected.unsqueeze(-2).expand(*columns.shape[:-1], 4),
        )
    assert torch.equal(linear(x, weight, constant, relu), expected)  # with gradients


def test_gradients_go_through_the_positive_part() -> None:
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: linear(*a, None, relu=True), (x, weight))


def test_onednn_is_used_for_inference_only(monkeypatch) -> None:
    x, weight = torch.randn(3, 5), torch.randn(4, 5)
    assert not module._can_use_onednn(x, weight)  # gradients are on
    with torch.no_grad():
        if torch.backends.mkldnn.is_available():
            assert module._can_use_onednn(x, weight)
        assert not module._can_use_onednn(x.double(), weight.double())
        assert not module._can_use_onednn(x[:0], weight)
        with torch.autocast("cpu", torch.bfloat16):
            assert not module._can_use_onednn(x, weight)
            assert linear(x, weight, None).dtype == torch.bfloat16
        with torch.backends.mkldnn.flags(enabled=False):
            assert not module._can_use_onednn(x, weight)
