"""Instances of an image equal the plain way, in which all queries get full masks."""

from unittest.mock import Mock

import pytest
import torch
from torch.nn import functional as F

from ovformer.d2 import BitMasks
from ovformer.modeling.tracks import postprocess
from ovformer.modeling.tracks.postprocess import (
    class_scores,
    mask_boxes,
    mean_mask_probability,
    predict_instances,
)

PADDED, IMAGE, OUTPUT = (32, 64), (29, 50), (41, 70)


def make_outputs(queries=40, classes=7):
    torch.manual_seed(0)
    return {
        "pred_logits": torch.randn(queries, classes + 1) * 3,
        "pred_object_logits": torch.randn(queries, 2),
        "mask_embed": torch.randn(queries, 6),
        "mask_features": torch.randn(6, 8, 16),
    }


def plain_instances(outputs, limit):
    """Masks of all queries at full size, then the choice; as published, for one image."""
    masks = torch.einsum("qc,chw->qhw", outputs["mask_embed"], outputs["mask_features"])
    masks = F.interpolate(masks[None], size=PADDED, mode="bilinear", align_corners=False)[0]
    masks = masks[None, :, : IMAGE[0], : IMAGE[1]]
    masks = F.interpolate(masks, size=OUTPUT, mode="bilinear", align_corners=False)[0]
    scores = outputs["pred_logits"][:, :-1].sigmoid()
    scores = (scores * outputs["pred_object_logits"].softmax(-1)[:, :1]) ** 0.5
    num_classes = scores.shape[1]
    scores, indices = scores.flatten().topk(min(limit, scores.numel()))
    masks = masks[indices // num_classes]
    area = (masks > 0).flatten(1)
    scores = scores * (masks.sigmoid().flatten(1) * area).sum(1) / (area.sum(1) + 1e-6)
    order = scores.argsort(descending=True)
    return masks[order] > 0, scores[order], (indices % num_classes)[order]


@pytest.mark.parametrize("limit", [1, 100, 1000])  # there are 280 pairs of query and class
def test_instances_are_those_of_the_plain_way(limit, monkeypatch) -> None:
    """Also with a few masks at a time; and only queries that are selected get one."""
    monkeypatch.setattr(postprocess, "_MASKS_AT_ONCE", 3)
    restore = Mock(wraps=postprocess.restore_masks)
    monkeypatch.setattr(postprocess, "restore_masks", restore)
    outputs = make_outputs()
    instances = predict_instances(outputs, PADDED, IMAGE, OUTPUT, limit)
    masks, scores, classes = plain_instances(outputs, limit)
    assert instances.image_size == OUTPUT and instances.pred_masks.dtype == torch.bool
    torch.testing.assert_close(instances.scores, scores)
    assert instances.pred_classes.equal(classes)
    assert instances.pred_masks.equal(masks)
    assert instances.pred_boxes.tensor.equal(BitMasks(masks).get_bounding_boxes().tensor)
    assert sum(len(call.args[0]) for call in restore.call_args_list) <= limit


def test_scores_are_float32() -> None:
    logits, objects = torch.randn(3, 5).bfloat16(), torch.randn(3, 2).bfloat16()
    assert class_scores(logits, objects).equal(class_scores(logits.float(), objects.float()))


def test_an_empty_mask_has_probability_zero_and_an_empty_box() -> None:
    logits = torch.full((3, 4, 5), -1.0)
    logits[1, 1:3, 2:5] = 2.0
    logits[2, 3, 0] = 1.0
    expected = [0.0, torch.tensor(2.0).sigmoid().item(), torch.tensor(1.0).sigmoid().item()]
    assert mean_mask_probability(logits).tolist() == pytest.approx(expected, rel=1e-5)
    boxes = mask_boxes(logits > 0)
    assert boxes.tolist() == [[0, 0, 0, 0], [2, 1, 5, 3], [0, 3, 1, 4]]
    assert mask_boxes(torch.zeros(0, 4, 5, dtype=torch.bool)).shape == (0, 4)
