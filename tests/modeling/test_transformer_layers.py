"""Attention equals PyTorch's with the same parameters, and the one-token shortcut is exact."""

import pytest
import torch
from torch import nn

from ovformer.modeling.decoders.transformer_layers import MLP, MultiheadAttention

WIDTH, HEADS, BATCH, QUERIES, TOKENS = 24, 4, 2, 5, 7


@pytest.fixture
def pair():
    """Our attention and PyTorch's, with the same weights."""
    torch.manual_seed(0)
    ours = MultiheadAttention(WIDTH, HEADS)
    nn.init.normal_(ours.in_proj_bias)
    nn.init.normal_(ours.out_proj.bias)
    theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def gradients(module: nn.Module, output: torch.Tensor) -> dict[str, torch.Tensor]:
    weight = torch.linspace(-1, 1, output.numel()).view_as(output)
    (output * weight).sum().backward()
    return {name: parameter.grad for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tokens", [1, TOKENS])
def test_it_is_torchs_attention(pair, masked, tokens) -> None:
    query = torch.randn(BATCH, QUERIES, WIDTH)
    key, value = torch.randn(2, BATCH, tokens, WIDTH)
    attend = None
    if masked:
        attend = torch.rand(BATCH, QUERIES, tokens) < 0.5
        attend[..., 0] = True
    outputs = []
    for module, mask in zip(
        pair, (attend, None if attend is None else ~attend.repeat_interleave(HEADS, 0)), strict=True
    ):
        inputs = [x.clone().requires_grad_() for x in (query, key, value)]
        argument = {"attend": mask} if module is pair[0] else {"attn_mask": mask}
        output = module(*inputs, **argument)
        output = output if module is pair[0] else output[0]
        outputs.append((output, gradients(module, output), [x.grad for x in inputs]))
    (ours, our_gradients, our_inputs), (theirs, their_gradients, their_inputs) = outputs
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(our_gradients, their_gradients, rtol=1e-4, atol=1e-5)
    for mine, wanted in zip(our_inputs, their_inputs, strict=True):
        # The shortcut has no path to query and key, where the true gradient is zero.
        mine = torch.zeros_like(wanted) if mine is None else mine
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", [0, 5])
def test_a_width_that_cannot_be_divided_into_heads_is_refused(heads) -> None:
    with pytest.raises(ValueError, match=f"width 24 cannot have {heads} heads"):
        MultiheadAttention(WIDTH, heads)


def test_an_mlp_has_relu_between_its_layers_only() -> None:
    mlp = MLP(3, 4, 2, 3)
    plain = nn.Sequential(
        mlp.layers[0], nn.ReLU(), mlp.layers[1], nn.ReLU(), mlp.layers[2]
    )  # fmt: skip
    x = torch.randn(5, 3)
    assert mlp(x).equal(plain(x)) and mlp(x).shape == (5, 2)
