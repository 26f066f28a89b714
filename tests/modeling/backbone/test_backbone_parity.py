"""Both published backbones give the recorded features.

The names of their parameters are compared in test_image_model.py.
"""

import numpy as np
import pytest
import torch
from torch import nn

import ovformer.modeling.backbone  # noqa: F401  (registers)
from ovformer.config import get_ovformer_cfg
from ovformer.d2 import build_backbone
from support.video_models import RECORDED

OPTIONS = {
    "R50": ["MODEL.BACKBONE.NAME", "build_timm_backbone"],
    "SwinB": [
        *("MODEL.BACKBONE.NAME", "D2SwinTransformer", "MODEL.SWIN.EMBED_DIM", "128"),
        *("MODEL.SWIN.DEPTHS", "[2, 2, 18, 2]", "MODEL.SWIN.NUM_HEADS", "[4, 8, 16, 32]"),
        *("MODEL.SWIN.WINDOW_SIZE", "12", "MODEL.SWIN.PRETRAIN_IMG_SIZE", "384"),
    ],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_features_are_the_recorded_ones(name, reference, fill_weights) -> None:
    model = nn.Module()  # the rule for weights goes by whole names, "backbone...."
    model.backbone = build_backbone(get_ovformer_cfg(opts=OPTIONS[name]))
    fill_weights.fill_state_dict(model.eval().state_dict())
    mean, std = (
        torch.tensor(RECORDED[f"MODEL.PIXEL_{key}"]).view(3, 1, 1) for key in ("MEAN", "STD")
    )
    if name == "R50":
        recorded, prefix = np.load(reference("image_small.npz")), "eval.features."
        images = torch.zeros(2, 3, 128, 160)
        for i, padded in enumerate(images):
            image = torch.from_numpy(recorded[f"in.image{i}"])
            padded[:, : image.shape[1], : image.shape[2]] = (image - mean) / std
    else:
        recorded, prefix = np.load(reference("swinb_backbone.npz")), "features."
        images = (torch.from_numpy(recorded["in.image"]) - mean) / std
    with torch.no_grad():
        features = model.backbone(images)
    shapes = model.backbone.output_shape()
    assert list(features) == list(shapes)
    for key, feature in features.items():
        assert list(feature.shape) == recorded[f"{prefix}{key}.shape"].tolist()
        assert shapes[key].channels == feature.shape[1]
        expected = torch.from_numpy(recorded[f"{prefix}{key}.sub"])
        error = (feature.flatten()[::193] - expected).abs().max() / expected.abs().max()
        assert error < 1e-5, key
        stats = [feature.double().mean(), feature.double().std(), feature.double().abs().sum()]
        np.testing.assert_allclose(stats, recorded[f"{prefix}{key}.stats"], rtol=1e-4, atol=1e-6)
    assert model.backbone.size_divisibility == 32
