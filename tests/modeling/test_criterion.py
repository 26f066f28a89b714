import pytest
import torch
from torch.nn import functional as F

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import point_sample
from ovformer.modeling.objective import criterion as criterion_module
from ovformer.modeling.objective.criterion import SetCriterion, build_criterion
from ovformer.modeling.objective.matcher import HungarianMatcher

CLASSES, QUERIES = 5, 6
LOSSES = ["loss_ce", "loss_object_ce", "loss_mask", "loss_dice"]


def make_criterion(layers: int = 1, classes: int = CLASSES, **settings) -> SetCriterion:
    suffixes = ["", *(f"_{i}" for i in range(layers - 1))]
    return SetCriterion(
        classes,
        HungarianMatcher(2.0, 5.0, 5.0, num_points=32),
        {name + suffix: 1.0 for suffix in suffixes for name in LOSSES},
        torch.ones(classes),
        **{"num_points": 32} | settings,
    )


def make_outputs(batch: int = 2, aux: int = 0, classes: int = CLASSES) -> dict:
    def layer() -> dict[str, torch.Tensor]:
        return {
            "pred_logits": torch.randn(batch, QUERIES, classes + 1, requires_grad=True),
            "pred_object_logits": torch.randn(batch, QUERIES, 2, requires_grad=True),
            "mask_embed": torch.randn(batch, QUERIES, 3, requires_grad=True),
        }

    features = torch.randn(batch, 3, 5, 6, requires_grad=True)
    return layer() | {"mask_features": features, "aux_outputs": [layer() for _ in range(aux)]}


def make_target(labels: list[int]) -> dict[str, torch.Tensor]:
    return {
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": torch.rand(len(labels), 20, 24) > 0.5,
    }


def leaves(outputs: dict) -> list[torch.Tensor]:
    return [v for v in outputs.values() if isinstance(v, torch.Tensor)]


def test_losses_by_their_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    criterion = make_criterion(fed_loss_num_classes=CLASSES + 1, no_object_weight=0.4)
    outputs = make_outputs()
    targets = [make_target([1, 4]), make_target([1, 3, 3])]
    matches = [(torch.tensor([0, 5]), torch.tensor([1, 0]))]
    matches += [(torch.tensor([1, 2, 3]), torch.tensor([2, 0, 1]))]
    monkeypatch.setattr(criterion.matcher, "forward", lambda *_: matches)
    points = torch.rand(5, 32, 2)
    monkeypatch.setattr(
        criterion_module, "get_uncertain_point_coords_with_randomness", lambda *_: points
    )
    losses = criterion(outputs, targets)
    masks = torch.einsum("bqc,bchw->bqhw", outputs["mask_embed"], outputs["mask_features"])

    labels = torch.full((2, QUERIES), CLASSES)
    rows, ce, logits, point_labels = 0, 0.0, [], []
    for b, (query, instance) in enumerate(matches):
        labels[b, query] = targets[b]["labels"][instance]
        for q, i in zip(query, instance, strict=True):
            onehot = F.one_hot(targets[b]["labels"][i], CLASSES).float()
            ce += F.binary_cross_entropy_with_logits(
                outputs["pred_logits"][b, q, :-1], onehot, reduction="sum"
            )
            at = points[rows : rows + 1]
            logits.append(point_sample(masks[b, q][None, None], at, align_corners=False)[0])
            gt = targets[b]["masks"][i][None, None].float()
            point_labels.append(point_sample(gt, at, align_corners=False)[0])
            rows += 1
    torch.testing.assert_close(losses["loss_ce"], 1.7 * ce / (2 * QUERIES))
    torch.testing.assert_close(
        losses["loss_object_ce"],
        F.cross_entropy(
            outputs["pred_object_logits"].transpose(1, 2),
            (labels == CLASSES).long(),
            torch.tensor([1.0, 0.4]),
        ),
    )
    logits, point_labels = torch.cat(logits), torch.cat(point_labels)
    probability = logits.sigmoid()
    bce = -(point_labels * probability.log() + (1 - point_labels) * (1 - probability).log())
    torch.testing.assert_close(losses["loss_mask"], bce.mean(1).sum() / 5)
    dice = (2 * (probability * point_labels).sum(1) + 1) / (
        probability.sum(1) + point_labels.sum(1) + 1
    )
    torch.testing.assert_close(losses["loss_dice"], (1 - dice).sum() / 5)


