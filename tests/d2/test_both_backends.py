"""The built-in subset next to real detectron2, in one process, on random input."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ovformer import d2
from ovformer.d2.builtin import (
    catalog,
    config,
    dataset,
    detection_utils,
    env,
    layers,
    modeling,
    point_features,
    samplers,
    structures,
    transforms,
)

pytestmark = pytest.mark.detectron2

quick = settings(max_examples=40, deadline=None)
SEEDS = st.integers(0, 2**31)
SIZES = st.tuples(st.integers(5, 70), st.integers(5, 70))
MODULES = (
    config,
    dataset,
    detection_utils,
    env,
    layers,
    modeling,
    point_features,
    samplers,
    structures,
)
SHARED = {
    name: getattr(module, name)
    for module in MODULES
    for name in d2.__all__
    if callable(getattr(module, name, None))
}
# Departures on purpose: YAML files run no Python here, forward has its argument, and @configurable
# is for classes only.
DEPARTURES = {"CfgNode.merge_from_file", "Backbone.forward", "configurable"}
POLICIES: dict[str, Callable[[Any], list]] = {
    "jitter": lambda t: [t.RandomFlip(), t.ResizeScale(0.1, 2, 40, 50), t.FixedSizeCrop((40, 50))],
    "unpadded": lambda t: [t.ResizeScale(0.5, 2, 40, 40), t.FixedSizeCrop((30, 60), pad=False)],
    "short edge": lambda t: [t.ResizeShortestEdge((20, 60), 80)],
    "short edges": lambda t: [t.ResizeShortestEdge((20, 45), 50, sample_style="choice")],
    "vertical": lambda t: [t.RandomFlip(horizontal=False, vertical=True)],
    "crop": lambda t: [t.RandomCrop("absolute_range", (4, 50))],
    "crop share": lambda t: [t.RandomCrop("relative_range", (0.3, 0.8))],
    "crop half": lambda t: [t.RandomCrop("relative", (0.5, 0.5)), t.RandomCrop("absolute", (9, 9))],
    "colour": lambda t: [t.RandomBrightness(0.5, 1.5), t.RandomContrast(0.5, 1.5)],
    "rotation": lambda t: [t.RandomRotation([-180, 180])],
    "rotations": lambda t: [t.RandomRotation([0, 90, 180, 270], sample_style="choice")],
}


def augment(back_end: Any, policy: str, seed: int, image: np.ndarray) -> dict[str, Any]:
    """Everything that a back-end makes of an image, its labels, a box and a polygon."""
    np.random.seed(seed)
    height, width = image.shape[:2]
    seen = back_end.AugInput(
        image.copy(),
        boxes=np.array([[1.0, 2.0, width - 1.0, height - 2.0]]),
        sem_seg=image[:, :, 0].copy(),
    )
    tfm = back_end.AugmentationList(POLICIES[policy](back_end))(seen)
    triangle = np.array([[0.0, 0.0], [width, height / 2], [width / 3, height]])
    return {
        "image": seen.image,
        "sem_seg": seen.sem_seg,
        "boxes": seen.boxes,
        "kinds": [type(t).__name__ for t in tfm.transforms],
        "polygons": tfm.apply_polygons([triangle]),
        "next": np.random.rand(),
    }


@pytest.mark.parametrize("policy", POLICIES)
@given(size=SIZES, seed=SEEDS, is_float=st.booleans())
@settings(max_examples=12, deadline=None)
def test_augmentations(policy: str, size: tuple[int, int], seed: int, is_float: bool) -> None:
    image = np.random.RandomState(seed).randint(0, 256, (*size, 3)).astype(np.uint8)
    if is_float:
        image = image.astype(np.float32)
    ours, theirs = (augment(t, policy, seed, image) for t in (transforms, d2.transforms))
    assert ours["kinds"] == theirs["kinds"] and ours["next"] == theirs["next"]
    for key in ("image", "sem_seg"):
        assert ours[key].dtype == theirs[key].dtype
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(ours["boxes"], theirs["boxes"], atol=1e-9)
    for polygon, expected in zip(ours["polygons"], theirs["polygons"], strict=True):
        np.testing.assert_allclose(polygon, expected, atol=1e-9)


@given(seed=SEEDS, count=st.integers(0, 6), size=SIZES)
@quick
def test_structures(seed: int, count: int, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 4, generator=generator) * 90 - 10
    masks = torch.rand(count, *size, generator=generator) > 0.995
    ours, theirs = structures.Boxes(boxes), d2.Boxes(boxes)
    assert torch.equal(ours.nonempty(), theirs.nonempty())
    assert torch.equal(ours.tensor, theirs.tensor)
    ours, theirs = structures.BitMasks(masks), d2.BitMasks(masks)
    assert torch.equal(ours.nonempty(), theirs.nonempty())
    assert torch.equal(ours.get_bounding_boxes().tensor, theirs.get_bounding_boxes().tensor)
    for modes in ((0, 1), (1, 0), (0, 0)):
        convert = [
            kind.convert(boxes, *map(kind, modes)) for kind in (structures.BoxMode, d2.BoxMode)
        ]
        assert torch.equal(*convert)


@given(sizes=st.lists(SIZES, min_size=1, max_size=4), stride=st.sampled_from([0, 1, 2, 8, 32]))
@quick
def test_image_lists(sizes: list[tuple[int, int]], stride: int) -> None:
    images = [torch.rand(3, *size) for size in sizes]
    ours, theirs = (
        kind.from_tensors(images, stride, 0.5) for kind in (structures.ImageList, d2.ImageList)
    )
    assert torch.equal(ours.tensor, theirs.tensor)
    assert ours.image_sizes == theirs.image_sizes


@given(seed=SEEDS, points=st.integers(1, 30), ratio=st.floats(1, 4), share=st.floats(0, 1))
@quick
def test_points(seed: int, points: int, ratio: float, share: float) -> None:
    maps = torch.rand(2, 1, 6, 9, generator=torch.Generator().manual_seed(seed)) - 0.5
    results = []
    for back_end in (point_features, d2):
        torch.manual_seed(seed)
        results.append(
            back_end.get_uncertain_point_coords_with_randomness(
                maps, lambda x: -x.abs(), points, ratio, share
            )
        )
    assert torch.equal(*results)
    assert torch.equal(
        point_features.point_sample(maps, results[0], align_corners=False),
        d2.point_sample(maps, results[0], align_corners=False),
    )


@given(size=st.integers(1, 20), seed=SEEDS, threshold=st.floats(0.01, 1))
@quick
def test_samplers(size: int, seed: int, threshold: float) -> None:
    random = np.random.RandomState(seed)
    records = [
        {"annotations": [{"category_id": c} for c in random.randint(0, 5, random.randint(0, 4))]}
        for _ in range(size)
    ]
    streams = []
    for back_end in (samplers, d2):
        kind = back_end.RepeatFactorTrainingSampler
        factors = kind.repeat_factors_from_category_frequency(records, threshold)
        repeated, plain = (
            iter(kind(factors, seed=seed)),
            iter(back_end.TrainingSampler(size, seed=seed)),
        )
        streams.append([next(repeated) for _ in range(60)] + [next(plain) for _ in range(60)])
        streams[-1] += factors.tolist()
    assert streams[0] == streams[1]
    for rank in range(3):
        parts = [b.InferenceSampler._get_local_indices(size, 3, rank) for b in (samplers, d2)]
        assert parts[0] == parts[1]


@pytest.mark.parametrize("needs_grad", [False, True])
def test_layers(needs_grad: bool) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    norm.running_mean.uniform_()
    norm.running_var.uniform_(0.5, 2)
    images = torch.randn(2, 6, 5, 5, requires_grad=needs_grad)
    ours, theirs = (
        kind.convert_frozen_batchnorm(copy.deepcopy(norm))
        for kind in (layers.FrozenBatchNorm2d, d2.FrozenBatchNorm2d)
    )
    assert torch.equal(ours(images), theirs(images))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    torch.testing.assert_close(layers.get_norm("LN", 6)(images), d2.get_norm("LN", 6)(images))


def test_config_defaults() -> None:
    assert config.get_cfg() == d2.get_cfg()
    assert config.get_cfg().dump() == d2.get_cfg().dump()


@pytest.mark.parametrize("name", sorted(SHARED.keys() - DEPARTURES))
def test_names_take_the_same_arguments(name: str) -> None:
    ours, theirs = SHARED[name], getattr(d2, name)
    compare_signatures(ours, theirs)
    for attribute, function in vars(ours).items() if inspect.isclass(ours) else ():
        is_public = inspect.isfunction(function) and not attribute.startswith("_")
        if is_public and f"{name}.{attribute}" not in DEPARTURES:
            assert hasattr(theirs, attribute), f"detectron2's {name} has no {attribute}"
            compare_signatures(function, getattr(theirs, attribute))


@pytest.mark.parametrize("name", transforms.__all__)
def test_augmentations_take_the_same_arguments(name: str) -> None:
    compare_signatures(getattr(transforms, name), getattr(d2.transforms, name))


@pytest.mark.parametrize("name", ["DatasetCatalog", "MetadataCatalog"])
def test_catalogs_have_the_same_methods(name: str) -> None:
    ours, theirs = type(getattr(catalog, name)), type(getattr(d2, name))
    for attribute, function in vars(ours).items():
        if inspect.isfunction(function):
            compare_signatures(function, getattr(theirs, attribute))


def compare_signatures(ours: Callable, theirs: Callable) -> None:
    """Same names in the same order, with the same defaults where there are any."""
    parameters = [inspect.signature(function).parameters.values() for function in (ours, theirs)]
    kinds = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    if any(parameter.kind in kinds for own in parameters for parameter in own):
        return
    described = [
        [(p.name, p.kind, None if p.default is p.empty else p.default) for p in own]
        for own in parameters
    ]
    assert described[0] == described[1]
