import pytest
import torch
from torch import nn

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import FrozenBatchNorm2d, build_backbone
from ovformer.modeling.backbone.timm import TimmBackbone, parse_kwargs

TINY_RESNET = {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256]}
TINY_RESNET |= {"stem_type": "deep", "stem_width": 16}
LEVELS = (2, 3, 4, 5)


def tiny_resnet(**arguments) -> TimmBackbone:
    return TimmBackbone("resnet18", LEVELS, kwargs=TINY_RESNET, **arguments)


def test_a_tiny_resnet_from_the_config() -> None:
    kwargs = "{layers: [1, 1, 1, 1], channels: [8, 16, 24, 32]}"
    opts = ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.BASE_NAME", "resnet18"]
    opts += ["MODEL.TIMM.NORM", "BN", "MODEL.TIMM.KWARGS", kwargs]
    opts += ["MODEL.PIXEL_MEAN", "[0.5]", "MODEL.PIXEL_STD", "[1.0]"]  # grey images
    backbone = build_backbone(get_ovformer_cfg(opts=opts))
    features = backbone(torch.rand(2, 1, 64, 96))
    assert {k: tuple(v.shape) for k, v in features.items()} == {
        "layer2": (2, 8, 16, 24),
        "layer3": (2, 16, 8, 12),
        "layer4": (2, 24, 4, 6),
        "layer5": (2, 32, 2, 3),
    }
    assert [shape.stride for shape in backbone.output_shape().values()] == [4, 8, 16, 32]
    assert any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    assert not any("fc" in key for key in backbone.state_dict())


def test_only_the_asked_levels_are_returned_and_built() -> None:
    backbone = TimmBackbone("resnet18", (2, 4), kwargs=TINY_RESNET)
    assert list(backbone(torch.rand(1, 3, 32, 32))) == ["layer2", "layer4"]
    assert not any("layer4" in key for key in backbone.state_dict())  # timm's layer4 is level 5
    assert backbone.size_divisibility == 16


def test_frozen_norms_keep_their_statistics_and_do_not_train() -> None:
    backbone = tiny_resnet(norm="FrozenBN").train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone(torch.rand(2, 3, 32, 32))["layer5"].sum().backward()
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
    frozen = [m for m in backbone.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert len(frozen) == 3 + 4 * 2 + 3  # deep stem, two a block, three downsamplings
    assert all(m.eps == 1e-5 for m in frozen)


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
    backbone = tiny_resnet(norm="BN", freeze_at=freeze_at).train()
    for key, parameter in backbone.base.named_parameters():
        assert parameter.requires_grad != key.startswith(still), key
    for key, module in backbone.base.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert not still or not key.startswith((*still, "bn1")), key
    with pytest.raises(ValueError, match=r"FREEZE_AT: got 9; .*\[1, 2, 3, 4, 5\]"):
        tiny_resnet(freeze_at=9)


def test_a_network_with_channels_last_features() -> None:
    backbone = TimmBackbone(
        "swin_tiny_patch4_window7_224",
        (1, 2, 3, 4),
        kwargs={"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 4, 8), "img_size": 64},
    )
    features = backbone(torch.rand(1, 3, 64, 64))
    assert [tuple(x.shape[1:]) for x in features.values()] == [
        *((24, 16, 16), (48, 8, 8)),
        *((96, 4, 4), (192, 2, 2)),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet5O", LEVELS), r"unknown model 'resnet5O'\. Nearest known: .*resnet50"),
        (("resnet50_in22k", LEVELS), "resnet50_in21k"),
        (("resnet18", (2, 3, 4, 6)), r"OUT_LEVELS \(2, 3, 4, 6\).*out of range"),
        (("resnet18", (3, 2)), "ascending levels"),
        (("resnet18", ()), "ascending levels"),
        (("vit_tiny_patch16_224", (2, 3)), r"strides \[16, 16\]"),
    ],
)
def test_errors_name_the_key_and_the_next_step(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        TimmBackbone(*arguments)


def test_errors_of_the_other_arguments() -> None:
    with pytest.raises(ValueError, match="NORM: expected one of FrozenBN, BN, got 'GN'"):
        TimmBackbone("resnet18", LEVELS, norm="GN")
    with pytest.raises(ValueError, match="cannot build 'resnet18'.*depth"):
        TimmBackbone("resnet18", LEVELS, kwargs={"depth": 3})
    with pytest.raises(ValueError, match="timm has no weights for 'resnet50_in21k'"):
        TimmBackbone("resnet50_in21k", LEVELS, pretrained=True)


def test_kwargs_are_a_yaml_mapping() -> None:
    assert parse_kwargs("") == {}
    assert parse_kwargs("{layers: [1, 2], stem_type: deep}") == {
        "layers": [1, 2],
        "stem_type": "deep",
    }
    for text in ("[1, 2]", "layers", "{layers: [1"):
        with pytest.raises(ValueError, match="MODEL.TIMM.KWARGS"):
            parse_kwargs(text)
