"""The built-in subset next to real detectron2, in one process, on random input."""

import inspect
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
MODULES = (config, dataset, detection_utils, env, layers, modeling, point_features, samplers)
SHARED = {
    name: getattr(module, name)
    for module in (*MODULES, structures)
    for name in d2.__all__
    if callable(getattr(module, name, None))
}
OURS = SimpleNamespace(**SHARED, transforms=transforms)
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


def compare(compute: Callable[[Any], Any], rtol: float = 0.0, atol: float = 0.0) -> None:
    """Fail unless a function of the back-end returns the same for both."""
    torch.testing.assert_close(compute(OURS), compute(d2), rtol=rtol, atol=atol)


@pytest.mark.parametrize("policy", POLICIES)
@given(size=SIZES, seed=SEEDS, dtype=st.sampled_from([np.uint8, np.float32]))
@settings(max_examples=12, deadline=None)
def test_augmentations(policy, size, seed, dtype) -> None:
    image = np.random.RandomState(seed).randint(0, 256, (*size, 3)).astype(dtype)
    height, width = size
    boxes = np.array([[1.0, 2.0, width - 1.0, height - 2.0]])
    triangle = np.array([[0.0, 0.0], [width, height / 2], [width / 3, height]])
    kinds = []

    def augment(back_end: Any) -> list:
        np.random.seed(seed)
        sem_seg = image[:, :, 0].copy()
        seen = back_end.transforms.AugInput(image.copy(), boxes=boxes.copy(), sem_seg=sem_seg)
        augmentations = POLICIES[policy](back_end.transforms)
        tfm = back_end.transforms.AugmentationList(augmentations)(seen)
        kinds.append([type(t).__name__ for t in tfm.transforms])
        arrays = seen.image, seen.sem_seg, seen.boxes, *tfm.apply_polygons([triangle.copy()])
        return [np.random.rand(), *map(np.array, arrays)]

    compare(augment, rtol=1e-6, atol=1e-4)
    assert kinds[0] == kinds[1]


@given(seed=SEEDS, count=st.integers(0, 6), size=SIZES)
@quick
def test_structures(seed, count, size) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 4, generator=generator) * 90 - 10
    masks = torch.rand(count, *size, generator=generator) > 0.995
    compare(lambda b: [b.Boxes(boxes).tensor, b.Boxes(boxes).nonempty()])
    compare(lambda b: b.BitMasks(masks).nonempty())
    compare(lambda b: b.BitMasks(masks).get_bounding_boxes().tensor)
    for modes in ((0, 1), (1, 0), (0, 0)):
        compare(lambda b, modes=modes: b.BoxMode.convert(boxes, *map(b.BoxMode, modes)))


@given(seed=SEEDS, points=st.integers(1, 30), ratio=st.floats(1, 4), share=st.floats(0, 1))
@quick
def test_points(seed, points, ratio, share) -> None:
    maps = torch.rand(2, 1, 6, 9, generator=torch.Generator().manual_seed(seed)) - 0.5

    def sample(back_end: Any) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        draw = back_end.get_uncertain_point_coords_with_randomness
        coordinates = draw(maps, lambda x: -x.abs(), points, ratio, share)
        return [coordinates, back_end.point_sample(maps, coordinates, align_corners=False)]

    compare(sample)


@given(size=st.integers(1, 20), seed=SEEDS, threshold=st.floats(0.01, 1))
@quick
def test_samplers(size, seed, threshold) -> None:
    random = np.random.RandomState(seed)
    records = [
        {"annotations": [{"category_id": c} for c in random.randint(0, 5, random.randint(0, 4))]}
        for _ in range(size)
    ]

    def sample(back_end: Any) -> list:
        kind = back_end.RepeatFactorTrainingSampler
        factors = kind.repeat_factors_from_category_frequency(records, threshold)
        streams = kind(factors, seed=seed), back_end.TrainingSampler(size, seed=seed)
        return [factors, *(list(itertools.islice(stream, 60)) for stream in streams)]

    compare(sample)


def test_config_defaults() -> None:
    assert config.get_cfg() == d2.get_cfg()
    assert config.get_cfg().dump() == d2.get_cfg().dump()


def compare_signatures(ours: Callable, theirs: Callable) -> None:
    """Same names in the same order, with the same defaults, unless one takes any arguments."""
    parameters = [list(inspect.signature(f).parameters.values()) for f in (ours, theirs)]
    if not any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for own in parameters for p in own):
        described = [[(p.name, p.kind, str(p.default)) for p in own] for own in parameters]
        assert described[0] == described[1]


@pytest.mark.parametrize("name", transforms.__all__)
def test_augmentations_take_the_same_arguments(name) -> None:
    compare_signatures(getattr(transforms, name), getattr(d2.transforms, name))


CATALOGS = {name: type(getattr(catalog, name)) for name in ("DatasetCatalog", "MetadataCatalog")}


@pytest.mark.parametrize("name", sorted((SHARED.keys() | CATALOGS.keys()) - DEPARTURES))
def test_names_take_the_same_arguments(name) -> None:
    ours, theirs = SHARED.get(name), getattr(d2, name)
    if name in CATALOGS:
        ours, theirs = CATALOGS[name], type(theirs)
    compare_signatures(ours, theirs)
    for attribute, function in vars(ours).items() if inspect.isclass(ours) else ():
        is_public = inspect.isfunction(function) and not attribute.startswith("_")
        if is_public and f"{name}.{attribute}" not in DEPARTURES:
            assert hasattr(theirs, attribute), f"detectron2's {name} has no {attribute}"
            compare_signatures(function, getattr(theirs, attribute))
