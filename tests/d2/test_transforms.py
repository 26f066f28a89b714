"""Augmentations and annotations, on whichever back-end is selected, against detectron2's record."""

import copy
import random
from typing import Any

import numpy as np
import pytest

from ovformer.d2 import (
    BoxMode,
    annotations_to_instances,
    filter_empty_instances,
    transform_instance_annotations,
)
from ovformer.d2 import transforms as T

LARGE_SCALE_JITTER = [
    T.RandomFlip(),
    T.ResizeScale(0.1, 2.0, 64, 64),
    T.FixedSizeCrop((64, 64), seg_pad_value=255),
]
AUGMENTATIONS = {
    "resize_shortest_edge": [T.ResizeShortestEdge([36, 48], 64, "choice")],
    "resize_shortest_edge_up": [T.ResizeShortestEdge(96, 120)],
    "flip": [T.RandomFlip(prob=1)],
    "lsj0": LARGE_SCALE_JITTER,
    "lsj1": LARGE_SCALE_JITTER,
    "lsj2": LARGE_SCALE_JITTER,
    "random_crop": [T.RandomCrop("absolute_range", (30, 40))],
    "colour": [
        T.RandomBrightness(0.9, 1.1),
        T.RandomContrast(0.9, 1.1),
        T.RandomSaturation(0.9, 1.1),
    ],
    "rotate": [
        T.RandomRotation(
            [-15, 15], expand=False, center=[(0.4, 0.4), (0.6, 0.6)], sample_style="range"
        )
    ],
}
IMAGE = np.arange(60 * 80 * 3, dtype=np.uint32).astype(np.uint8).reshape(60, 80, 3)


@pytest.fixture(params=AUGMENTATIONS)
def case(request: pytest.FixtureRequest, recorded: dict[str, Any]) -> dict[str, Any]:
    """One recorded list of augmentations, applied again with its seed."""
    name = f"tf.{request.param}"
    wanted = recorded[name] | {
        key: recorded[f"{name}.{key}"] for key in ("image", "sem_seg", "bitmask")
    }
    np.random.seed(wanted["seed"])
    random.seed(wanted["seed"])
    seen = T.AugInput(recorded["tf.image"], sem_seg=recorded["tf.segmentation"])
    tfm = T.AugmentationList(AUGMENTATIONS[request.param])(seen)
    annotation = {
        "bbox": recorded["tf.box_xyxy"],
        "bbox_mode": BoxMode.XYXY_ABS,
        "segmentation": copy.deepcopy(recorded["tf.polygons"]),
        "category_id": 3,
    }
    annotation = transform_instance_annotations(annotation, tfm, seen.image.shape[:2])
    return {"wanted": wanted, "seen": seen, "transforms": tfm, "annotation": annotation}


def test_images_and_segmentations_are_the_recorded_ones(case: dict[str, Any]) -> None:
    wanted, seen = case["wanted"], case["seen"]
    np.testing.assert_array_equal(seen.image, wanted["image"])
    np.testing.assert_array_equal(seen.sem_seg, wanted["sem_seg"])
    assert [type(t).__name__ for t in case["transforms"].transforms] == wanted["transforms"]


def test_boxes_and_polygons_are_the_recorded_ones(case: dict[str, Any]) -> None:
    wanted, annotation = case["wanted"], case["annotation"]
    np.testing.assert_allclose(annotation["bbox"], wanted["bbox"], rtol=0, atol=1e-9)
    assert annotation["bbox_mode"] == BoxMode.XYXY_ABS
    assert len(annotation["segmentation"]) == len(wanted["polygons"])
    for polygon, expected in zip(annotation["segmentation"], wanted["polygons"], strict=True):
        np.testing.assert_allclose(polygon, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "mask_format, boxes", [("polygon", "mask_boxes"), ("bitmask", "bitmask_boxes")]
)
def test_instances_are_the_recorded_ones(
    case: dict[str, Any], mask_format: str, boxes: str
) -> None:
    wanted, size = case["wanted"], case["seen"].image.shape[:2]
    instances = annotations_to_instances([case["annotation"]], size, mask_format)
    assert instances.gt_classes.tolist() == [3]
    assert instances.gt_boxes.nonempty().tolist() == wanted["box_nonempty"]
    np.testing.assert_allclose(
        instances.gt_masks.get_bounding_boxes().tensor, wanted[boxes], rtol=0, atol=1e-5
    )
    if mask_format == "bitmask":
        np.testing.assert_array_equal(instances.gt_masks.tensor, wanted["bitmask"])
    assert len(filter_empty_instances(instances)) == 1


