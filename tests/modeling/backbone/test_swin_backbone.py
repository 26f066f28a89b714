import pytest
import torch
from torch.nn import functional as F

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import build_backbone
from ovformer.modeling.backbone.swin import (
    D2SwinTransformer,
    WindowAttention,
    join_windows,
    shifted_window_mask,
    split_windows,
)

TINY = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
TINY |= {"out_features": ("res2", "res3"), "drop_path_rate": 0.0}


def test_windows_are_squares_and_come_back() -> None:
    x = torch.arange(2 * 6 * 9.0).view(2, 6, 9, 1)
    windows = split_windows(x, 3)
    assert windows.shape == (2 * 2 * 3, 9, 1)
    assert torch.equal(windows[1].view(3, 3), x[0, :3, 3:6, 0])
    assert torch.equal(windows[6 + 3].view(3, 3), x[1, 3:, :3, 0])
    assert torch.equal(join_windows(windows, 3, 6, 9), x)


def test_shift_mask_keeps_apart_what_was_apart_before_the_roll() -> None:
    height, width, window, shift = 8, 12, 4, 2
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    position = torch.stack([rows, columns], -1)[None].roll((-shift, -shift), (1, 2))
    tokens = split_windows(position, window)
    far = (tokens[:, :, None] - tokens[:, None, :]).abs().amax(-1) >= window
    mask = shifted_window_mask(height, width, window, shift, torch.device("cpu"))
    assert torch.equal(mask != 0, far)


def test_window_attention_is_softmax_attention_with_a_relative_bias() -> None:
    torch.manual_seed(0)
    attention = WindowAttention(8, 3, 2, True, None, 0.0, 0.0).eval()
    windows, mask = torch.randn(4, 9, 8), torch.randn(2, 9, 9)
    query, key, value = attention.qkv(windows).view(4, 9, 3, 2, 4).permute(2, 0, 3, 1, 4)
    logits = query @ key.transpose(-1, -2) / 2.0
    for i in range(9):
        for j in range(9):
            row, column = i // 3 - j // 3 + 2, i % 3 - j % 3 + 2
            logits[:, :, i, j] += attention.relative_position_bias_table[row * 5 + column]
    logits += mask.repeat(2, 1, 1)[:, None]
    expected = attention.proj((logits.softmax(-1) @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(windows, mask), expected)


def test_any_input_size_and_an_absolute_position_embedding() -> None:
    backbone = D2SwinTransformer(**TINY, ape=True, pretrain_img_size=32)
    features = backbone(torch.rand(1, 3, 37, 50))
    assert [tuple(x.shape) for x in features.values()] == [(1, 8, 10, 13), (1, 16, 5, 7)]
    assert backbone.size_divisibility == 8
    without = D2SwinTransformer(**TINY)
    without.load_state_dict(backbone.state_dict(), strict=False)
    difference = (
        without(torch.rand(1, 3, 32, 32))["res2"] - backbone(torch.rand(1, 3, 32, 32))["res2"]
    )
    assert difference.abs().max() > 1e-3


def test_checkpointing_gives_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    plain = D2SwinTransformer(**TINY).train()
    saving = D2SwinTransformer(**TINY, use_checkpoint=True).train()
    saving.load_state_dict(plain.state_dict())
    calls = []
    from ovformer.modeling.backbone import swin

    original = swin.checkpoint
    monkeypatch.setattr(swin, "checkpoint", lambda *a, **k: calls.append(1) or original(*a, **k))
    images = torch.rand(1, 3, 24, 40)
    for backbone in (plain, saving):
        sum(x.square().sum() for x in backbone(images).values()).backward()
    assert len(calls) == 4
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_stochastic_depth_grows_linearly() -> None:
    backbone = D2SwinTransformer(**TINY | {"drop_path_rate": 0.3})
    rates = [getattr(b.drop_path, "drop_prob", 0.0) for s in backbone.layers for b in s.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_half_precision_under_autocast() -> None:
    torch.manual_seed(0)
    backbone = D2SwinTransformer(**TINY).eval()
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = backbone(images)["res3"]
        with torch.autocast("cpu", torch.bfloat16):
            got = backbone(images)["res3"]
    assert F.cosine_similarity(got.float().flatten(), expected.flatten(), dim=0) > 0.999


def test_every_config_key_reaches_the_constructor() -> None:
    cfg = get_ovformer_cfg(
        opts=[
            *("MODEL.BACKBONE.NAME", "D2SwinTransformer", "MODEL.SWIN.EMBED_DIM", "8"),
            *("MODEL.SWIN.DEPTHS", "[1, 1, 1, 1]", "MODEL.SWIN.NUM_HEADS", "[1, 1, 1, 1]"),
            *("MODEL.SWIN.OUT_FEATURES", "['res4']", "MODEL.SWIN.QKV_BIAS", "False"),
        ]
    )
    backbone = build_backbone(cfg)
    assert list(backbone.output_shape()) == ["res4"]
    assert backbone.layers[0].blocks[0].attn.qkv.bias is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": (2,)}, r"DEPTHS and NUM_HEADS .* got \[2, 2\] and \[2\]"),
        ({"num_heads": (3, 3)}, "3 heads do not divide 8 channels"),
        ({"out_features": ("res2", "res9")}, r"OUT_FEATURES: expected some of \['res2', 'res3'\]"),
        ({"out_features": ()}, "OUT_FEATURES"),
    ],
)
def test_errors_name_the_key(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        D2SwinTransformer(**TINY | change)
