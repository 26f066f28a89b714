import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import MetadataCatalog
from ovformer.modeling.objective.federated_loss import (
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
    none, weights = torch.tensor([], dtype=torch.int64), torch.tensor([1.0, 3.0])
    counts = sum(sample_federated_classes(none, weights, 1).int() for _ in range(2000))
    assert (counts / 2000).tolist() == pytest.approx([0.25, 0.75], abs=0.04)


def config(train: tuple[str, ...] = (), **changes: object):
    opts = [x for k, v in changes.items() for x in (f"MODEL.MASK_FORMER.{k}", v)]
    return get_ovformer_cfg(opts=["DATASETS.TRAIN", train, *opts])


def test_weights_from_a_file_from_metadata_and_for_inference(tmp_path) -> None:
    """In the order of ids, with 0 for held-out classes and for those without an image."""
    path = tmp_path / "info.json"
    path.write_text(json.dumps(INFO))
    cfg = config(CAT_INFO_PATH=str(path))
    assert freq_weight_from_config(cfg, 5).tolist() == [0.0, 2.0, 4.0, 0.0, 0.0]
    MetadataCatalog.get("federated_loss_test").category_info = INFO
    cfg = config(("federated_loss_test",), FED_LOSS_POWER=0.0)
    assert freq_weight_from_config(cfg, 5).tolist() == [0.0, 1.0, 1.0, 0.0, 0.0]
    assert freq_weight_from_config(config(), 3).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(INFO)[:-9], r"info\.json is not valid JSON"),
        ('[{"id": 1, "frequency": "f"}]', "KeyError.'image_count'"),
        (json.dumps({"categories": INFO}), "expected a list of categories"),
        (json.dumps(INFO), "has 5 categories, but .*NUM_CLASSES is 6"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text: str, message: str) -> None:
    path = tmp_path / "info.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"CAT_INFO_PATH.*{message}"):
        freq_weight_from_config(config(CAT_INFO_PATH=str(path)), 6)


def test_a_missing_file_and_a_data_set_without_info_are_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"CAT_INFO_PATH: no file .*info\.json.*get_lvis"):
        freq_weight_from_config(config(CAT_INFO_PATH=str(tmp_path / "info.json")), 5)
    with pytest.raises(ValueError, match="'unknown_set' has no category_info"):
        freq_weight_from_config(config(("unknown_set",)), 5)
