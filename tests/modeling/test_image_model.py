"""The image model as its config builds it: the published sizes, and unusual settings."""

import json
from pathlib import Path

import pytest
import torch

from ovformer.d2 import build_model
from ovformer.modeling.language.clip_encoder import CLIPEncoder
from ovformer.modeling.meta_arch.base_model import OVFormerBase
from support.tiny_clip import make_clip
from support.video_models import (
    CLIPS,
    assert_gradients_are_finite,
    build_small_model,
    make_cfg,
    make_instances,
    write_vocabulary,
)

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def build(tmp_path):
    """Function from a number of classes, a CLIP width and config keys to the tiny image model."""
    kind = {"MODEL.META_ARCHITECTURE": "OVFormer", "MODEL.TIMM.NORM": "BN"}
    kind["TEST.DETECTIONS_PER_IMAGE"] = 100
    return lambda classes=3, width=128, **options: build_small_model(
        tmp_path, classes, width, **{**kind, **options}
    )


def batch(width=128, counts=(2, 1)):
    """Images whose sides are multiples of nothing, with rectangles as instances."""
    generator = torch.Generator().manual_seed(0)
    records = []
    for size, count in zip(((53, 37), (40, 71)), counts, strict=True):
        masks = torch.zeros(count, *size, dtype=torch.bool)
        for i, mask in enumerate(masks):
            mask[3 * i : 3 * i + 20, 5 * i : 5 * i + 15] = True
        image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
        record = {"image": image, "instances": make_instances(size, masks)}
        record["clip_features"] = torch.randn(1, width, generator=generator)
        records.append(record | {"height": 2 * size[0] + 1, "width": 2 * size[1] - 1})
    return records


def train_and_predict(model, records):
    """Losses of a training step, and the predictions."""
    losses = model.train()(records)
    sum(losses.values()).backward()
    assert_gradients_are_finite(model)
    with torch.no_grad():
        return losses, [result["instances"] for result in model.eval()(records)]


