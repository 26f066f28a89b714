"""Both published backbones give the recorded features under the released parameter names."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import ovformer.modeling.backbone  # noqa: F401  (registers)
from ovformer.config import get_ovformer_cfg
from ovformer.d2 import build_backbone

OPTIONS = {
    "R50": ["MODEL.BACKBONE.NAME", "build_timm_backbone"],
    "SwinB": [
        *("MODEL.BACKBONE.NAME", "D2SwinTransformer", "MODEL.SWIN.EMBED_DIM", "128"),
        *("MODEL.SWIN.DEPTHS", "[2, 2, 18, 2]", "MODEL.SWIN.NUM_HEADS", "[4, 8, 16, 32]"),
        *("MODEL.SWIN.WINDOW_SIZE", "12", "MODEL.SWIN.PRETRAIN_IMG_SIZE", "384"),
    ],
}


@pytest.fixture(scope="module", params=OPTIONS)
def published(request, fill_weights):
    """(name, model with a ``backbone`` attribute, its weights generated)."""
    model = nn.Module()
    model.backbone = build_backbone(get_ovformer_cfg(opts=OPTIONS[request.param]))
    fill_weights.fill_state_dict(model.state_dict())
    return request.param, model.eval()


def test_names_shapes_and_kinds_are_the_released_ones(published, reference) -> None:
    name, model = published
    recorded = json.loads(reference(f"ovformer_lvis_{name}_state_dict.json").read_text())
    expected = {
        key: (shape, recorded["kind"][key])
        for key, shape in recorded["shapes"].items()
        if key.startswith("backbone.") and not key.endswith("num_batches_tracked")
    }
    parameters = {key for key, _ in model.named_parameters()}
    got = {
        key: (list(value.shape), "parameter" if key in parameters else "buffer")
        for key, value in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    assert got == expected


def test_features_are_the_recorded_ones(published, reference, normalise) -> None:
    name, model = published
    if name == "R50":
        recorded, prefix = np.load(reference("image_small.npz")), "eval.features."
        images = torch.zeros(2, 3, 128, 160)
        for i, padded in enumerate(images):
            image = normalise(torch.from_numpy(recorded[f"in.image{i}"]))
            padded[:, : image.shape[1], : image.shape[2]] = image
    else:
        recorded, prefix = np.load(reference("swinb_backbone.npz")), "features."
        images = normalise(torch.from_numpy(recorded["in.image"]))
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
