"""DetectionCheckpointer: matching of names by suffix, resuming, saving."""

import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from ovformer.d2 import DetectionCheckpointer


def zeros(**layers: nn.Module) -> nn.ModuleDict:
    """Return a model of these layers, whose weights are 0."""
    model = nn.ModuleDict(layers)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def linear(inputs: int = 1, outputs: int = 1) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def build_recorded_model() -> nn.ModuleDict:
    """Return the model of the recorded case: names with a prefix, and a head."""
    base = zeros(conv1=linear(2, 2), layer1=nn.ModuleList([linear(2, 2)]))
    return zeros(backbone=zeros(base=base), head=nn.Linear(2, 3))


def write_pickle(folder, entries: dict) -> str:
    content = {"model": entries, "__author__": "third_party", "matching_heuristics": True}
    (folder / "weights.pkl").write_bytes(pickle.dumps(content))
    return str(folder / "weights.pkl")


@pytest.mark.parametrize("as_array", [True, False])
def test_pickled_weights_are_matched_by_suffix(tmp_path, recorded, as_array) -> None:
    case = recorded["matching_heuristics"]
    model = build_recorded_model()
    assert sorted(model.state_dict()) == case["model_keys"]
    entries = {
        "conv1.weight": np.full((2, 2), 2.0, np.float32),
        "layer1.0.weight": np.full((2, 2), 3.0, np.float32),
        "fc.weight": np.full((3, 2), 4.0, np.float32),
    }
    assert sorted(entries) == case["file_keys"]
    if not as_array:
        entries = OrderedDict((name, torch.from_numpy(value)) for name, value in entries.items())
    DetectionCheckpointer(model).load(write_pickle(tmp_path, entries))
    loaded = {name: value.mean().item() for name, value in model.state_dict().items()}
    expected = dict.fromkeys(case["model_keys"], 0.0) | case["loaded"]
    assert loaded == expected


def test_the_longest_suffix_of_whole_parts_wins(tmp_path) -> None:
    model = zeros(a=zeros(conv=linear()), myconv=linear())
    entries = {"a.conv.weight": np.ones((1, 1)), "conv.weight": np.full((1, 1), 2.0)}
    DetectionCheckpointer(model).load(write_pickle(tmp_path, entries))
    assert model["a"]["conv"].weight.item() == 1
    assert model["myconv"].weight.item() == 0


def test_an_entry_that_matches_two_names_is_an_error(tmp_path) -> None:
    model = zeros(a=linear(), b=linear())
    with pytest.raises(ValueError):
        DetectionCheckpointer(model).load(write_pickle(tmp_path, {"weight": np.ones((1, 1))}))


def test_an_entry_of_another_shape_is_skipped_with_a_warning(tmp_path, lines) -> None:
    model = build_recorded_model()
    DetectionCheckpointer(model).load(write_pickle(tmp_path, {"conv1.weight": np.ones((5, 5))}))
    assert model["backbone"]["base"]["conv1"].weight.sum() == 0
    assert any("(5, 5)" in line or "[5, 5]" in line for line in lines())


def test_query_asks_for_matching_in_a_pth(tmp_path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"conv1.weight": torch.ones(2, 2)}, path)
    model = build_recorded_model()
    DetectionCheckpointer(model).load(str(path))
    assert model["backbone"]["base"]["conv1"].weight.sum() == 0
    DetectionCheckpointer(model).load(f"{path}?matching_heuristics=True")
    assert model["backbone"]["base"]["conv1"].weight.sum() == 4
    with pytest.raises(ValueError, match="speed"):
        DetectionCheckpointer(model).load(f"{path}?speed=3")


def test_missing_and_unexpected_names_are_reported_but_not_pixel_mean(tmp_path, lines) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"model": {"head.weight": torch.ones(3, 2), "other": torch.ones(1)}}, path)
    model = build_recorded_model()
    model.register_buffer("pixel_mean", torch.zeros(3, 1, 1))
    DetectionCheckpointer(model).load(str(path))
    missing, unexpected = lines()[-2:]
    assert "not found in the checkpoint" in missing and "head.bias" in missing
    assert "pixel_mean" not in missing
    assert unexpected.endswith("not used by the model: other")


def test_save_and_resume(tmp_path) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer, DetectionCheckpointer]:
        model = nn.Linear(2, 1)
        optimizer = torch.optim.AdamW(model.parameters())
        return model, optimizer, DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer)

    model, optimizer, checkpointer = build()
    DetectionCheckpointer(model).save("nowhere")
    DetectionCheckpointer(model, str(tmp_path), save_to_disk=False).save("nothing")
    assert list(tmp_path.iterdir()) == [] and not checkpointer.has_checkpoint()
    assert checkpointer.resume_or_load("", resume=True) == {}
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    for iteration in (0, 1):
        checkpointer.save(f"model_{iteration}", iteration=iteration)
    assert (tmp_path / "last_checkpoint").read_text() == "model_1.pth"

    # The file that is given counts only where there is nothing to resume from.
    resumed, resumed_optimizer, checkpointer = build()
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_1.pth")
    assert checkpointer.resume_or_load("elsewhere.pth", resume=True)["iteration"] == 1
    assert torch.equal(resumed.weight, model.weight)
    assert resumed_optimizer.state_dict()["state"][0]["step"] == 1

    other, other_optimizer, checkpointer = build()
    rest = checkpointer.resume_or_load(str(tmp_path / "model_0.pth"), resume=False)
    assert rest["iteration"] == 0 and "optimizer" in rest  # not loaded
    assert torch.equal(other.weight, model.weight)
    assert other_optimizer.state_dict()["state"] == {}


def test_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(AssertionError, match=r"nothing\.pth"):
        DetectionCheckpointer(nn.Linear(1, 1)).load(str(tmp_path / "nothing.pth"))
