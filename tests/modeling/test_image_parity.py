"""The whole image model gives the numbers recorded from the published one.

``tests/reference/image_small.npz``: a small configuration, two images, generated weights.
"""

import json

import numpy as np
import pytest
import torch

from ovformer.d2 import BitMasks, Instances
from ovformer.modeling.tracks.postprocess import predict_instances
from support.recorded_numbers import (
    TOLERANCE,
    assert_same,
    assert_same_losses,
    assert_same_outputs,
    gradient_difference,
)


@pytest.fixture(scope="module")
def recorded(reference):
    return dict(np.load(reference("image_small.npz")))


@pytest.fixture(scope="module")
def model(build_recorded_model):
    return build_recorded_model("rcf", **{"MODEL.META_ARCHITECTURE": "OVFormer"})


@pytest.fixture
def batch(recorded):
    records = []
    for i in range(2):
        image = torch.from_numpy(recorded[f"in.image{i}"])
        instances = Instances(tuple(image.shape[1:]))
        instances.gt_classes = torch.from_numpy(recorded[f"in.gt_classes{i}"])
        instances.gt_masks = BitMasks(torch.from_numpy(recorded[f"in.gt_masks{i}"]).bool())
        height, width = recorded[f"in.out_size{i}"].tolist()
        record = {"image": image, "height": height, "width": width, "instances": instances}
        records.append(record | {"clip_features": torch.from_numpy(recorded[f"in.clip{i}"])})
    return records


def assert_same_masks(got, expected) -> None:
    """Compare two sets of masks, because the order of nearly equal scores is arbitrary.

    At most one pixel in ten thousand may differ: logits next to zero have no certain sign.
    """
    assert got.shape == expected.shape
    different = (got[:, None] != expected).float().mean((2, 3))
    assert different.amin(0).max() < 1e-4 and different.amin(1).max() < 1e-4


def test_names_shapes_and_vocabulary(model, recorded, reference) -> None:
    shapes = json.loads(reference("image_small_state_dict.json").read_text())
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == shapes
    weights = model.sem_seg_head.predictor.class_embed.zs_weight
    assert_same(weights, recorded["zs_weight"], "zs_weight")
    assert_same(model.criterion.freq_weight, recorded["criterion.freq_weight"], "freq_weight")


@torch.no_grad()
def test_pixel_decoder_and_every_layer(model, recorded, batch) -> None:
    head = model.eval().sem_seg_head
    head.predictor.train()  # has no other effect than to keep all layers
    images = model.normalize_images([record["image"] for record in batch])
    mask_features, levels = head.pixel_decoder(model.backbone(images.tensor))
    prefix = "eval.pixel_decoder."
    assert_same(mask_features, recorded[f"{prefix}mask_features"], "mask_features")
    assert len(levels) == 3
    for i, level in enumerate(levels):
        assert_same(level, recorded[f"{prefix}multi_scale.{i}"], f"level {i}")
    outputs = head.predictor(levels, mask_features, model.image_embedder(batch, model.device))
    assert_same_outputs(outputs, recorded, "eval.out.")


def unpack(recorded, prefix):
    """Recorded instances, highest score first."""
    scores = recorded[f"{prefix}scores"]
    order = np.argsort(-scores)
    masks = None
    if f"{prefix}pred_masks" in recorded:
        shape = recorded[f"{prefix}pred_masks_shape"]
        bits = np.unpackbits(recorded[f"{prefix}pred_masks"])[: shape.prod()]
        masks = torch.from_numpy(bits.reshape(shape).astype(bool)[order])
    return scores[order], recorded[f"{prefix}pred_classes"][order].tolist(), masks


@torch.no_grad()
def test_instances_of_single_images_and_of_a_batch(model, recorded, batch) -> None:
    """In a batch the published code scores each image with the objectness of the first one."""
    model.eval()
    alone = [model([record])[0]["instances"] for record in batch]
    together = [result["instances"] for result in model(batch)]
    for i, pair in enumerate(zip(alone, together, strict=True)):
        scores, classes, _ = unpack(recorded, f"eval.single{i}.")
        for instances in pair:
            assert_same(instances.scores, scores, f"scores {i}")
            assert instances.pred_classes.tolist() == classes
            assert instances.image_size == tuple(recorded[f"in.out_size{i}"])
            boxes = BitMasks(instances.pred_masks).get_bounding_boxes()
            assert instances.pred_boxes.tensor.equal(boxes.tensor)
        assert_same_masks(pair[0].pred_masks, pair[1].pred_masks)
    _, _, masks = unpack(recorded, "eval.inst0.")
    assert_same_masks(together[0].pred_masks, masks)


@torch.no_grad()
def test_masks_of_the_second_image_with_the_objectness_of_the_first(model, recorded, batch) -> None:
    """Its masks were recorded with the fault only, so here the fault is made on purpose."""
    outputs, _ = model.eval().run_network(batch)
    keys = ("pred_logits", "mask_embed", "mask_features")
    faulty = {key: outputs[key][1] for key in keys}
    faulty["pred_object_logits"] = outputs["pred_object_logits"][0]
    instances = predict_instances(faulty, (128, 160), (118, 150), (118, 150), 10)
    scores, classes, masks = unpack(recorded, "eval.inst1.")
    assert_same(instances.scores, scores, "scores")
    assert instances.pred_classes.tolist() == classes
    assert_same_masks(instances.pred_masks, masks)


def test_training_step(model, recorded, batch) -> None:
    """Outputs, losses, matches and gradients, with the random draws of the recording."""
    model.train()
    outputs, images = model.run_network(batch)
    targets = model.prepare_targets(batch, tuple(images.tensor.shape[-2:]))
    total = assert_same_losses(model, outputs, targets, recorded)
    assert gradient_difference(model, total, recorded) < TOLERANCE
