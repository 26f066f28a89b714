import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import MetadataCatalog
from ovformer.modeling.objective.federated_loss import (
    class_draw_weights,
    federated_class_loss,
    freq_weight_from_config,
    sample_federated_classes,
)

INFO = [
    {"id": 7, "frequency": "f", "image_count": 16},
    {"id": 2, "frequency": "r", "image_count": 9},
    {"id": 5, "frequency": "c", "image_count": 4},
    {"id": 9, "frequency": "n", "image_count": 25},
    {"id": 11, "frequency": "f", "image_count": 0},
]


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.0, 1.0, 3.0]), min_size=1, max_size=12),
    st.sets(st.integers(0, 12)),
    st.integers(0, 20),
)
def test_the_federated_set(weights: list[float], present: set[int], number: int) -> None:
    classes = len(weights)
    present = sorted(c for c in present if c <= classes)
    eligible = {c for c, w in enumerate(weights) if w > 0} - set(present)
    before = torch.tensor(weights)
    chosen = sample_federated_classes(torch.tensor(present, dtype=torch.int64), before, number)
    assert chosen.shape == (classes,)
    drawn = set(chosen.nonzero()[:, 0].tolist()) - set(present)
    assert {c for c in present if c < classes} <= set(chosen.nonzero()[:, 0].tolist())
    assert drawn <= eligible
    assert len(drawn) == min(max(0, number - len(present)), len(eligible))
    assert before.tolist() == weights  # the buffer is not written to


def test_frequent_classes_are_drawn_more_often() -> None:
    torch.manual_seed(0)
    none = torch.tensor([], dtype=torch.int64)
    weights = torch.tensor([1.0, 3.0])
    counts = sum(sample_federated_classes(none, weights, 1).int() for _ in range(2000))
    assert counts.sum() == 2000
    assert counts[1] / 2000 == pytest.approx(0.75, abs=0.04)


def test_the_class_loss_is_a_sum_over_instances_and_chosen_classes() -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0], [0.1, 0.4, -0.2]])
    chosen = torch.tensor([True, False, True])
    p = logits.sigmoid()
    expected = -(p[0, 2].log() + (1 - p[0, 0]).log() + p[1, 0].log() + (1 - p[1, 2]).log())
    torch.testing.assert_close(federated_class_loss(logits, torch.tensor([2, 0]), chosen), expected)
    empty = federated_class_loss(logits[:0], torch.tensor([], dtype=torch.int64), chosen)
    assert empty.item() == 0


def test_draw_weights_follow_ids_and_leave_held_out_classes_out() -> None:
    assert class_draw_weights(INFO, 0.5).tolist() == [0.0, 2.0, 4.0, 0.0, 0.0]
    assert class_draw_weights(INFO, 0.0).tolist() == [0.0, 1.0, 1.0, 0.0, 0.0]


def config(train: tuple[str, ...] = (), **changes: object):
    opts = ["DATASETS.TRAIN", train]
    for key, value in changes.items():
        opts += [f"MODEL.MASK_FORMER.{key}", value]
    return get_ovformer_cfg(opts=opts)


def test_weights_from_a_file_from_metadata_and_for_inference(tmp_path) -> None:
    path = tmp_path / "info.json"
    path.write_text(json.dumps(INFO))
    cfg = config(CAT_INFO_PATH=str(path))
    assert freq_weight_from_config(cfg, 5).tolist() == [0.0, 2.0, 4.0, 0.0, 0.0]
    MetadataCatalog.get("federated_loss_test").category_info = INFO
    cfg = config(("federated_loss_test",), FED_LOSS_POWER=1.0)
    assert freq_weight_from_config(cfg, 5).tolist() == [0.0, 4.0, 16.0, 0.0, 0.0]
    assert freq_weight_from_config(config(), 3).tolist() == [1.0, 1.0, 1.0]


def test_errors_name_the_file_or_the_data_set(tmp_path) -> None:
    path = tmp_path / "info.json"
    with pytest.raises(FileNotFoundError, match=r"CAT_INFO_PATH: no file .*info\.json.*get_lvis"):
        freq_weight_from_config(config(CAT_INFO_PATH=str(path)), 5)
    path.write_text(json.dumps(INFO)[:-9])
    with pytest.raises(ValueError, match=r"info\.json is not valid JSON"):
        freq_weight_from_config(config(CAT_INFO_PATH=str(path)), 5)
    path.write_text(json.dumps([{"id": 1, "frequency": "f"}]))
    with pytest.raises(ValueError, match="KeyError.'image_count'"):
        freq_weight_from_config(config(CAT_INFO_PATH=str(path)), 1)
    path.write_text(json.dumps({"categories": INFO}))
    with pytest.raises(ValueError, match="expected a list of categories"):
        freq_weight_from_config(config(CAT_INFO_PATH=str(path)), 5)
    path.write_text(json.dumps(INFO))
    with pytest.raises(ValueError, match="has 5 categories, but .*NUM_CLASSES is 6"):
        freq_weight_from_config(config(CAT_INFO_PATH=str(path)), 6)
    with pytest.raises(ValueError, match="'unknown_set' has no category_info"):
        freq_weight_from_config(config(("unknown_set",)), 5)