def test_float_images_are_resized_by_torch(recorded: dict[str, Any]) -> None:
    image = recorded["tf.image"].astype(np.float32)
    resized = T.ResizeTransform(60, 80, 45, 70).apply_image(image)
    np.testing.assert_allclose(resized, recorded["tf.resize_float"], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_resizing_keeps_the_number_of_dimensions(dtype: type, channels: tuple[int, ...]) -> None:
    image = np.ones((10, 20, *channels), dtype=dtype)[:, ::-1]
    resized = T.ResizeTransform(10, 20, 5, 7).apply_image(image)
    assert resized.shape == (5, 7, *channels)
    assert resized.dtype == dtype


def test_fixed_size_crop_pads_at_the_bottom_and_the_right() -> None:
    seen = T.AugInput(np.zeros((4, 6, 3), np.uint8), sem_seg=np.ones((4, 6), np.uint8))
    tfm = T.FixedSizeCrop((8, 8), pad_value=128, seg_pad_value=7)(seen)
    assert seen.image.shape == (8, 8, 3)
    assert (seen.image[:4, :6] == 0).all() and (seen.image[4:] == 128).all()
    assert (seen.image[:, 6:] == 128).all()
    assert (seen.sem_seg[4:] == 7).all() and (seen.sem_seg[:4, :6] == 1).all()
    np.testing.assert_array_equal(tfm.apply_coords(np.array([[1.0, 2.0]])), [[1.0, 2.0]])

    seen = T.AugInput(np.zeros((4, 6, 3), np.uint8))
    T.FixedSizeCrop((8, 3), pad=False)(seen)
    assert seen.image.shape == (4, 3, 3)


@pytest.mark.parametrize(
    "crop_type, size, expected",
    [("relative", (0.5, 0.25), (30, 20)), ("absolute", (25, 200), (25, 80))],
)
def test_random_crop_sizes(crop_type: str, size: tuple, expected: tuple[int, int]) -> None:
    seen = T.AugInput(IMAGE)
    T.RandomCrop(crop_type, size)(seen)
    assert seen.image.shape[:2] == expected


def test_random_crop_of_a_relative_range_stays_in_it() -> None:
    np.random.seed(0)
    sizes = {
        T.RandomCrop("relative_range", (0.5, 0.9)).get_crop_size((100, 200)) for _ in range(50)
    }
    assert len(sizes) > 10
    assert all(50 <= height <= 100 and 180 <= width <= 200 for height, width in sizes)


def test_resize_shortest_edge_of_zero_leaves_the_image() -> None:
    assert isinstance(T.ResizeShortestEdge(0).get_transform(IMAGE), T.NoOpTransform)


def test_random_apply() -> None:
    seen = T.AugInput(IMAGE)
    assert isinstance(T.RandomApply(T.HFlipTransform(80), prob=0)(seen), T.NoOpTransform)
    assert seen.image is IMAGE
    T.RandomApply(T.RandomFlip(1.0, horizontal=False, vertical=True), prob=1)(seen)
    np.testing.assert_array_equal(seen.image, IMAGE[::-1])


def test_rotation_and_its_inverse_bring_points_back() -> None:
    rotation = T.RotationTransform(60, 80, 30)
    points = np.array([[0.0, 0.0], [80.0, 60.0], [12.5, 3.0]])
    rotated = rotation.apply_coords(points)
    assert rotation.apply_image(IMAGE).shape[:2] == (rotation.bound_h, rotation.bound_w)
    assert (rotated >= -1).all() and (rotated <= [rotation.bound_w + 1, rotation.bound_h + 1]).all()
    np.testing.assert_allclose(rotation.inverse().apply_coords(rotated), points, atol=1.0)
    with pytest.raises(NotImplementedError):
        T.RotationTransform(60, 80, 30, expand=False).inverse()


def test_a_policy_gets_the_inputs_that_its_parameters_name() -> None:
    class Mirror(T.Augmentation):
        def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> T.Transform:
            assert image.shape[:2] == sem_seg.shape
            return T.HFlipTransform(image.shape[1])

    boxes = np.array([[0.0, 1.0, 10.0, 20.0]])
    seen = T.AugInput(IMAGE, boxes=boxes.copy(), sem_seg=IMAGE[:, :, 0])
    Mirror()(seen)
    np.testing.assert_array_equal(seen.boxes, [[70.0, 1.0, 80.0, 20.0]])

    class Greedy(T.Augmentation):
        def get_transform(self, image: np.ndarray, depth: np.ndarray) -> T.Transform:
            return T.NoOpTransform()

    with pytest.raises(AttributeError, match="depth"):
        Greedy()(seen)

    class Vague(T.Augmentation):
        def get_transform(self, image: np.ndarray, *args: np.ndarray) -> T.Transform:
            return T.NoOpTransform()

    with pytest.raises(TypeError):
        Vague()(seen)


def test_run_length_masks_are_transformed_to_bitmaps() -> None:
    import pycocotools.mask as mask_util

    mask = np.zeros((6, 8), np.uint8)
    mask[1:3, 0:2] = 1
    annotation = {
        "bbox": [0, 1, 2, 2],
        "bbox_mode": BoxMode.XYWH_ABS,
        "segmentation": mask_util.encode(np.asfortranarray(mask)),
        "category_id": 0,
    }
    transform_instance_annotations(annotation, [T.HFlipTransform(8)], (6, 8))
    np.testing.assert_array_equal(annotation["segmentation"], mask[:, ::-1])
    np.testing.assert_array_equal(annotation["bbox"], [6, 1, 8, 3])


@pytest.mark.parametrize("kind", ["polygons", "rle", "bitmap"])
def test_bitmasks_come_from_any_segmentation(kind: str) -> None:
    import pycocotools.mask as mask_util

    mask = np.zeros((6, 8), np.uint8)
    mask[1:4, 2:7] = 1
    segmentation = {
        "polygons": [[2.0, 1.0, 7.0, 1.0, 7.0, 4.0, 2.0, 4.0]],
        "rle": mask_util.encode(np.asfortranarray(mask)),
        "bitmap": mask,
    }[kind]
    annotation = {
        "bbox": [2, 1, 5, 3],
        "bbox_mode": BoxMode.XYWH_ABS,
        "segmentation": segmentation,
        "category_id": 5,
    }
    instances = annotations_to_instances([annotation], (6, 8), "bitmask")
    np.testing.assert_array_equal(instances.gt_masks.tensor[0], mask.astype(bool))
    assert instances.gt_boxes.tensor.tolist() == [[2, 1, 7, 4]]
    assert instances.gt_boxes.tensor.tolist() == (
        instances.gt_masks.get_bounding_boxes().tensor.tolist()
    )


def test_instances_of_nothing_and_without_masks() -> None:
    empty = annotations_to_instances([], (6, 8), "bitmask")
    assert len(empty) == 0 and empty.gt_boxes.tensor.shape == (0, 4)
    assert not empty.has("gt_masks")
    box = {"bbox": [2.0, 1.0, 2.0, 3.0], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
    instances = annotations_to_instances([box], (6, 8))
    assert len(filter_empty_instances(instances)) == 0
    kept, which = filter_empty_instances(instances, return_mask=True)
    assert len(kept) == 0 and which.tolist() == [False]


@pytest.mark.parametrize(
    "segmentation, mask_format", [("nonsense", "bitmask"), ({"counts": b""}, "polygon")]
)
def test_unusable_segmentations_are_errors(segmentation: object, mask_format: str) -> None:
    annotation = {
        "bbox": [2.0, 1.0, 2.0, 3.0],
        "bbox_mode": BoxMode.XYXY_ABS,
        "segmentation": segmentation,
        "category_id": 1,
    }
    with pytest.raises(ValueError):
        annotations_to_instances([annotation], (6, 8), mask_format)
    if mask_format == "bitmask":
        with pytest.raises(ValueError):
            transform_instance_annotations(annotation, [T.NoOpTransform()], (6, 8))
