"""The drawn scenes: masks are the pixels that one sees."""

import colorsys

import cv2
import numpy as np
import pytest

from ovformer.data.catalog.dataset_spec import load_categories
from ovformer_tools.shape_scenes import (
    BASE_INDICES,
    CATEGORY_NAMES,
    COLOURS,
    MIN_VISIBLE,
    NOVEL_NAMES,
    SHAPES,
    ShapeObject,
    draw_background,
    draw_moving_scene,
    draw_scene,
    object_alpha,
    random_motion,
)

SIZE = 128
MANY = list(range(0, 36, 3))
# Areas of the outlines for radius 1, by the formula of each shape.
AREAS = {
    "circle": np.pi * 0.88**2,
    "square": 2 * 1.05**2,
    "triangle": 3 * np.sqrt(3) / 4 * 1.1**2,
    "star": 10 * np.sin(np.pi / 5) / 2 * 1.1 * 1.1 * 0.42,
    "ring": np.pi * (0.95**2 - 0.52**2),
    "cross": 0.64**2 + 4 * 0.64 * 0.68,
}


def shape_object(shape: str, centre: tuple[float, float] = (64.0, 60.0)) -> ShapeObject:
    return ShapeObject(SHAPES.index(shape), centre, 30.0, 0.3, (255.0, 0.0, 0.0))


def test_each_colour_and_each_shape_of_a_novel_category_is_in_a_base_one() -> None:
    assert len(CATEGORY_NAMES) == 36 and len(NOVEL_NAMES) == 9
    base = {tuple(CATEGORY_NAMES[index].split()) for index in BASE_INDICES}
    assert {colour for colour, _ in base} == set(COLOURS)
    assert {shape for _, shape in base} == set(SHAPES)
    assert NOVEL_NAMES.isdisjoint(" ".join(pair) for pair in base)
    table = load_categories("shapes")  # the registered one
    assert [(c["id"], c["name"]) for c in table] == list(enumerate(CATEGORY_NAMES, 1))
    assert {c["name"] for c in table if c["frequency"] == "r"} == NOVEL_NAMES


@pytest.mark.parametrize("shape", SHAPES)
def test_area_and_centre_of_each_shape(shape: str) -> None:
    alpha = object_alpha(shape_object(shape), SIZE)
    # OpenCV also fills the outline, which is an eighth of a pixel wide outside.
    assert AREAS[shape] * 30**2 < alpha.sum() < 1.025 * AREAS[shape] * 30**2
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    centre = (x * alpha).sum() / alpha.sum(), (y * alpha).sum() / alpha.sum()
    assert centre == pytest.approx((64.0, 60.0), abs=0.1)


@pytest.mark.parametrize(
    ("centre", "part"),
    [((0.0, 64.0), 0.5), ((-100.0, 64.0), 0), ((64.0, -100.0), 0), ((64.0, 300.0), 0)],
)
def test_an_object_is_cut_off_at_the_edge(centre: tuple[float, float], part: float) -> None:
    covered = object_alpha(shape_object("circle", centre), SIZE).sum()
    assert covered == pytest.approx(part * AREAS["circle"] * 30**2, rel=0.02)


@pytest.mark.parametrize("category", range(36))
def test_the_mask_is_where_the_picture_differs_from_the_background(category: int) -> None:
    seed = [category, 7]
    scene = draw_scene(np.random.default_rng(seed), [category], SIZE)
    background = draw_background(np.random.default_rng(seed), SIZE)
    difference = np.abs(scene.image - background).max(2)
    mask = scene.masks[0].astype(np.uint8)
    square = np.ones((3, 3), np.uint8)
    # The outline itself is blended, and everywhere there is grain of 5 grey levels.
    assert difference[cv2.erode(mask, square) > 0].min() > 30
    assert difference[cv2.dilate(mask, square) == 0].max() < 30


def test_masks_are_what_is_visible() -> None:
    for seed in range(20):
        scene = draw_scene(np.random.default_rng(seed), MANY, SIZE, (20.0, 40.0))
        assert 1 < len(scene.categories) == len(scene.masks)
        assert scene.masks.sum(0).max() == 1
        assert scene.image.shape == (SIZE, SIZE, 3) and scene.image.dtype == np.uint8
        # The smallest shape of radius 20, a star, at its least visible.
        assert scene.masks.sum((1, 2)).min() > 0.95 * MIN_VISIBLE * AREAS["star"] * 20**2
        reds = draw_scene(np.random.default_rng(seed), list(range(6)), SIZE)
        for category, mask in zip(reds.categories, reds.masks, strict=True):
            parts, _ = cv2.connectedComponents(mask.astype(np.uint8))
            assert parts == 2, f"{CATEGORY_NAMES[category]} is covered by its own colour"


def test_motion_is_even_and_passes_the_given_pose() -> None:
    item = shape_object("star")
    poses = random_motion(np.random.default_rng(3), item, 6)
    assert any(pose.centre == pytest.approx(item.centre) for pose in poses)
    steps = np.diff([(*pose.centre, pose.angle, np.log(pose.radius)) for pose in poses], axis=0)
    assert np.allclose(steps, steps[0]) and np.any(steps[0])


def test_objects_of_a_moving_scene_move_leave_and_keep_their_colours() -> None:
    absent = moved = 0
    for seed in range(10):
        scene = draw_moving_scene(np.random.default_rng(seed), MANY, 6, SIZE, (16.0, 36.0))
        assert scene.masks.shape == (len(scene.categories), 6, SIZE, SIZE)
        assert [image.shape for image in scene.images] == [(SIZE, SIZE, 3)] * 6
        assert scene.masks.sum(0).max() == 1
        seen = scene.masks.any((2, 3))
        assert seen.any(1).all()
        absent += (~seen).sum()
        moved += (scene.masks[:, 0] != scene.masks[:, -1]).any((1, 2)).sum()
        for category, tube in zip(scene.categories, scene.masks, strict=True):
            colour = CATEGORY_NAMES[category].split()[0]
            for image, mask in zip(scene.images, tube, strict=True):
                inside = cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
                if inside.any():
                    hue, _, _ = colorsys.rgb_to_hsv(*np.median(image[inside], axis=0) / 255)
                    assert abs((360 * hue - COLOURS[colour] + 180) % 360 - 180) < 10
    assert absent and moved > 30
