"""Images, masks and CLIP inputs as the model gets them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import DatasetCatalog
from ovformer.d2 import transforms as T
from ovformer.data.files.image_embeddings import ImageEmbeddingWriter, crop_for_embedding
from ovformer.data.samples.augmentation import EXTRA_AUGMENTATIONS, build_train_augmentations
from ovformer.data.samples.image_mapper import ImageMapper, read_rgb, transform_mask
from support.masks import compressed_rle, corners, rectangle
from support.mini_lvis import MiniLvis


def mapper(**changes: object) -> ImageMapper:
    arguments = {"is_train": True, "augmentations": [], "pad_to": 0, "image_format": "RGB"}
    return ImageMapper(**{**arguments, "clip_image_size": 16, "embeddings": None, **changes})


def pixels_of(record: dict) -> np.ndarray:
    return np.asarray(Image.open(record["file_name"]))


@pytest.fixture
def records(mini_lvis: MiniLvis) -> list[dict]:
    return DatasetCatalog.get("lvis_v1_train")


def test_without_augmentation_nothing_changes(mini_lvis: MiniLvis, records: list[dict]) -> None:
    masks = iter(mini_lvis.masks.values())  # in the order of the records
    records[0]["annotations"][0]["bbox"] = [0, 0, 1, 1]
    for record in records:
        before = str(record)
        sample = mapper()(record)
        assert str(record) == before and "annotations" not in sample
        pixels = pixels_of(record)
        np.testing.assert_array_equal(sample["image"].permute(1, 2, 0), pixels)
        assert torch.equal(sample["clip_image"], crop_for_embedding(pixels, 16))
        bgr = mapper(image_format="BGR")(record)["image"]
        assert torch.equal(sample["image"], bgr.flip(0))
        instances = sample["instances"]
        assert instances.image_size == (record["height"], record["width"])
        pairs = [(annotation, next(masks)) for annotation in record["annotations"]]
        kept = [(a["category_id"], mask) for a, mask in pairs if not a["iscrowd"]]
        assert instances.gt_classes.tolist() == [label for label, _ in kept]
        expected = np.array([mask for _, mask in kept]).reshape(-1, *instances.image_size)
        np.testing.assert_array_equal(instances.gt_masks.tensor, expected)
        boxes = instances.gt_masks.get_bounding_boxes().tensor  # and not those of the file
        assert torch.equal(instances.gt_boxes.tensor, boxes)
    assert next(masks, None) is None
    with pytest.raises(ValueError, match="INPUT.FORMAT: unknown format 'L'. Known: RGB, BGR"):
        mapper(image_format="L")


@pytest.mark.parametrize("seed", range(6))
def test_large_scale_jitter(records: list[dict], seed: int) -> None:
    """Everything beyond the resized image is padding: grey, and in no mask."""
    np.random.seed(seed)
    augmentations = build_train_augmentations(64, 0.3, 2.0, "horizontal", ["rotation"])
    # Reaches out of the image on all sides.
    around = {**records[2]["annotations"][0], "segmentation": [corners(-90, -90, 190, 190)]}
    sample = mapper(augmentations=augmentations, pad_to=64)({**records[2], "annotations": [around]})
    assert sample["image"].shape == (3, 64, 64)
    mask = sample["instances"].gt_masks.tensor[0].numpy()
    height, width = np.argwhere(mask).max(0) + 1
    assert mask[:height, :width].all()
    assert (sample["image"][:, ~mask] == 128).all()
    assert (sample["image"][:, :height, :width] != 128).any()


@given(
    box=st.tuples(*[st.integers(-20, 70)] * 4),
    crop=st.tuples(*[st.integers(1, 60)] * 2),
    seed=st.integers(0, 99),
)
def test_polygons_and_rles_are_cropped_alike(box: tuple, crop: tuple, seed: int) -> None:
    x0, x1 = sorted((box[0], box[1] + 100))
    y0, y1 = sorted((box[2], box[3] + 100))
    size = (50, 60)
    mask = rectangle(size, max(x0, 0), max(y0, 0), x1, y1)
    image = np.zeros((*size, 3), np.uint8)
    np.random.seed(seed)
    augmented = T.AugInput(image)
    transforms = T.AugmentationList([T.FixedSizeCrop(crop, pad=False)])(augmented)
    frame = augmented.image.shape[:2]
    from_polygon = transform_mask([corners(x0, y0, x1, y1)], transforms, frame)
    from_rle = transform_mask(compressed_rle(mask), transforms, frame)
    assert from_rle.shape == frame
    np.testing.assert_array_equal(from_polygon, from_rle)


@pytest.mark.parametrize("name", ["rotation90", "flip"])
@pytest.mark.parametrize("seed", range(5))
def test_image_and_masks_move_together(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((30, 44)) < 0.5
    image = np.repeat(mask[..., None].astype(np.uint8) * 255, 3, 2)
    augmentation = T.RandomFlip(prob=1.0) if name == "flip" else EXTRA_AUGMENTATIONS["rotation90"]()
    np.random.seed(seed)
    augmented = T.AugInput(image)
    transforms = T.AugmentationList([augmentation])(augmented)
    frame = augmented.image.shape[:2]
    moved = transform_mask(compressed_rle(mask), transforms, frame)
    np.testing.assert_array_equal(moved > 0, augmented.image[..., 0] > 127)
    assert moved.sum() == mask.sum()
    # A polygon's pixels move as the mask of it does.
    box = transform_mask([corners(3, 5, 20, 11)], transforms, frame)
    expected = transform_mask(compressed_rle(rectangle((30, 44), 3, 5, 20, 11)), transforms, frame)
    np.testing.assert_array_equal(box, expected)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_changes_leave_masks_alone(records: list[dict], name: str) -> None:
    np.random.seed(1)
    sample = mapper(augmentations=[EXTRA_AUGMENTATIONS[name]()])(records[0])
    plain = mapper()(records[0])
    difference = (sample["image"].int() - plain["image"].int()).abs()
    assert 0 < difference.max() <= 27
    assert torch.equal(sample["instances"].gt_masks.tensor, plain["instances"].gt_masks.tensor)
    assert torch.equal(sample["clip_image"], plain["clip_image"])


def test_objects_that_vanish_are_dropped(records: list[dict]) -> None:
    first, second = records[0]["annotations"]
    small = {**first, "segmentation": [corners(10, 10, 12, 12)]}
    shrink = mapper(augmentations=[T.ResizeScale(0.1, 0.1, 64, 64)], pad_to=64)
    instances = shrink({**records[0], "annotations": [small, first, second]})["instances"]
    assert instances.gt_classes.tolist() == [0, 12]
    assert (instances.gt_masks.tensor.flatten(1).sum(1) > 0).all()


def test_config_keys(records: list[dict]) -> None:
    opts = ["INPUT.IMAGE_SIZE", 96, "INPUT.FORMAT", "RGB", "INPUT.RANDOM_FLIP", "none"]
    opts += ["INPUT.MIN_SCALE", 1.0, "INPUT.MAX_SCALE", 1.0, "MODEL.CLIP.IMAGE_SIZE", 32]
    cfg = get_ovformer_cfg(None, [*opts, "INPUT.MIN_SIZE_TEST", 80, "INPUT.MAX_SIZE_TEST", 100])
    sample = ImageMapper(cfg, is_train=True)(records[0])  # 60 x 40
    expected = Image.fromarray(pixels_of(records[0])).resize((96, 64), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(sample["image"][:, :64].permute(1, 2, 0), np.asarray(expected))
    assert (sample["image"][:, 64:] == 128).all()
    assert sample["clip_image"].shape == (3, 32, 32)
    assert sample["instances"].gt_masks.tensor.shape == (2, 96, 96)
    sample = ImageMapper(cfg, is_train=False)(records[4])  # 64 x 36
    assert sample["image"].shape == (3, 56, 100)
    assert (sample["height"], sample["width"]) == (36, 64)
    assert not {"instances", "annotations"} & sample.keys()


def test_stored_features_are_attached(
    mini_lvis: MiniLvis, records: list[dict], caplog: pytest.LogCaptureFixture
) -> None:
    features = torch.randn(5, 8)
    path = mini_lvis.root / "metadata" / "features.safetensors"
    with ImageEmbeddingWriter(path, {"clip": "tiny", "pretrained": "a file"}) as writer:
        writer.add([record["clip_key"] for record in records], features)
    # As configs name it: relative to the dataset root.
    opts = ["MODEL.MASK_FORMER.CLIP_IMAGE_PATH", "datasets/metadata/features.safetensors"]
    with pytest.raises(ValueError, match="width 8, but MODEL.CLIP.EMBED_DIM is 512"):
        ImageMapper(get_ovformer_cfg(None, opts), is_train=False)
    cfg = get_ovformer_cfg(None, [*opts, "MODEL.CLIP.EMBED_DIM", 8])
    sample = ImageMapper(cfg, is_train=False)(records[1])
    assert torch.equal(sample["clip_features"], features[1:2])
    assert "clip_image" not in sample
    assert "was made with CLIP tiny / a file" in caplog.text
    # Training has a key of its own.
    assert ImageMapper(cfg, is_train=True).embeddings is None


def test_a_wrong_image_is_named(records: list[dict]) -> None:
    path = Path(records[0]["file_name"])
    with pytest.raises(ValueError, match=str(path)):
        mapper()(dict(records[0], width=61))
    content = path.read_bytes()
    for damaged in (b"", b"no image", content[:900], content[:40] + content[60:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{path}: .*decoded"):
            mapper()(records[0])
    path.unlink()
    with pytest.raises(FileNotFoundError, match=str(path)):
        read_rgb(str(path))
