"""Matching and losses are the recorded ones, with the recorded random draws in the same order."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from ovformer.modeling.objective.criterion import SetCriterion
from ovformer.modeling.objective.matcher import HungarianMatcher

LOSSES = ("loss_ce", "loss_object_ce", "loss_mask", "loss_dice")


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch) -> Callable[[np.lib.npyio.NpzFile, str], list]:
    """Function from a recorded file and a prefix to the draws that PyTorch then gives, in order."""

    def start(recorded: np.lib.npyio.NpzFile, prefix: str) -> list[tuple[str, torch.Tensor]]:
        keys = sorted(key for key in recorded.files if key.startswith(prefix))
        left = [(key.rsplit(".")[-1], torch.from_numpy(recorded[key])) for key in keys]

        def rand(*shape: int, **_: object) -> torch.Tensor:
            kind, value = left.pop(0)
            assert (kind, tuple(value.shape)) == ("rand", shape)
            return value.clone()

        def multinomial(weights: torch.Tensor, number: int, **_: object) -> torch.Tensor:
            kind, value = left.pop(0)
            assert (kind, len(value)) == ("multinomial", number)
            assert (weights[value] > 0).all()
            return value.clone()

        monkeypatch.setattr(torch, "rand", rand)
        monkeypatch.setattr(torch, "multinomial", multinomial)
        return left

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


def read_targets(recorded: np.lib.npyio.NpzFile, labels: str, masks: str) -> list[dict]:
    """Targets of two images, whose keys have the number of the image in place of {}."""
    return [
        {
            "labels": torch.from_numpy(recorded[labels.format(i)]),
            "masks": torch.from_numpy(recorded[masks.format(i)]).bool(),
        }
        for i in range(2)
    ]


def assert_losses(losses: dict[str, torch.Tensor], recorded, prefix: str) -> None:
    names, values = recorded[f"{prefix}names"], recorded[f"{prefix}values"]
    expected = dict(zip(names.tolist(), values.tolist(), strict=True))
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(expected, rel=1e-5)


def assert_matches(matches, recorded, prefix: str) -> None:
    for i, (query, instance) in enumerate(matches):
        assert query.tolist() == recorded[f"{prefix}{i}.src"].tolist()
        assert instance.tolist() == recorded[f"{prefix}{i}.tgt"].tolist()


@pytest.fixture
def unit(reference):
    """(file, outputs, targets) of a batch of an image with four instances and one with none."""
    recorded = np.load(reference("criterion_unit.npz"))
    targets = read_targets(recorded, "in.labels{}", "in.masks{}")
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
    assert_matches(matches, recorded, "match")


def test_losses_of_the_unit_batch(unit, replay) -> None:
    recorded, outputs, targets = unit
    criterion = small_criterion(recorded["freq_weight"], layers=1)
    draws = replay(recorded, "draw.")
    losses = criterion(outputs, targets)
    assert not draws
    assert_losses(losses, recorded, "loss_")


def test_losses_and_matches_of_all_layers(reference, replay) -> None:
    recorded = np.load(reference("image_small.npz"))
    outputs = layer_outputs(recorded, "train.out.")
    features = [outputs["mask_features"]]
    outputs["aux_outputs"] = [layer_outputs(recorded, f"train.out.aux{i}.") for i in range(4)]
    features += [aux.pop("mask_features") for aux in outputs["aux_outputs"]]
    # All layers share the mask features; here each has masks of its own: stack them as channels.
    outputs["mask_features"] = torch.cat(features, dim=1)
    for i, layer in enumerate([outputs, *outputs["aux_outputs"]]):
        layer["mask_embed"] = torch.eye(100)[20 * i : 20 * (i + 1)].repeat(2, 1, 1)
    targets = read_targets(recorded, "train.target{}.labels", "train.target{}.masks")
    criterion = small_criterion(recorded["criterion.freq_weight"], layers=5)
    matches = []
    criterion.matcher.register_forward_hook(lambda *x: matches.append(x[-1]))
    draws = replay(recorded, "train.draw.")
    losses = criterion(outputs, targets)
    assert not draws
    assert_losses(losses, recorded, "train.raw.loss_")
    assert len(matches) == 5
    for layer, match in enumerate(matches):
        assert_matches(match, recorded, f"train.match.{layer}.")
