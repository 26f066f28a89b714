"""The image model as its config builds it: the published sizes, and the edges of the settings."""

import json
from pathlib import Path

import pytest
import torch

from ovformer.d2 import BitMasks, Instances, build_model
from ovformer.modeling.language.clip_encoder import CLIPEncoder
from support.tiny_clip import make_clip
from support.video_models import (
    CLIPS,
    assert_gradients_are_finite,
    build_small_model,
    make_cfg,
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


def batch(width=128, sizes=((53, 37), (40, 71)), counts=(2, 1), classes=3):
    """Images whose sides are multiples of nothing, with rectangles as instances."""
    generator = torch.Generator().manual_seed(0)
    records = []
    for (height, side), count in zip(sizes, counts, strict=True):
        masks = torch.zeros(count, height, side, dtype=torch.bool)
        for i in range(count):
            masks[i, 3 * i : 3 * i + 20, 5 * i : 5 * i + 15] = True
        instances = Instances((height, side))
        instances.gt_masks = BitMasks(masks)
        instances.gt_classes = torch.arange(count) % classes
        records.append(
            {
                "image": torch.randint(
                    0, 256, (3, height, side), dtype=torch.uint8, generator=generator
                ),
                "height": 2 * height + 1,
                "width": 2 * side - 1,
                "clip_features": torch.randn(1, width, generator=generator),
                "instances": instances,
            }
        )
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


@pytest.mark.parametrize("divisibility", [0, 1, 32])
def test_images_of_odd_sizes(build, divisibility) -> None:
    model = build(**{"MODEL.MASK_FORMER.SIZE_DIVISIBILITY": divisibility})
    losses, results = train_and_predict(model, batch())
    assert len(losses) == 4 * 3
    for record, instances in zip(batch(), results, strict=True):
        size = (record["height"], record["width"])
        assert instances.image_size == size
        # 6 queries and 3 classes are fewer pairs than the 100 detections asked for.
        assert instances.pred_masks.shape == (18, *size)
        assert instances.scores.equal(instances.scores.sort(descending=True).values)
        assert 0 <= instances.pred_classes.min() <= instances.pred_classes.max() < 3


@pytest.mark.parametrize("width", [8, 512])
def test_one_class_one_query_and_any_clip_width(build, width) -> None:
    model = build(1, width, **{"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 1})
    _, results = train_and_predict(model, batch(width, classes=1))
    assert [len(instances) for instances in results] == [1, 1]


@pytest.mark.parametrize("counts", [(2, 0), (0, 0)])
def test_images_without_instances_train_all_parameters(build, counts) -> None:
    losses, _ = train_and_predict(build(), batch(counts=counts))
    assert losses["loss_object_ce"] > 0
    assert sum(counts) or losses["loss_mask"] == losses["loss_dice"] == losses["loss_ce"] == 0


def test_without_deep_supervision_only_the_last_layer_has_losses(build) -> None:
    losses, _ = train_and_predict(build(**{"MODEL.MASK_FORMER.DEEP_SUPERVISION": False}), batch())
    assert set(losses) == {"loss_ce", "loss_object_ce", "loss_mask", "loss_dice"}


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_widths_of_the_decoders_may_differ_and_layers_be_fewer_than_levels(build, layers) -> None:
    options = {
        "MODEL.MASK_FORMER.DEC_LAYERS": layers + 1,
        "MODEL.MASK_FORMER.HIDDEN_DIM": 48,
        "MODEL.MASK_FORMER.ALIGNMENT_HIDDEN_DIM": 20,
    }
    losses, _ = train_and_predict(build(**options), batch())
    assert len(losses) == 4 * (layers + 1)


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
    """The same predictions as with the features stored, from the original image or the input."""
    name = make_clip(tmp_path / "clip")
    options = {"MODEL.CLIP.NAME": name, "MODEL.CLIP.IMAGE_SIZE": 32, "INPUT.FORMAT": "RGB"}
    model = build(width=16, **options).eval()
    keys = set(model.state_dict())

    encoder = CLIPEncoder.from_pretrained(name)
    records = [{key: r[key] for key in ("image", "height", "width")} for r in batch()]
    clip_images = [encoder.preprocess(r["image"].permute(1, 2, 0).numpy()) for r in records]
    embeddings = encoder.encode_image(torch.stack(clip_images))[:, None]
    ways = (
        [{**r, "clip_features": x} for r, x in zip(records, embeddings, strict=True)],
        [{**r, "clip_image": x} for r, x in zip(records, clip_images, strict=True)],
        records,
    )
    with torch.no_grad():
        stored, *computed = ([x["instances"] for x in model(records)] for records in ways)
    for results in computed:
        for got, expected in zip(results, stored, strict=True):
            torch.testing.assert_close(got.scores, expected.scores, rtol=1e-5, atol=1e-6)
    assert set(model.state_dict()) == keys


def test_a_replaced_vocabulary_is_predicted_from(build) -> None:
    model = build(3).eval()
    model.set_text_classifier(torch.randn(40, 128), [f"class {i}" for i in range(40)])
    with torch.no_grad():
        instances = model(batch())[0]["instances"]
    assert len(instances) == 100 and instances.pred_classes.max() >= 3
    with pytest.raises(ValueError, match="criterion is for 3 classes, .* has 40"):
        model.train()(batch())


def test_predictions_need_no_annotations_and_no_target_size(build) -> None:
    record = {key: value for key, value in batch()[0].items() if key in ("image", "clip_features")}
    with torch.no_grad():
        (result,) = build().eval()([record])
    assert result["instances"].image_size == (53, 37)


def test_features_that_the_backbone_lacks_are_refused(build) -> None:
    with pytest.raises(ValueError, match=r"SEM_SEG_HEAD.IN_FEATURES: .*layer2.*\['res2'\]"):
        build(**{"MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2"]})
