"""Comparison of a model with the numbers that were recorded from the published one.

The recorded files hold the outputs of every layer (``assert_same_outputs``), and of a training step
all random draws, the matches, losses (``assert_same_losses``) and gradients
(``gradient_difference``). The results of videos are compared code by code (``assert_same_tubes``).
"""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn

from ovformer.ops.mask_resize import restore_masks

LAYERS = 5
# Largest difference relative to the largest value. Measured: 2e-6.
TOLERANCE = 2e-5
# Largest difference of a mask logit. Measured: 1.3e-5.
LOGIT_TOLERANCE = 3e-5


def assert_same(got: Tensor, expected: np.ndarray, name: str) -> None:
    """Compare tensors, up to TOLERANCE times the largest recorded value."""
    expected = torch.from_numpy(expected)
    assert got.shape == expected.shape, name
    error = (got - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE, f"{name}: {error:.1e}"


def assert_same_outputs(outputs: Mapping, recorded: Mapping, prefix: str) -> None:
    """Compare the predictions of those layers that the outputs hold."""
    layers = {"": outputs} | {f"aux{i}.": aux for i, aux in enumerate(outputs["aux_outputs"])}
    assert len(layers) in (1, LAYERS)
    for name, layer in layers.items():
        masks = torch.einsum("bqc,b...chw->bq...hw", layer["mask_embed"], outputs["mask_features"])
        assert_same(masks, recorded[f"{prefix}{name}pred_masks"], f"{name}pred_masks")
        for key in ("pred_logits", "pred_object_logits"):
            assert_same(layer[key], recorded[prefix + name + key], name + key)
    assert_same(outputs["pred_embds"], recorded[f"{prefix}pred_embds"], "pred_embds")


def assert_same_losses(
    model: nn.Module, outputs: Mapping, targets: list[dict], recorded: Mapping
) -> Tensor:
    """Compare outputs, targets, matches and losses in training, and return the total loss.

    The random draws are those of the recording.
    """
    assert len(outputs["aux_outputs"]) == LAYERS - 1
    assert_same_outputs(outputs, recorded, "train.out.")
    for i, target in enumerate(targets):
        assert target["labels"].tolist() == recorded[f"train.target{i}.labels"].tolist()
        assert (target["masks"].numpy() == recorded[f"train.target{i}.masks"]).all()

    draws = iter([recorded[key] for key in sorted(recorded) if key.startswith("train.draw.")])
    matches = []
    hook = model.criterion.matcher.register_forward_hook(lambda *x: matches.append(x[-1]))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("rand", "multinomial"):
            patch.setattr(torch, name, lambda *_, **__: torch.from_numpy(next(draws)))
        weighted = model.compute_losses(outputs, targets)
    hook.remove()
    assert next(draws, None) is None
    assert len(matches) == LAYERS
    for layer, match in enumerate(matches):
        for i, (query, instance) in enumerate(match):
            assert query.tolist() == recorded[f"train.match.{layer}.{i}.src"].tolist()
            assert instance.tolist() == recorded[f"train.match.{layer}.{i}.tgt"].tolist()

    weights = model.criterion.weight_dict
    losses = {
        "weighted": {name: loss.item() for name, loss in weighted.items()},
        "raw": {name: loss.item() / weights[name] for name, loss in weighted.items()},
    }
    for kind, values in losses.items():
        names = recorded[f"train.{kind}.loss_names"].tolist()
        expected = recorded[f"train.{kind}.loss_values"].tolist()
        assert values == pytest.approx(dict(zip(names, expected, strict=True)), rel=TOLERANCE)

    total = sum(weighted.values())
    assert total.item() == pytest.approx(recorded["train.total"].item(), rel=TOLERANCE)
    return total


def gradient_difference(model: nn.Module, total: Tensor, recorded: Mapping) -> float:
    """Return the largest relative difference of a gradient's norm, or of one that is recorded."""
    total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    names, norms = recorded["train.grad_names"].tolist(), recorded["train.grad_norms"].tolist()
    assert set(names) == set(gradients)
    differences = [
        abs(gradients[name].double().norm().item() - norm) / norm
        for name, norm in zip(names, norms, strict=True)
        if norm or gradients[name].any()
    ]
    full = [key for key in recorded if key.startswith("train.grad.")]
    assert len(full) == 5
    for key in full:
        expected = torch.from_numpy(recorded[key])
        difference = (gradients[key.removeprefix("train.grad.")] - expected).abs().max()
        differences.append((difference / expected.abs().max()).item())
    return max(differences)


def assert_same_tubes(tubes: list[list[dict]], results: list[dict], masks: Tensor) -> None:
    """Compare the masks of predictions with entries of results.json, code by code.

    A pixel may differ where the recorded logit is next to zero, less than the logits' own error.

    Args:
        tubes: of each prediction.
        results: in the same order.
        masks: the recorded logits, (N, T, 32, 40).
    """
    for tube, entry, logits in zip(tubes, results, masks, strict=True):
        for got, expected, of_frame in zip(tube, entry["segmentations"], logits, strict=True):
            if got == expected:
                continue
            restored = restore_masks(of_frame[None], (128, 160), (118, 150), (177, 225))[0]
            different = coco_mask.decode(got) != coco_mask.decode(expected)
            assert restored[torch.from_numpy(different)].abs().max() < LOGIT_TOLERANCE
