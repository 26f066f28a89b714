"""Matching and losses at their edges; test_criterion_parity.py compares them with recordings."""

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from ovformer.config import get_ovformer_cfg
from ovformer.modeling.objective import criterion as criterion_module
from ovformer.modeling.objective.criterion import SetCriterion, build_criterion
from ovformer.modeling.objective.losses import pairwise_mask_bce
from ovformer.modeling.objective.matcher import HungarianMatcher, class_cost

CLASSES, QUERIES = 5, 6
LOSSES = ["loss_ce", "loss_object_ce", "loss_mask", "loss_dice"]


def make_matcher() -> HungarianMatcher:
    return HungarianMatcher(2.0, 5.0, 5.0, num_points=32)


def make_criterion(**settings) -> SetCriterion:
    weights = dict.fromkeys(LOSSES, 1.0)
    settings = {"num_points": 32} | settings
    return SetCriterion(CLASSES, make_matcher(), weights, torch.ones(CLASSES), **settings)


def make_outputs(batch: int = 2, queries: int = QUERIES) -> dict[str, torch.Tensor]:
    shapes = {
        "pred_logits": (batch, queries, CLASSES + 1),
        "pred_object_logits": (batch, queries, 2),
        "mask_embed": (batch, queries, 3),
        "mask_features": (batch, 3, 5, 6),
    }
    return {key: torch.randn(shape, requires_grad=True) for key, shape in shapes.items()}


def make_targets(labels: list[list[int]]) -> list[dict[str, torch.Tensor]]:
    return [
        {
            "labels": torch.tensor(image, dtype=torch.int64),
            "masks": torch.randint(2, (len(image), 20, 24)).bool(),
        }
        for image in labels
    ]


def cut(outputs: dict[str, torch.Tensor], start: int, end: int) -> dict[str, torch.Tensor]:
    """Outputs of some images of a batch."""
    return {key: value[start:end] for key, value in outputs.items()}


@given(st.integers(1, 5), st.integers(0, 5), st.integers(0, 1000))
def test_the_match_is_the_cheapest_of_all(queries: int, instances: int, seed: int) -> None:
    outputs, targets = make_outputs(1, queries), make_targets([list(range(instances))])
    torch.manual_seed(seed)
    costs = make_matcher().compute_costs({k: v[0] for k, v in outputs.items()}, targets[0])
    cost = sum(costs.values())
    torch.manual_seed(seed)
    [(query, instance)] = make_matcher()(outputs, targets)
    size = min(queries, instances)
    assert len(set(query.tolist())) == len(set(instance.tolist())) == size
    assert query.tolist() == sorted(query.tolist()) and query.dtype == torch.int64
    few, many = sorted((cost, cost.T), key=len)
    totals = [
        few[range(len(few)), list(chosen)].sum().item()
        for chosen in permutations(range(len(many)), len(few))
    ]
    assert cost[query, instance].sum().item() == pytest.approx(min(totals), abs=1e-4)


def test_infinite_costs_are_avoided_but_do_not_stop_the_matching(monkeypatch) -> None:
    matcher, infinity = make_matcher(), float("inf")
    costs = torch.tensor([[infinity, 1.0], [2.0, infinity], [infinity, infinity]])
    monkeypatch.setattr(matcher, "compute_costs", lambda *_: {"mask": costs})
    [(query, instance)] = matcher(make_outputs(1), make_targets([[0, 1]]))
    assert (query.tolist(), instance.tolist()) == ([0, 1], [1, 0])
    costs.fill_(infinity)
    assert len(matcher(make_outputs(1), make_targets([[0, 1]]))[0][0]) == 2


def test_the_cross_entropy_is_exact_for_confident_masks() -> None:
    logits = torch.tensor([[80.0, -80.0] * 50, [-80.0, 80.0] * 50])
    cost = pairwise_mask_bce(logits, torch.tensor([[1.0, 0.0] * 50]))
    torch.testing.assert_close(cost, torch.tensor([[0.0], [80.0]]), rtol=1e-6, atol=1e-4)


