from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovformer.d2 import point_sample
from ovformer.modeling.objective.losses import pairwise_dice, pairwise_mask_bce
from ovformer.modeling.objective.matcher import HungarianMatcher

CLASSES = 5


def make_outputs(queries: int, batch: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = {
        "pred_logits": (batch, queries, CLASSES + 1),
        "pred_object_logits": (batch, queries, 2),
        "mask_embed": (batch, queries, 3),
        "mask_features": (batch, 3, 5, 6),
    }
    return {key: torch.randn(shape, generator=g) for key, shape in shapes.items()}


def make_target(instances: int, seed: int = 0, labels: int = CLASSES) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "labels": torch.randint(labels, (instances,), generator=g),
        "masks": torch.rand((instances, 20, 24), generator=g) > 0.5,
    }


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(0, 5), st.integers(0, 1000))
def test_the_match_is_the_cheapest_of_all(queries: int, instances: int, seed: int) -> None:
    matcher = HungarianMatcher(2.0, 5.0, 5.0, num_points=16)
    outputs, target = make_outputs(queries, seed=seed), make_target(instances, seed)
    torch.manual_seed(seed)
    cost = sum(matcher.compute_costs({k: v[0] for k, v in outputs.items()}, target).values())
    torch.manual_seed(seed)
    [(query, instance)] = matcher(outputs, [target])
    size = min(queries, instances)
    assert len(set(query.tolist())) == len(set(instance.tolist())) == size
    assert query.tolist() == sorted(query.tolist())
    pairings = (
        sum(cost[q, i].item() for q, i in zip(qs, range(instances), strict=True))
        if queries >= instances
        else sum(cost[q, i].item() for q, i in zip(range(queries), qs, strict=True))
        for qs in permutations(range(max(queries, instances)), size)
    )
    assert cost[query, instance].sum().item() == pytest.approx(min(pairings), abs=1e-4)


def test_costs_by_their_definitions() -> None:
    matcher = HungarianMatcher(2.0, 5.0, 3.0, num_points=64)
    outputs, target = make_outputs(4), make_target(3, labels=CLASSES + 1)
    target["labels"][1] = CLASSES
    torch.manual_seed(0)
    costs = matcher.compute_costs({k: v[0] for k, v in outputs.items()}, target)
    torch.manual_seed(0)
    points = torch.rand(1, 64, 2)
    masks = torch.einsum("qc,chw->qhw", outputs["mask_embed"][0], outputs["mask_features"][0])
    logits = point_sample(masks[None], points, align_corners=False)[0].double()
    labels = point_sample(target["masks"][None].float(), points, align_corners=False)[0].double()
    objectness = outputs["pred_object_logits"][0].softmax(-1)
    for q in range(4):
        for n, label in enumerate(target["labels"].tolist()):
            probability = logits[q].sigmoid()
            bce = -(labels[n] * probability.log() + (1 - labels[n]) * (1 - probability).log())
            dice = 1 - (2 * (probability * labels[n]).sum() + 1) / (
                probability.sum() + labels[n].sum() + 1
            )
            score = (outputs["pred_logits"][0, q, label].sigmoid() * objectness[q, 0]).sqrt()
            score = objectness[q, 1] if label == CLASSES else score
            assert costs["mask"][q, n].item() == pytest.approx(5.0 * bce.mean().item(), rel=1e-5)
            assert costs["dice"][q, n].item() == pytest.approx(3.0 * dice.item(), rel=1e-5)
            assert costs["class"][q, n].item() == pytest.approx(-2.0 * score.item(), rel=1e-5)


def test_the_cross_entropy_is_exact_for_confident_masks() -> None:
    logits = torch.tensor([[80.0, -80.0] * 50, [-80.0, 80.0] * 50])
    labels = torch.tensor([[1.0, 0.0] * 50])
    cost = pairwise_mask_bce(logits, labels)
    torch.testing.assert_close(cost, torch.tensor([[0.0], [80.0]]), rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(pairwise_dice(logits, labels)[0, 0], torch.tensor(0.0))


def test_no_instances_and_more_instances_than_queries() -> None:
    matcher = HungarianMatcher(2.0, 5.0, 5.0, num_points=16)
    matches = matcher(make_outputs(3, batch=2), [make_target(0), make_target(7)])
    assert [len(query) for query, _ in matches] == [0, 3]
    assert matches[1][0].tolist() == [0, 1, 2]
    assert matches[0][0].dtype == torch.int64


def test_infinite_costs_are_avoided_but_do_not_stop_the_matching(monkeypatch) -> None:
    matcher = HungarianMatcher(2.0, 5.0, 5.0, num_points=16)
    cost = torch.tensor([[float("inf"), 1.0], [2.0, float("inf")], [float("inf"), float("inf")]])
    monkeypatch.setattr(matcher, "compute_costs", lambda *_: {"mask": cost})
    [(query, instance)] = matcher(make_outputs(3), [make_target(2)])
    assert (query.tolist(), instance.tolist()) == ([0, 1], [1, 0])
    monkeypatch.setattr(
        matcher, "compute_costs", lambda *_: {"mask": torch.full((3, 2), float("inf"))}
    )
    [(query, _)] = matcher(make_outputs(3), [make_target(2)])
    assert len(query) == 2


@pytest.mark.parametrize(
    ("key", "named"),
    [("pred_logits", "the class cost"), ("mask_embed", "the mask and dice cost")],
)
def test_nan_is_an_error_that_names_the_cost_and_the_image(key: str, named: str) -> None:
    outputs = make_outputs(3, batch=2)
    outputs[key][1, 0] = float("nan")
    matcher = HungarianMatcher(2.0, 5.0, 5.0, num_points=16)
    with pytest.raises(FloatingPointError, match=f"{named} .* NaN in image 1 .*SOLVER.BASE_LR"):
        matcher(outputs, [make_target(2), make_target(2)])


def test_half_precision_outputs_are_matched_in_float32() -> None:
    matcher = HungarianMatcher(2.0, 5.0, 5.0, num_points=16)
    outputs, target = make_outputs(6), make_target(3)
    half = {key: value.bfloat16() for key, value in outputs.items()}
    rounded = {key: value.float() for key, value in half.items()}
    torch.manual_seed(0)
    expected = matcher.compute_costs({k: v[0] for k, v in rounded.items()}, target)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        got = matcher.compute_costs({k: v[0] for k, v in half.items()}, target)
    for name, cost in got.items():
        assert cost.dtype == torch.float32
        np.testing.assert_array_equal(cost, expected[name])


def test_settings_that_leave_nothing_to_match_by() -> None:
    with pytest.raises(ValueError, match="all 0"):
        HungarianMatcher(0, 0, 0, 16)
    with pytest.raises(ValueError, match="TRAIN_NUM_POINTS: expected >= 1, got 0"):
        HungarianMatcher(1, 1, 1, 0)
