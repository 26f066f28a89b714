"""Swin beyond the published sizes, whose features test_backbone_parity.py compares."""

import pytest
import torch
from torch.nn import functional as F

from ovformer.modeling.backbone import swin
from ovformer.modeling.backbone.swin import D2SwinTransformer

TINY = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
TINY |= {"out_features": ("res2", "res3"), "drop_path_rate": 0.0}


@torch.no_grad()
def test_any_input_size_and_an_absolute_position_embedding() -> None:
    backbone = D2SwinTransformer(**TINY, ape=True, pretrain_img_size=32).eval()
    images = torch.rand(2, 3, 37, 50)
    features = backbone(images)
    assert [tuple(x.shape) for x in features.values()] == [(2, 8, 10, 13), (2, 16, 5, 7)]
    assert backbone.size_divisibility == 8
    torch.testing.assert_close(features["res3"][1:], backbone(images[1:])["res3"])
    without = D2SwinTransformer(**TINY).eval()
    without.load_state_dict(backbone.state_dict(), strict=False)
    assert (without(images)["res2"] - features["res2"]).abs().max() > 1e-3


def test_checkpointing_gives_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, saving = (D2SwinTransformer(**TINY, use_checkpoint=x).train() for x in (False, True))
    saving.load_state_dict(plain.state_dict())
    calls, original = [], swin.checkpoint
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