def test_each_cost_has_its_weight() -> None:
    outputs, targets = {k: v[0] for k, v in make_outputs().items()}, make_targets([[1, 2]])
    costs = []
    for weights in ((1, 1, 1), (2, 3, 4)):
        torch.manual_seed(0)
        costs.append(HungarianMatcher(*weights, num_points=8).compute_costs(outputs, targets[0]))
    expected = {"class": 2 * costs[0]["class"], "mask": 3 * costs[0]["mask"]}
    torch.testing.assert_close(costs[1], {**expected, "dice": 4 * costs[0]["dice"]})


def test_an_instance_without_a_class_costs_minus_the_probability_of_no_object() -> None:
    objectness = torch.randn(QUERIES, 2)
    cost = class_cost(torch.randn(QUERIES, CLASSES + 1), objectness, torch.tensor([CLASSES]))
    torch.testing.assert_close(cost[:, 0], -objectness.softmax(1)[:, 1])


@pytest.mark.parametrize(
    ("key", "named"), [("pred_logits", "class"), ("mask_embed", "mask and dice")]
)
def test_nan_is_an_error_that_names_the_cost_and_the_image(key: str, named: str) -> None:
    outputs = make_outputs()
    outputs[key].data[1, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=f"{named} cost .* image 1 .*SOLVER.BASE_LR"):
        make_matcher()(outputs, make_targets([[1, 2], [3, 4]]))


def test_class_loss_per_instance() -> None:
    outputs, targets = make_outputs(), make_targets([[1, 4, 2], []])
    losses = {}
    for norm in ("queries", "instances"):
        torch.manual_seed(0)
        losses[norm] = make_criterion(class_loss_norm=norm)(outputs, targets)["loss_ce"]
    torch.testing.assert_close(losses["instances"], losses["queries"] * 2 * QUERIES / 3)


def test_layers_without_a_weight_have_no_loss() -> None:
    outputs = make_outputs()
    losses = make_criterion()(outputs | {"aux_outputs": [outputs]}, make_targets([[1], [2]]))
    assert sorted(losses) == sorted(LOSSES)


@pytest.mark.parametrize("labels", [[[], []], [[CLASSES], [CLASSES, CLASSES]]])
def test_nothing_to_find_trains_the_objectness_alone(labels: list[list[int]]) -> None:
    """Neither without instances nor with instances that count as "no object"."""
    outputs = make_outputs()
    losses = make_criterion()(outputs, make_targets(labels))
    assert losses["loss_ce"].item() == 0
    objectness = outputs["pred_object_logits"].flatten(0, 1)
    none = F.cross_entropy(objectness, torch.ones(2 * QUERIES, dtype=torch.int64))
    torch.testing.assert_close(losses["loss_object_ce"], none)
    if not any(labels):
        assert losses["loss_mask"].item() == losses["loss_dice"].item() == 0
    sum(losses.values()).backward()
    for leaf in outputs.values():
        assert leaf.grad is not None  # every parameter takes part, as DDP requires
        assert leaf.grad.isfinite().all()


def test_more_instances_than_queries_make_each_query_an_object() -> None:
    outputs = make_outputs(batch=1)
    losses = make_criterion()(outputs, make_targets([[1, 2, 3] * QUERIES]))
    objects = F.cross_entropy(outputs["pred_object_logits"][0], torch.zeros(QUERIES).long())
    torch.testing.assert_close(losses["loss_object_ce"], objects)


def test_costs_and_losses_are_float32_under_autocast() -> None:
    half = {key: value.bfloat16() for key, value in make_outputs().items()}
    targets, losses = make_targets([[1, 4], [2]]), []
    for outputs in ({key: value.float() for key, value in half.items()}, half):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=outputs is half):
            losses.append(make_criterion()(outputs, targets))
            losses[-1] |= make_matcher().compute_costs(
                {key: value[0] for key, value in outputs.items()}, targets[0]
            )
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=0)