@pytest.mark.parametrize(
    ("recorded", "classes", "backbone", "options"),
    [
        ("ovformer_lvis_R50", 1203, "R50", {}),
        ("ovformer_lvis_SwinB", 1203, "SwinB", {}),
        ("ovformer_lvis_R50", 1203, "R50", {"MODEL.META_ARCHITECTURE": "OVFormerVideo"}),
        ("video_ovformer_lvvis_R50", 1196, "R50", CLIPS),
    ],
)
def test_published_models_have_the_released_keys_and_shapes(
    tmp_path, reference, recorded, classes, backbone, options
) -> None:
    file = str(CONFIGS / "lvis" / f"ovformer_{backbone}_bs8.yaml")
    options = {"MODEL.DEVICE": "cpu", **write_vocabulary(tmp_path, classes, 512), **options}
    model = build_model(make_cfg(options, file))
    recorded = json.loads(reference(f"{recorded}_state_dict.json").read_text())
    expected = {
        key: (shape, recorded["dtypes"][key], recorded["kind"][key])
        for key, shape in recorded["shapes"].items()
        if not key.endswith("num_batches_tracked")
    }
    parameters = {key for key, _ in model.named_parameters()}
    got = {
        key: (list(x.shape), str(x.dtype), "parameter" if key in parameters else "buffer")
        for key, x in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    assert got == expected
    assert sum(p.numel() for p in model.parameters()) == recorded["num_parameters"]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == recorded["num_trainable"]


@pytest.mark.parametrize(
    ("options", "losses_of"),
    [
        ({"SIZE_DIVISIBILITY": 0}, 3),
        ({"SIZE_DIVISIBILITY": 1}, 3),
        ({"DEEP_SUPERVISION": False}, 1),
        ({"DEC_LAYERS": 2, "HIDDEN_DIM": 48, "ALIGNMENT_HIDDEN_DIM": 20}, 2),
        ({"DEC_LAYERS": 5}, 5),  # more than levels of features
    ],
)
def test_sizes_of_images_and_decoders(build, options, losses_of) -> None:
    model = build(**{f"MODEL.MASK_FORMER.{key}": value for key, value in options.items()})
    losses, results = train_and_predict(model, batch())
    assert len(losses) == 4 * losses_of
    for record, instances in zip(batch(), results, strict=True):
        size = (record["height"], record["width"])
        assert instances.image_size == size
        # 6 queries and 3 classes are fewer pairs than the 100 detections asked for.
        assert instances.pred_masks.shape == (18, *size)
        assert instances.scores.equal(instances.scores.sort(descending=True).values)
        assert 0 <= instances.pred_classes.min() <= instances.pred_classes.max() < 3


def test_one_class_and_one_query(build) -> None:
    model = build(1, 8, **{"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 1})
    _, results = train_and_predict(model, batch(8, counts=(1, 1)))
    assert [len(instances) for instances in results] == [1, 1]


@pytest.mark.parametrize("counts", [(2, 0), (0, 0)])
def test_images_without_instances_train_all_parameters(build, counts) -> None:
    model, records = build(), batch(counts=counts)
    assert [model.instance_counts(record) for record in records] == [[n] for n in counts]
    losses, _ = train_and_predict(model, records)
    assert losses["loss_object_ce"] > 0
    assert sum(counts) or losses["loss_mask"] == losses["loss_dice"] == losses["loss_ce"] == 0


@pytest.mark.parametrize(("divisibility", "size"), [(8, (16, 16)), (0, (32, 32)), (1, (9, 13))])
def test_images_are_padded_to_a_common_size(build, divisibility, size) -> None:
    model = build(**{"MODEL.MASK_FORMER.SIZE_DIVISIBILITY": divisibility})
    images = model.normalize_images([torch.zeros(3, 9, 7), torch.zeros(3, 5, 13)])
    assert images.tensor.shape == (2, 3, *size) and images.image_sizes == [(9, 7), (5, 13)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains_and_predicts(build, dtype) -> None:
    model = build()
    torch.manual_seed(0)
    precise = {name: loss.item() for name, loss in model.train()(batch()).items()}
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype):
        losses, results = train_and_predict(model, batch())
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(precise, rel=0.1)
    assert all(instances.scores.dtype == torch.float32 for instances in results)


def test_clip_features_are_computed_where_there_are_none(build, tmp_path) -> None:
    name = make_clip(tmp_path / "clip")
    options = {"MODEL.CLIP.NAME": name, "MODEL.CLIP.IMAGE_SIZE": 32, "INPUT.FORMAT": "RGB"}
    model = build(width=16, **options).eval()
    keys = set(model.state_dict())

    encoder = CLIPEncoder.from_pretrained(name)
    records = [{key: r[key] for key in ("image", "height", "width")} for r in batch()]
    clip_images = [encoder.preprocess(r["image"].permute(1, 2, 0).numpy()) for r in records]
    embeddings = encoder.encode_image(torch.stack(clip_images))[:, None]
    stored = [{**r, "clip_features": x} for r, x in zip(records, embeddings, strict=True)]
    with torch.no_grad():
        got, expected = ([x["instances"].scores for x in model(r)] for r in (records, stored))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert set(model.state_dict()) == keys


def test_another_vocabulary_is_for_inference_only(build) -> None:
    model = build(3).eval()
    model.set_text_classifier(torch.randn(40, 128), [f"class {i}" for i in range(40)])
    assert model.num_classes == 40 and model.vocabulary[39] == "class 39"
    with torch.no_grad():
        instances = model(batch())[0]["instances"]
    assert len(instances) == 100 and instances.pred_classes.max() >= 3
    with pytest.raises(ValueError, match="criterion is for 3 classes, .* has 40"):
        model.train()(batch())
    model.criterion = None
    with pytest.raises(ValueError, match="built without a criterion"):
        model(batch())


def test_vocabulary_keys_are_the_entries_that_a_vocabulary_changes(build) -> None:
    small, large = build(2).state_dict(), build(7).state_dict()
    changed = {key for key in small if small[key].shape != large[key].shape}
    assert "sem_seg_head.predictor.class_embed.zs_weight" in changed
    assert changed <= set(OVFormerBase.VOCABULARY_KEYS)


def test_predictions_need_no_annotations_and_no_target_size(build) -> None:
    record = {key: batch()[0][key] for key in ("image", "clip_features")}
    model = build().eval()
    with torch.no_grad():
        assert model([record])[0]["instances"].image_size == (53, 37)
    for names, named in (({"file_name": "a.png"}, "a.png"), ({"video_id": 7}, "7")):
        with pytest.raises(ValueError, match=f"{named} has no 'instances'"):
            model.train()([record | names])
