"""DetectionCheckpointer: matching of names by suffix, resuming, saving."""

import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from ovformer.d2 import DetectionCheckpointer


class Backboned(nn.Module):
    """The model of the recorded case: names with a prefix, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.base = nn.Module()
        self.backbone.base.conv1 = nn.Linear(2, 2, bias=False)
        self.backbone.base.layer1 = nn.ModuleList([nn.Linear(2, 2, bias=False)])
        self.head = nn.Linear(2, 3)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


def write_pickle(path, entries: dict, **extra) -> str:
    content = {"model": entries, "__author__": "third_party", "matching_heuristics": True} | extra
    path.write_bytes(pickle.dumps(content))
    return str(path)


@pytest.mark.parametrize("as_array", [True, False])
def test_pickled_weights_are_matched_by_suffix(tmp_path, recorded, as_array) -> None:
    case = recorded["matching_heuristics"]
    model = Backboned()
    assert sorted(model.state_dict()) == case["model_keys"]
    entries = {
        "conv1.weight": np.full((2, 2), 2.0, np.float32),
        "layer1.0.weight": np.full((2, 2), 3.0, np.float32),
        "fc.weight": np.full((3, 2), 4.0, np.float32),
    }
    assert sorted(entries) == case["file_keys"]
    if not as_array:
        entries = OrderedDict((name, torch.from_numpy(value)) for name, value in entries.items())
    DetectionCheckpointer(model).load(write_pickle(tmp_path / "weights.pkl", entries))
    loaded = {name: value.mean().item() for name, value in model.state_dict().items()}
    expected = dict.fromkeys(case["model_keys"], 0.0) | case["loaded"]
    assert loaded == expected


def test_the_longest_suffix_of_whole_parts_wins(tmp_path) -> None:
    model = nn.ModuleDict({"a": nn.ModuleDict({"conv": nn.Linear(1, 1, bias=False)})})
    model["myconv"] = nn.Linear(1, 1, bias=False)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    entries = {"a.conv.weight": np.ones((1, 1)), "conv.weight": np.full((1, 1), 2.0)}
    DetectionCheckpointer(model).load(write_pickle(tmp_path / "weights.pkl", entries))
    assert model["a"]["conv"].weight.item() == 1
    assert model["myconv"].weight.item() == 0


def test_an_entry_that_matches_two_names_is_an_error(tmp_path) -> None:
    model = nn.ModuleDict({"a": nn.Linear(1, 1, bias=False), "b": nn.Linear(1, 1, bias=False)})
    path = write_pickle(tmp_path / "weights.pkl", {"weight": np.ones((1, 1))})
    with pytest.raises(ValueError):
        DetectionCheckpointer(model).load(path)


def test_an_entry_of_another_shape_is_skipped_with_a_warning(tmp_path, lines) -> None:
    model = Backboned()
    path = write_pickle(tmp_path / "weights.pkl", {"conv1.weight": np.ones((5, 5))})
    DetectionCheckpointer(model).load(path)
    assert model.backbone.base.conv1.weight.sum() == 0
    assert any("(5, 5)" in line or "[5, 5]" in line for line in lines())


def test_query_asks_for_matching_in_a_pth(tmp_path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"conv1.weight": torch.ones(2, 2)}, path)
    model = Backboned()
    DetectionCheckpointer(model).load(str(path))
    assert model.backbone.base.conv1.weight.sum() == 0
    DetectionCheckpointer(model).load(f"{path}?matching_heuristics=True")
    assert model.backbone.base.conv1.weight.sum() == 4
    with pytest.raises(ValueError, match="speed"):
        DetectionCheckpointer(model).load(f"{path}?speed=3")


def test_missing_and_unexpected_names_are_reported(tmp_path, lines) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"model": {"head.weight": torch.ones(3, 2), "other": torch.ones(1)}}, path)
    DetectionCheckpointer(Backboned()).load(str(path))
    missing, unexpected = lines()[-2:]
    assert "not found in the checkpoint" in missing
    assert "head.bias" in missing
    assert unexpected.endswith("not used by the model: other")


def test_pixel_mean_need_not_be_in_the_file(tmp_path, lines) -> None:
    model = nn.Linear(1, 1)
    path = tmp_path / "weights.pth"
    torch.save({"model": model.state_dict()}, path)
    model.register_buffer("pixel_mean", torch.zeros(3, 1, 1))
    DetectionCheckpointer(model).load(str(path))
    assert not any("not found in the checkpoint" in line for line in lines())


def test_save_and_resume(tmp_path) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer, DetectionCheckpointer]:
        model = nn.Linear(2, 1)
        optimizer = torch.optim.AdamW(model.parameters())
        return model, optimizer, DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer)

    model, optimizer, checkpointer = build()
    assert not checkpointer.has_checkpoint()
    assert checkpointer.resume_or_load("", resume=True) == {}
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpointer.save("model_0000000", iteration=0)
    checkpointer.save("model_0000001", iteration=1)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"

    resumed, resumed_optimizer, checkpointer = build()
    assert checkpointer.has_checkpoint()
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000001.pth")
    # The file that is given counts only where there is nothing to resume from.
    assert checkpointer.resume_or_load("elsewhere.pth", resume=True)["iteration"] == 1
    assert torch.equal(resumed.weight, model.weight)
    assert resumed_optimizer.state_dict()["state"][0]["step"] == 1

    other, other_optimizer, checkpointer = build()
    rest = checkpointer.resume_or_load(str(tmp_path / "model_0000000.pth"), resume=False)
    assert rest["iteration"] == 0
    assert "optimizer" in rest  # not loaded
    assert torch.equal(other.weight, model.weight)
    assert other_optimizer.state_dict()["state"] == {}


def test_nothing_is_saved_without_a_folder_or_with_save_to_disk_off(tmp_path) -> None:
    DetectionCheckpointer(nn.Linear(1, 1)).save("model")
    DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path), save_to_disk=False).save("model")
    assert list(tmp_path.iterdir()) == []


def test_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(AssertionError, match=r"nothing\.pth"):
        DetectionCheckpointer(nn.Linear(1, 1)).load(str(tmp_path / "nothing.pth"))