def test_only_chosen_classes_are_trained_and_unmatched_queries_not() -> None:
    torch.manual_seed(0)
    criterion = make_criterion(fed_loss_num_classes=0)
    outputs = make_outputs(batch=1)
    criterion(outputs, [make_target([1, 3])])["loss_ce"].backward()
    grad = outputs["pred_logits"].grad[0]
    assert (grad.abs().sum(0) > 0).tolist() == [False, True, False, True, False, False]
    assert (grad.abs().sum(1) > 0).sum() == 2


def test_class_loss_per_instance() -> None:
    outputs, targets = make_outputs(), [make_target([1, 4, 2]), make_target([])]
    settings = {"fed_loss_num_classes": CLASSES + 1, "class_loss_scale": 1.0}
    torch.manual_seed(0)
    per_query = make_criterion(class_loss_norm="queries", **settings)(outputs, targets)["loss_ce"]
    torch.manual_seed(0)
    per_instance = make_criterion(class_loss_norm="instances", **settings)(outputs, targets)
    torch.testing.assert_close(per_instance["loss_ce"], per_query * 2 * QUERIES / 3)


@pytest.mark.parametrize("labels", [[[], []], [[CLASSES], [CLASSES, CLASSES]]])
def test_nothing_to_find_trains_the_objectness_alone(labels: list[list[int]]) -> None:
    """Neither without instances nor with instances that count as "no object"."""
    outputs = make_outputs()
    losses = make_criterion()(outputs, [make_target(image) for image in labels])
    assert losses["loss_ce"].item() == 0
    everything_none = F.cross_entropy(
        outputs["pred_object_logits"].flatten(0, 1), torch.ones(2 * QUERIES, dtype=torch.int64)
    )
    torch.testing.assert_close(losses["loss_object_ce"], everything_none)
    if not any(labels):
        assert losses["loss_mask"].item() == losses["loss_dice"].item() == 0
    sum(losses.values()).backward()
    for leaf in leaves(outputs):
        assert leaf.grad is not None  # every parameter takes part, as DDP requires
        assert leaf.grad.isfinite().all()


def test_more_instances_than_queries() -> None:
    outputs = make_outputs(batch=1)
    losses = make_criterion()(outputs, [make_target([i % CLASSES for i in range(20)])])
    assert sorted(losses) == sorted(LOSSES)
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())


def test_one_class_and_no_class_that_may_be_drawn() -> None:
    criterion = make_criterion(classes=1)
    criterion.freq_weight.zero_()
    losses = criterion(make_outputs(classes=1), [make_target([0]), make_target([])])
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())


def test_aux_losses_are_those_of_the_layer_alone_and_may_be_off() -> None:
    outputs, targets = make_outputs(aux=2), [make_target([1, 4]), make_target([2])]
    torch.manual_seed(3)
    losses = make_criterion(layers=3)(outputs, targets)
    assert sorted(losses) == sorted(name + s for name in LOSSES for s in ("", "_0", "_1"))
    torch.manual_seed(3)
    alone = [
        make_criterion()(layer | {"mask_features": outputs["mask_features"]}, targets)
        for layer in (outputs | {"aux_outputs": []}, *outputs["aux_outputs"])
    ]
    for suffix, expected in zip(("", "_0", "_1"), alone, strict=True):
        for name, loss in expected.items():
            torch.testing.assert_close(losses[name + suffix], loss)
    assert sorted(make_criterion(layers=1)(outputs, targets)) == sorted(LOSSES)


