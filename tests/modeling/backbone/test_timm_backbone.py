import pytest
import torch
from torch import nn

from ovformer.d2 import build_backbone
from ovformer.modeling.backbone.timm import TimmBackbone, parse_kwargs
from support.video_models import make_cfg

TINY_RESNET = {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256]}
TINY_RESNET |= {"stem_type": "deep", "stem_width": 16}
LEVELS = (2, 3, 4, 5)


def test_a_tiny_resnet_from_the_config() -> None:
    """Grey images; of the network's five levels two are returned and the last is not built."""
    options = {
        "MODEL.BACKBONE.NAME": "build_timm_backbone",
        "MODEL.PIXEL_MEAN": [0.5],
        "MODEL.PIXEL_STD": [1.0],
        "MODEL.TIMM.BASE_NAME": "resnet18",
        "MODEL.TIMM.NORM": "BN",
        "MODEL.TIMM.OUT_LEVELS": [2, 4],
        "MODEL.TIMM.KWARGS": "{layers: [1, 1, 1, 1], channels: [8, 16, 24, 32]}",
    }
    backbone = build_backbone(make_cfg(options))
    features = backbone(torch.rand(2, 1, 64, 96))
    assert {name: tuple(x.shape) for name, x in features.items()} == {
        "layer2": (2, 8, 16, 24),
        "layer4": (2, 24, 4, 6),
    }
    assert [shape.stride for shape in backbone.output_shape().values()] == [4, 16]
    assert backbone.size_divisibility == 16
    # timm's layer4 is level 5.
    assert not any("layer4" in key or "fc" in key for key in backbone.state_dict())
    assert any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())


def test_frozen_norms_compute_what_trained_ones_do_in_evaluation() -> None:
    """Also where timm merges the norm with the activation (EfficientNet)."""
    for name, kwargs in [("resnet18", TINY_RESNET), ("efficientnet_lite0", {})]:
        trained = TimmBackbone(name, LEVELS, norm="BN", kwargs=kwargs).eval()
        frozen = TimmBackbone(name, LEVELS, norm="FrozenBN", kwargs=kwargs).eval()
        for key, value in trained.state_dict().items():
            if "running_" in key:
                value.uniform_(0.5, 1.5)
        missing = frozen.load_state_dict(trained.state_dict(), strict=False)
        assert not missing.missing_keys
        assert all(key.endswith("num_batches_tracked") for key in missing.unexpected_keys)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
        image = torch.rand(1, 3, 64, 64)
        for got, expected in zip(frozen(image).values(), trained(image).values(), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("freeze_at", "still"), [(0, ()), (1, ("conv1",)), (2, ("conv1", "layer1"))]
)
def test_freeze_at_stops_the_first_levels(freeze_at: int, still: tuple[str, ...]) -> None:
    arguments = {"norm": "BN", "freeze_at": freeze_at, "kwargs": TINY_RESNET}
    base = TimmBackbone("resnet18", LEVELS, **arguments).base
    for key, parameter in base.named_parameters():
        assert parameter.requires_grad != key.startswith(still), key
    trained = [key for key, part in base.named_modules() if isinstance(part, nn.BatchNorm2d)]
    assert trained and not (still and any(key.startswith((*still, "bn1")) for key in trained))


def test_a_network_with_channels_last_features() -> None:
    kwargs = {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8), "img_size": 64}
    backbone = TimmBackbone("swin_tiny_patch4_window7_224", (1, 2, 4), kwargs=kwargs)
    features = backbone(torch.rand(1, 3, 64, 64))
    assert [x.shape[1:] for x in features.values()] == [(24, 16, 16), (48, 8, 8), (192, 2, 2)]


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("resnet5O", {}, r"unknown model 'resnet5O'\. Nearest known: .*resnet50"),
        ("resnet50_in22k", {}, "resnet50_in21k"),
        ("resnet50_in21k", {"pretrained": True}, "timm has no weights for 'resnet50_in21k'"),
        ("resnet18", {"out_levels": (2, 3, 4, 6)}, r"OUT_LEVELS \(2, 3, 4, 6\).*out of range"),
        ("resnet18", {"out_levels": (3, 2)}, "ascending levels"),
        ("resnet18", {"out_levels": ()}, "ascending levels"),
        ("resnet18", {"norm": "GN"}, "NORM: expected one of FrozenBN, BN, got 'GN'"),
        ("resnet18", {"freeze_at": 9}, r"FREEZE_AT: got 9; .*\[1, 2, 3, 4, 5\]"),
        ("resnet18", {"kwargs": {"depth": 3}}, "cannot build 'resnet18'.*depth"),
        ("vit_tiny_patch16_224", {"out_levels": (2, 3)}, r"strides \[16, 16\]"),
    ],
)
def test_errors_name_the_key_and_the_next_step(name, changed, message) -> None:
    with pytest.raises(ValueError, match=message):
        TimmBackbone(name, **{"out_levels": LEVELS, **changed})


def test_kwargs_are_a_yaml_mapping() -> None:
    assert parse_kwargs("") == {}
    assert parse_kwargs("{layers: [1, 2], stem: deep}") == {"layers": [1, 2], "stem": "deep"}
    for text in ("[1, 2]", "layers", "{layers: [1"):
        with pytest.raises(ValueError, match="MODEL.TIMM.KWARGS"):
            parse_kwargs(text)
