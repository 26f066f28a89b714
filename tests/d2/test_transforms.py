"""Augmentations, on the selected back-end, against detectron2's record."""

import numpy as np
import pytest
import torch

from ovformer.d2 import BitMasks, Boxes, Instances, filter_empty_instances
from ovformer.d2 import transforms as T
from ovformer.data.samples.augmentation import RandomSaturation

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
        RandomSaturation(0.9, 1.1),
    ],
    "rotate": [T.RandomRotation([-15, 15], expand=False, center=[(0.4, 0.4), (0.6, 0.6)])],
}
IMAGE = np.arange(60 * 80 * 3, dtype=np.uint32).astype(np.uint8).reshape(60, 80, 3)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_give_what_detectron2_gave(name, recorded) -> None:
    key = f"tf.{name}"
    wanted = recorded[key]
    np.random.seed(wanted["seed"])
    seen = T.AugInput(recorded["tf.image"], sem_seg=recorded["tf.segmentation"])
    tfm = T.AugmentationList(AUGMENTATIONS[name])(seen)
    np.testing.assert_array_equal(seen.image, recorded[f"{key}.image"])
    np.testing.assert_array_equal(seen.sem_seg, recorded[f"{key}.sem_seg"])
    # detectron2 blends for the saturation; so do we, in a ColorTransform.
    kinds = [type(t).__name__.replace("Color", "Blend") for t in tfm.transforms]
    assert kinds == wanted["transforms"]

    size = seen.image.shape[1::-1]
    box = np.clip(tfm.apply_box(np.array([recorded["tf.box_xyxy"]]))[0], 0, [*size, *size])
    np.testing.assert_allclose(box, wanted["bbox"], rtol=0, atol=1e-9)
    assert Boxes(box[None]).nonempty().tolist() == wanted["box_nonempty"]
    polygons = tfm.apply_polygons([np.reshape(p, (-1, 2)) for p in recorded["tf.polygons"]])
    for polygon, expected in zip(polygons, wanted["polygons"], strict=True):
        np.testing.assert_allclose(polygon.reshape(-1), expected, rtol=0, atol=1e-9)
    boxes = BitMasks(recorded[f"{key}.bitmask"]).get_bounding_boxes()
    np.testing.assert_allclose(boxes.tensor, wanted["bitmask_boxes"], rtol=0, atol=1e-5)


def test_float_images_are_resized_by_torch(recorded) -> None:
    image = recorded["tf.image"].astype(np.float32)
    resized = T.ResizeTransform(60, 80, 45, 70).apply_image(image)
    np.testing.assert_allclose(resized, recorded["tf.resize_float"], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_resizing_keeps_the_number_of_dimensions(dtype, channels) -> None:
    image = np.ones((10, 20, *channels), dtype=dtype)[:, ::-1]
    resized = T.ResizeTransform(10, 20, 5, 7).apply_image(image)
    assert resized.shape == (5, 7, *channels)
    assert resized.dtype == dtype


def test_fixed_size_crop_pads_at_the_bottom_and_the_right() -> None:
    seen = T.AugInput(np.zeros((4, 6, 3), np.uint8), sem_seg=np.ones((4, 6), np.uint8))
    tfm = T.FixedSizeCrop((8, 8), pad_value=128, seg_pad_value=7)(seen)
    expected, labels = np.full((8, 8, 3), 128), np.full((8, 8), 7)
    expected[:4, :6], labels[:4, :6] = 0, 1
    np.testing.assert_array_equal(seen.image, expected)
    np.testing.assert_array_equal(seen.sem_seg, labels)
    np.testing.assert_array_equal(tfm.apply_coords(np.array([[1.0, 2.0]])), [[1.0, 2.0]])


@pytest.mark.parametrize(
    ("crop", "expected"),
    [
        (T.FixedSizeCrop((90, 30), pad=False), (60, 30)),
        (T.RandomCrop("relative", (0.5, 0.25)), (30, 20)),
        (T.RandomCrop("absolute", (25, 200)), (25, 80)),
        (T.ResizeShortestEdge(0), (60, 80)),
    ],
)
def test_sizes_after_a_crop(crop, expected) -> None:
    seen = T.AugInput(IMAGE)
    crop(seen)
    assert seen.image.shape[:2] == expected


class Mirror(T.Augmentation):
    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> T.Transform:
        assert image.shape[:2] == sem_seg.shape
        return T.HFlipTransform(image.shape[1])


class Greedy(T.Augmentation):
    def get_transform(self, image: np.ndarray, depth: np.ndarray) -> T.Transform:
        return T.NoOpTransform()


class Vague(T.Augmentation):
    def get_transform(self, image: np.ndarray, *args: np.ndarray) -> T.Transform:
        return T.NoOpTransform()


def test_an_augmentation_gets_the_inputs_that_its_parameters_name() -> None:
    boxes = np.array([[0.0, 1.0, 10.0, 20.0]])
    seen = T.AugInput(IMAGE, boxes=boxes, sem_seg=IMAGE[:, :, 0])
    Mirror()(seen)
    np.testing.assert_array_equal(seen.boxes, [[70.0, 1.0, 80.0, 20.0]])
    with pytest.raises(AttributeError, match="depth"):
        Greedy()(seen)
    with pytest.raises(TypeError):
        Vague()(seen)


def test_instances_with_an_empty_box_or_mask_are_dropped() -> None:
    masks = torch.zeros(3, 6, 8)
    masks[:2, 1:4, 2:7] = 1
    boxes = Boxes([[2, 1, 7, 4], [2, 1, 2, 4], [2, 1, 7, 4]])
    instances = Instances((6, 8), gt_boxes=boxes, gt_masks=BitMasks(masks))
    kept, which = filter_empty_instances(instances, return_mask=True)
    assert len(kept) == 1 and which.tolist() == [True, False, False]
    for only in ({"by_mask": False}, {"by_box": False}):
        assert len(filter_empty_instances(instances, **only)) == 2
    instances.remove("gt_masks")
    assert len(filter_empty_instances(instances)) == 2