def test_losses_are_float32_under_autocast() -> None:
    outputs, targets = make_outputs(aux=0), [make_target([1, 4]), make_target([2])]
    half = {k: v.bfloat16() for k, v in outputs.items() if k != "aux_outputs"}
    torch.manual_seed(1)
    expected = make_criterion()({k: v.float() for k, v in half.items()}, targets)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        got = make_criterion()(half, targets)
    for name, loss in got.items():
        assert loss.dtype == torch.float32
        assert loss.item() == expected[name].item()


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


def make_targets(labels: list[list[int]]) -> list[dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [
        {
            "labels": torch.tensor(image, dtype=torch.int64),
            "masks": torch.randint(2, (len(image), 20, 24), generator=g).bool(),
        }
        for image in labels
    ]


def cut(outputs: dict, start: int, end: int) -> dict:
    """Outputs of some images of a batch."""
    return {k: v[start:end] for k, v in outputs.items() if k != "aux_outputs"}


@pytest.mark.parametrize("norm", ["queries", "instances"])
@pytest.mark.parametrize(
    "labels",
    [
        [[1, 4, 2], [0], [], [3, 3, 1, 0, 2, 4, 4, 2]],  # of the last, two are not matched
        [[1], [], [], []],  # fewer instances than micro-batches
    ],
    ids=["many", "few"],
)
def test_micro_batches_have_the_gradient_of_the_whole_batch(
    fixed_points, labels: list[list[int]], norm: str
) -> None:
    outputs, targets = make_outputs(batch=4), make_targets(labels)
    criterion = make_criterion(class_loss_norm=norm, fed_loss_num_classes=CLASSES + 1)
    whole = criterion(outputs, targets)
    counts = [len(image) for image in labels]
    parts = [criterion(cut(outputs, i, i + 2), targets[i : i + 2], counts) for i in (0, 2)]
    for name in LOSSES:
        mean = (parts[0][name] + parts[1][name]) / 2
        torch.testing.assert_close(mean, whole[name], msg=name)
    total, mean = sum(whole.values()), sum(x for part in parts for x in part.values()) / 2
    expected = torch.autograd.grad(total, leaves(outputs))
    for x, y in zip(torch.autograd.grad(mean, leaves(outputs)), expected, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize(
    ("labels", "sizes"),
    [
        ([[1, 4, 2], [0], [], [3]], (4, 1)),
        ([[], [], [3], []], (0, 1)),  # fewer instances than processes
    ],
    ids=["many", "few"],
)
def test_processes_have_the_losses_of_the_whole_batch(
    fixed_points, monkeypatch, labels: list[list[int]], sizes: tuple[int, int]
) -> None:
    """What the other process would send is added in place of the exchange."""
    outputs, targets = make_outputs(batch=4), make_targets(labels)
    criterion = make_criterion(fed_loss_num_classes=CLASSES + 1)
    whole = criterion(outputs, targets)
    monkeypatch.setattr(criterion_module.comm, "get_world_size", lambda: 2)
    parts = []
    for start, others in zip((0, 2), reversed(sizes), strict=True):
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda x, n=others: x.add_(n))
        parts.append(criterion(cut(outputs, start, start + 2), targets[start : start + 2]))
    for name in LOSSES:
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, whole[name], msg=name)


@pytest.mark.parametrize("label", [-1, CLASSES + 1])
def test_a_label_that_is_no_class_is_an_error(label: int) -> None:
    with pytest.raises(ValueError, match=f"labels from .*{label}.*5 classes.*NUM_CLASSES"):
        make_criterion()(make_outputs(), [make_target([1, label]), make_target([])])


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="CLASS_LOSS_NORM: expected one of queries, instances"):
        make_criterion(class_loss_norm="batch")
    with pytest.raises(ValueError, match="OVERSAMPLE_RATIO >= 1 .* got 0.5 and 0.75"):
        make_criterion(oversample_ratio=0.5)
    with pytest.raises(ValueError, match="weight for each of 5 classes, got 4"):
        SetCriterion(5, HungarianMatcher(1, 1, 1, 9), {}, torch.ones(4))


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
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.MASK_FORMER.DEEP_SUPERVISION = False
    assert build_criterion(cfg, 4).weight_dict == weights