@pytest.fixture
def fixed_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same points for every mask, so that losses do not depend on how a batch is cut."""
    points = torch.rand(1, 32, 2)
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: points.clone())
    monkeypatch.setattr(
        criterion_module,
        "get_uncertain_point_coords_with_randomness",
        lambda logits, *_: points.repeat(len(logits), 1, 1),
    )


@pytest.mark.parametrize("norm", ["queries", "instances"])
@pytest.mark.parametrize(
    ("labels", "sizes"),  # sizes: instances and matches of each half of the batch
    [
        ([[1, 4, 2], [0], [], [3] * 8], [(4, 4), (8, 6)]),
        ([[], [], [3], []], [(0, 0), (1, 1)]),  # fewer instances than parts
    ],
    ids=["many", "few"],
)
def test_parts_of_a_batch_have_the_mean_losses_and_gradients_of_the_whole(
    fixed_points, monkeypatch, labels, sizes: list[tuple[int, int]], norm: str
) -> None:
    """Parts are micro-batches, or processes: what the other one would send is added."""
    outputs, targets = make_outputs(batch=4), make_targets(labels)
    criterion = make_criterion(class_loss_norm=norm, fed_loss_num_classes=CLASSES + 1)
    whole, halves = criterion(outputs, targets), ((0, 2), (2, 4))
    counts = [len(image) for image in labels]
    parts = [[criterion(cut(outputs, i, j), targets[i:j], counts) for i, j in halves], []]
    monkeypatch.setattr(criterion_module.comm, "get_world_size", lambda: 2)
    for (i, j), others in zip(halves, reversed(sizes), strict=True):
        sent = torch.tensor(others)
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda x, sent=sent: x.add_(sent))
        parts[1].append(criterion(cut(outputs, i, j), targets[i:j]))
    expected = torch.autograd.grad(sum(whole.values()), tuple(outputs.values()), retain_graph=True)
    for one, other in parts:
        mean = {name: (one[name] + other[name]) / 2 for name in LOSSES}
        torch.testing.assert_close(mean, whole)
        got = torch.autograd.grad(sum(mean.values()), tuple(outputs.values()))
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("label", [-1, CLASSES + 1])
def test_a_label_that_is_no_class_is_an_error(label: int) -> None:
    with pytest.raises(ValueError, match=f"{label}.*{CLASSES} classes.*NUM_CLASSES"):
        make_criterion()(make_outputs(), make_targets([[1, label], []]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: make_criterion(class_loss_norm="batch"), "CLASS_LOSS_NORM: .* queries, instances"),
        (lambda: make_criterion(oversample_ratio=0.5), "OVERSAMPLE_RATIO .* 0.5 and 0.75"),
        (lambda: SetCriterion(5, make_matcher(), {}, torch.ones(4)), "5 classes, got 4"),
        (lambda: HungarianMatcher(0, 0, 0, 16), "all 0"),
        (lambda: HungarianMatcher(1, 1, 1, 0), "TRAIN_NUM_POINTS: .* got 0"),
    ],
)
def test_settings_out_of_range_are_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_every_config_key_reaches_the_criterion() -> None:
    opts = {
        "OBJECT_WEIGHT": 1.5,
        "CLASS_WEIGHT": 2.5,
        "MASK_WEIGHT": 3.5,
        "DICE_WEIGHT": 4.5,
        "DEC_LAYERS": 3,
        "NO_OBJECT_OBJECTNESS_WEIGHT": 0.25,
        "CLASS_LOSS_SCALE": 1.25,
        "CLASS_LOSS_NORM": "instances",
        "FED_LOSS_NUM_CLASSES": 7,
        "TRAIN_NUM_POINTS": 99,
        "OVERSAMPLE_RATIO": 2.0,
        "IMPORTANCE_SAMPLE_RATIO": 0.5,
    }
    cfg = get_ovformer_cfg(opts=[x for k, v in opts.items() for x in (f"MODEL.MASK_FORMER.{k}", v)])
    criterion = build_criterion(cfg, 4)
    weights = {"loss_object_ce": 1.5, "loss_ce": 2.5, "loss_mask": 3.5, "loss_dice": 4.5}
    assert criterion.weight_dict == {k + s: v for k, v in weights.items() for s in ("", "_0", "_1")}
    matcher = criterion.matcher
    assert (matcher.cost_class, matcher.cost_mask, matcher.cost_dice) == (2.5, 3.5, 4.5)
    assert matcher.num_points == criterion.num_points == 99
    assert criterion.empty_object_weight.tolist() == [1.0, 0.25]
    assert (criterion.class_loss_scale, criterion.class_loss_norm) == (1.25, "instances")
    assert criterion.fed_loss_num_classes == 7
    assert (criterion.oversample_ratio, criterion.importance_sample_ratio) == (2.0, 0.5)
