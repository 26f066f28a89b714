"""Matching and losses are the recorded ones, with the recorded random draws in the same order."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from ovformer.modeling.objective.criterion import SetCriterion
from ovformer.modeling.objective.matcher import HungarianMatcher

LOSSES = ("loss_ce", "loss_object_ce", "loss_mask", "loss_dice")


class Draws:
    """Replays recorded draws in place of ``torch.rand`` and ``torch.multinomial``."""

    def __init__(self, recorded: np.lib.npyio.NpzFile, prefix: str) -> None:
        keys = sorted(key for key in recorded.files if key.startswith(prefix))
        self.left = [(key.rsplit(".")[-1], torch.from_numpy(recorded[key])) for key in keys]

    def rand(self, *shape: int, **kwargs: object) -> torch.Tensor:
        kind, value = self.left.pop(0)
        assert (kind, tuple(value.shape)) == ("rand", shape)
        return value.clone()

    def multinomial(self, weights: torch.Tensor, number: int, **kwargs: object) -> torch.Tensor:
        kind, value = self.left.pop(0)
        assert (kind, len(value)) == ("multinomial", number)
        assert (weights[value] > 0).all()
        return value.clone()


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch) -> Callable[[np.lib.npyio.NpzFile, str], Draws]:
    """Function from a recorded file and a prefix to the draws that PyTorch then gives."""

    def start(recorded: np.lib.npyio.NpzFile, prefix: str) -> Draws:
        draws = Draws(recorded, prefix)
        monkeypatch.setattr(torch, "rand", draws.rand)
        monkeypatch.setattr(torch, "multinomial", draws.multinomial)
        return draws

    return start


def small_criterion(freq_weight: np.ndarray, layers: int) -> SetCriterion:
    return SetCriterion(
        100,
        HungarianMatcher(2.0, 5.0, 5.0, num_points=256),
        {name + s: 1.0 for name in LOSSES for s in ("", *(f"_{i}" for i in range(layers - 1)))},
        torch.from_numpy(freq_weight),
        num_points=256,
    )


def layer_outputs(recorded: np.lib.npyio.NpzFile, prefix: str) -> dict[str, torch.Tensor]:
    """Outputs of one layer; recorded masks become features of which each query selects one."""
    keys = ("pred_logits", "pred_object_logits", "pred_masks")
    out = {key: torch.from_numpy(recorded[prefix + key]) for key in keys}
    features = out.pop("pred_masks")
    return out | {
        "mask_embed": torch.eye(features.shape[1]).repeat(len(features), 1, 1),
        "mask_features": features,
    }


def recorded_losses(recorded: np.lib.npyio.NpzFile, prefix: str) -> dict[str, float]:
    names, values = recorded[f"{prefix}names"], recorded[f"{prefix}values"]
    return dict(zip(names.tolist(), values.tolist(), strict=True))


@pytest.fixture
def unit(reference):
    """(file, outputs, targets) of a batch of an image with four instances and one with none."""
    recorded = np.load(reference("criterion_unit.npz"))
    targets = [
        {
            "labels": torch.from_numpy(recorded[f"in.labels{i}"]),
            "masks": torch.from_numpy(recorded[f"in.masks{i}"]).bool(),
        }
        for i in range(2)
    ]
    return recorded, layer_outputs(recorded, "in."), targets


def test_costs(unit, replay) -> None:
    recorded, outputs, targets = unit
    matcher = HungarianMatcher(2.0, 5.0, 5.0, num_points=256)
    replay(recorded, "draw.")
    for i, target in enumerate(targets):
        costs = matcher.compute_costs({key: value[i] for key, value in outputs.items()}, target)
        np.testing.assert_allclose(sum(costs.values()), recorded[f"cost{i}"], rtol=1e-5, atol=1e-6)


def test_matches(unit, replay) -> None:
    recorded, outputs, targets = unit
    replay(recorded, "draw.")
    matches = HungarianMatcher(2.0, 5.0, 5.0, num_points=256)(outputs, targets)
    for i, (query, instance) in enumerate(matches):
        assert query.tolist() == recorded[f"match{i}.src"].tolist()
        assert instance.tolist() == recorded[f"match{i}.tgt"].tolist()


def test_losses_of_the_unit_batch(unit, replay) -> None:
    recorded, outputs, targets = unit
    criterion = small_criterion(recorded["freq_weight"], layers=1)
    draws = replay(recorded, "draw.")
    losses = criterion(outputs, targets)
    assert not draws.left
    expected = recorded_losses(recorded, "loss_")
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(expected, rel=1e-5)


def test_losses_and_matches_of_all_layers(reference, replay, monkeypatch) -> None:
    recorded = np.load(reference("image_small.npz"))
    outputs = layer_outputs(recorded, "train.out.")
    features = [outputs["mask_features"]]
    outputs["aux_outputs"] = [layer_outputs(recorded, f"train.out.aux{i}.") for i in range(4)]
    features += [aux.pop("mask_features") for aux in outputs["aux_outputs"]]
    # All layers share the mask features; here each has masks of its own: stack them as channels.
    outputs["mask_features"] = torch.cat(features, dim=1)
    for i, layer in enumerate([outputs, *outputs["aux_outputs"]]):
        layer["mask_embed"] = torch.eye(100)[20 * i : 20 * (i + 1)].repeat(2, 1, 1)
    targets = [
        {
            "labels": torch.from_numpy(recorded[f"train.target{i}.labels"]),
            "masks": torch.from_numpy(recorded[f"train.target{i}.masks"]).bool(),
        }
        for i in range(2)
    ]
    criterion = small_criterion(recorded["criterion.freq_weight"], layers=5)
    matches = []
    forward = criterion.matcher.forward
    monkeypatch.setattr(
        criterion.matcher, "forward", lambda *args: matches.append(forward(*args)) or matches[-1]
    )
    draws = replay(recorded, "train.draw.")
    losses = criterion(outputs, targets)
    assert not draws.left
    expected = recorded_losses(recorded, "train.raw.loss_")
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(expected, rel=1e-5)
    for layer, match in enumerate(matches):
        for i, (query, instance) in enumerate(match):
            assert query.tolist() == recorded[f"train.match.{layer}.{i}.src"].tolist()
            assert instance.tolist() == recorded[f"train.match.{layer}.{i}.tgt"].tolist()
    assert len(matches) == 5
