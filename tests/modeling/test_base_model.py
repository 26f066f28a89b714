"""What the models share: CLIP features from the batch or computed, targets, vocabulary."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ovformer.d2 import BitMasks, Instances
from ovformer.modeling.decoders.embedding_alignment import UnifiedEmbeddingAlignment
from ovformer.modeling.language.image_embedder import ImageEmbedder
from ovformer.modeling.meta_arch.base_model import OVFormerBase

CPU = torch.device("cpu")
WIDTH, SIDE = 6, 4


class FakeEncoder:
    """Stands for CLIP: the embedding holds the mean of each channel."""

    made = 0
    embed_dim, image_size = WIDTH, SIDE

    def __init__(self, device):
        type(self).made += 1
        self.device = device

    def preprocess(self, image):
        assert image.dtype == np.uint8 and image.shape[2] == 3
        return torch.from_numpy(image[:SIDE, :SIDE].copy()).permute(2, 0, 1)

    def encode_image(self, images):
        assert images.dtype == torch.uint8 and images.shape[1:] == (3, SIDE, SIDE)
        return F.pad(images.float().mean((2, 3)), (0, WIDTH - 3))


@pytest.fixture
def source(monkeypatch):
    """A function that makes a source; the fake encoder counts how often it is made."""
    monkeypatch.setattr(FakeEncoder, "made", 0)
    defaults = {"clip_dim": WIDTH, "image_size": SIDE}
    return lambda **changed: ImageEmbedder(FakeEncoder, **{**defaults, **changed})


def record(value=0, **more):
    """A record whose image has the colour (value, value + 1, value + 2)."""
    image = torch.arange(value, value + 3, dtype=torch.uint8).view(3, 1, 1).expand(3, 9, 7)
    return {"image": image, **more}


def test_stored_features_need_no_encoder(source) -> None:
    stored = torch.randn(2, 1, WIDTH).half()
    features = source()([record(clip_features=x) for x in stored], CPU)
    assert features.dtype == torch.float32 and features.equal(stored.float())
    assert FakeEncoder.made == 0


def test_missing_features_are_computed_by_an_encoder_made_once(source) -> None:
    clip_image = torch.full((3, SIDE, SIDE), 200, dtype=torch.uint8)
    stored = torch.ones(1, WIDTH)
    batch = [record(5), record(clip_features=stored), record(7, clip_image=clip_image)]
    embed = source()
    features = embed(batch, CPU)
    assert features[:, 0].tolist() == [[5, 6, 7, 0, 0, 0], [1] * WIDTH, [200] * 3 + [0] * 3]
    embed(batch, CPU)
    assert FakeEncoder.made == 1


def test_images_of_other_channel_order_reach_clip_as_rgb(source) -> None:
    features = source(image_format="BGR")([record(5)], CPU)
    assert features[0, 0, :3].tolist() == [7, 6, 5]


def test_features_are_normalised_on_demand(source) -> None:
    batch = [record(5), record(clip_features=torch.full((1, WIDTH), 3.0))]
    norms = source(normalize=True)(batch, CPU).norm(dim=2)
    torch.testing.assert_close(norms, torch.ones(2, 1))


def test_stored_features_of_another_width_are_refused_with_their_file(source) -> None:
    with pytest.raises(ValueError, match=r"of a.png: expected shape \(tokens, 6\), got \(1, 512\)"):
        source()([record(file_name="a.png", clip_features=torch.zeros(1, 512))], CPU)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clip_dim": 9}, "MODEL.CLIP.EMBED_DIM is 9, but .* has 6"),
        ({"image_size": 224}, "MODEL.CLIP.IMAGE_SIZE is 224, but .* has 4"),
    ],
)
def test_an_encoder_that_does_not_fit_the_config_is_refused(source, changed, message) -> None:
    with pytest.raises(ValueError, match=message):
        source(**changed)([record()], CPU)


def build(criterion=None, classes=3, size_divisibility=8, clip_features=None):
    head = nn.Module()
    head.predictor = nn.Module()
    head.predictor.class_embed = UnifiedEmbeddingAlignment(
        4,
        clip_dim=8,
        text_embeddings=torch.eye(classes, 8),
        class_names=list("abcdefg"[:classes]),
        num_heads=2,
    )
    backbone = nn.Conv2d(3, 1, 1)
    backbone.size_divisibility = 16
    return OVFormerBase(
        backbone=backbone,
        sem_seg_head=head,
        criterion=criterion,
        clip_features=clip_features,
        pixel_mean=[1, 2, 3],
        pixel_std=[2, 2, 4],
        size_divisibility=size_divisibility,
        detections_per_image=10,
    )


def test_the_encoder_is_no_part_of_the_model(source) -> None:
    clip_features = source()
    model = build(clip_features=clip_features)
    before = set(model.state_dict())
    model.clip_features([record()], model.device)
    assert FakeEncoder.made == 1 and set(model.state_dict()) == before
    assert not any("pixel" in key for key in before)


@pytest.mark.parametrize(("divisibility", "size"), [(8, (16, 16)), (0, (16, 16)), (1, (9, 13))])
def test_images_are_normalised_then_padded_with_zeros(divisibility, size) -> None:
    model = build(size_divisibility=divisibility)
    images = model.normalize_images([torch.full((3, 9, 7), 5.0), torch.full((3, 5, 13), 3.0)])
    assert images.tensor.shape == (2, 3, *size)
    assert images.image_sizes == [(9, 7), (5, 13)]
    assert images.tensor[0, :, 0, 0].tolist() == [2.0, 1.5, 0.5]
    assert not images.tensor[0, :, 9:].any() and not images.tensor[0, :, :, 7:].any()


def test_targets_are_padded_and_may_be_empty() -> None:
    records = []
    for count in (2, 0):
        instances = Instances((5, 7))
        instances.gt_classes = torch.arange(count)
        instances.gt_masks = BitMasks(torch.ones(count, 5, 7, dtype=torch.bool))
        records.append({"instances": instances})
    assert [build().instance_counts(record) for record in records] == [[2], [0]]
    full, empty = build().prepare_targets(records, (8, 16))
    assert full["labels"].tolist() == [0, 1] and full["masks"].dtype == torch.bool
    assert full["masks"].shape == (2, 8, 16) and full["masks"].sum() == 2 * 5 * 7
    assert full["masks"][:, :5, :7].all()
    assert empty["labels"].shape == (0,) and empty["masks"].shape == (0, 8, 16)


def test_training_without_annotations_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="a.png has no 'instances'"):
        build().prepare_targets([{"file_name": "a.png"}], (8, 8))
    with pytest.raises(ValueError, match="7 has no 'instances'"):
        build().instance_counts({"video_id": 7})


class Criterion(nn.Module):
    num_classes = 3
    weight_dict = {"loss_a": 2.0, "loss_b": 0.5}

    def forward(self, outputs, targets, instance_counts):
        x = outputs["x"] / sum(instance_counts or [1])
        return {"loss_a": x, "loss_b": x * 10}


def test_losses_are_weighted_by_name() -> None:
    """The criterion gets the numbers of instances of the whole batch."""
    losses = build(Criterion()).compute_losses({"x": torch.tensor(3.0)}, [], [1, 0, 2])
    assert losses == {"loss_a": torch.tensor(2.0), "loss_b": torch.tensor(5.0)}


def test_training_needs_a_criterion_for_the_current_vocabulary() -> None:
    model = build(Criterion())
    model.set_text_classifier(torch.randn(5, 8), list("vwxyz"))
    assert (model.num_classes, model.vocabulary) == (5, list("vwxyz"))
    with pytest.raises(ValueError, match="criterion is for 3 classes, .* has 5"):
        model.compute_losses({}, [])
    with pytest.raises(ValueError, match="built without a criterion"):
        build().compute_losses({}, [])


def test_vocabulary_keys_are_the_entries_that_a_vocabulary_changes() -> None:
    small, large = build(Criterion(), classes=2).state_dict(), build(classes=7).state_dict()
    changed = {key for key in small if small[key].shape != large[key].shape}
    assert changed == {"sem_seg_head.predictor.class_embed.zs_weight"}
    assert changed <= set(OVFormerBase.VOCABULARY_KEYS)
