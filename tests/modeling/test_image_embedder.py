"""CLIP's embeddings of a batch: stored ones, or computed by an encoder that is loaded once."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ovformer.modeling.language.image_embedder import ImageEmbedder

CPU = torch.device("cpu")
WIDTH, SIDE = 6, 4


class FakeEncoder:
    """Stands for CLIP: the embedding holds the mean of each channel."""

    made = 0
    embed_dim, image_size = WIDTH, SIDE

    def __init__(self, device):
        type(self).made += 1

    def preprocess(self, image):
        assert image.dtype == np.uint8 and image.shape[2] == 3
        return torch.from_numpy(image[:SIDE, :SIDE].copy()).permute(2, 0, 1)

    def encode_image(self, images):
        assert images.dtype == torch.uint8 and images.shape[1:] == (3, SIDE, SIDE)
        return F.pad(images.float().mean((2, 3)), (0, WIDTH - 3))


@pytest.fixture
def embedder(monkeypatch):
    """A function that makes an embedder; the fake encoder counts how often it is made."""
    monkeypatch.setattr(FakeEncoder, "made", 0)
    defaults = {"clip_dim": WIDTH, "image_size": SIDE}
    return lambda **changed: ImageEmbedder(FakeEncoder, **{**defaults, **changed})


def record(value=0, **more):
    """A record whose image has the colour (value, value + 1, value + 2)."""
    image = torch.arange(value, value + 3, dtype=torch.uint8).view(3, 1, 1).expand(3, 9, 7)
    return {"image": image, **more}


def test_only_missing_features_are_computed(embedder) -> None:
    embed = embedder()
    stored = torch.ones(1, WIDTH).half()
    features = embed([record(clip_features=stored)], CPU)
    assert features.dtype == torch.float32 and features.equal(stored.float()[None])
    assert FakeEncoder.made == 0

    clip_image = torch.full((3, SIDE, SIDE), 200, dtype=torch.uint8)
    batch = [record(5), record(clip_features=stored), record(7, clip_image=clip_image)]
    for _ in range(2):
        features = embed(batch, CPU)[:, 0].tolist()
        assert features == [[5, 6, 7, 0, 0, 0], [1] * WIDTH, [200] * 3 + [0] * 3]
    assert FakeEncoder.made == 1


def test_order_of_channels_and_normalisation(embedder) -> None:
    assert embedder(image_format="BGR")([record(5)], CPU)[0, 0, :3].tolist() == [7, 6, 5]
    batch = [record(5), record(clip_features=torch.full((1, WIDTH), 3.0))]
    norms = embedder(normalize=True)(batch, CPU).norm(dim=2)
    torch.testing.assert_close(norms, torch.ones(2, 1))


@pytest.mark.parametrize(
    ("changed", "features", "message"),
    [
        ({"clip_dim": 9}, None, "MODEL.CLIP.EMBED_DIM is 9, but .* has 6"),
        ({"image_size": 224}, None, "MODEL.CLIP.IMAGE_SIZE is 224, but .* has 4"),
        ({}, torch.zeros(1, 512), r"of a.png: expected shape \(tokens, 6\), got \(1, 512\)"),
    ],
)
def test_features_and_encoders_of_another_size(embedder, changed, features, message) -> None:
    with pytest.raises(ValueError, match=message):
        embedder(**changed)([record(file_name="a.png", clip_features=features)], CPU)
