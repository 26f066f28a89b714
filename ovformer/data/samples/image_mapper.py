"""Turns the dataset dict of an image into a sample.

Legend: N instances, H W pixels of the image that the network sees, h w the same before padding.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from pycocotools import mask as coco_mask

from ovformer.d2 import (
    BitMasks,
    CfgNode,
    Instances,
    check_image_size,
    configurable,
    filter_empty_instances,
    read_image,
)
from ovformer.d2 import transforms as T
from ovformer.data.files.image_embeddings import ImageEmbeddingStore, crop_for_embedding
from ovformer.data.files.untrusted_masks import polygons_to_rle
from ovformer.data.samples.augmentation import (
    PAD_VALUE,
    build_evaluation_augmentations,
    build_extra_augmentations,
    build_flip,
    build_train_augmentations,
    pad,
)

# INPUT.FORMAT
IMAGE_FORMATS = ("RGB", "BGR")

logger = logging.getLogger(__name__)


class ImageMapper:
    """Reads an image, augments it and its masks, and adds its CLIP embedding or CLIP's input.

    Args:
        is_train: add "instances".
        augmentations: applied in this order.
        pad_to: side in pixels of the square that images are padded to; 0 for none.
        image_format: channel order of "image", "RGB" or "BGR".
        clip_image_size: side in pixels of "clip_image".
        embeddings: store of "clip_features"; without it samples have "clip_image".
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation],
        pad_to: int,
        image_format: str,
        clip_image_size: int,
        embeddings: ImageEmbeddingStore | None,
    ):
        check_image_format(image_format)
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.pad_to = pad_to
        self.image_format = image_format
        self.clip_image_size = clip_image_size
        self.embeddings = embeddings

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> dict:
        """Read the arguments from a config."""
        key = "CLIP_IMAGE_PATH_TRAIN" if is_train else "CLIP_IMAGE_PATH"
        if is_train:
            augmentations = build_train_augmentations(
                cfg.INPUT.IMAGE_SIZE,
                cfg.INPUT.MIN_SCALE,
                cfg.INPUT.MAX_SCALE,
                cfg.INPUT.RANDOM_FLIP,
                cfg.INPUT.AUGMENTATIONS,
            )
        else:
            augmentations = build_evaluation_augmentations(
                cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
            )
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "pad_to": cfg.INPUT.IMAGE_SIZE if is_train else 0,
            "image_format": cfg.INPUT.FORMAT,
            "clip_image_size": cfg.MODEL.CLIP.IMAGE_SIZE,
            "embeddings": open_embeddings(cfg, key),
        }

    def __call__(self, record: dict) -> dict:
        """Return the sample that :mod:`ovformer.data` describes.

        Args:
            record: a dataset dict; it is not changed.

        Raises:
            FileNotFoundError: the image file does not exist.
            ValueError: the image can't be decoded, or its size is not that of the annotations.
        """
        sample = {key: value for key, value in record.items() if key != "annotations"}
        image = read_rgb(record["file_name"])
        check_image_size(sample, image)
        # CLIP sees the whole image, as stored embeddings do, and not the augmented one.
        if self.embeddings is not None:
            sample["clip_features"] = self.embeddings.get(record)[None]
        else:
            sample["clip_image"] = crop_for_embedding(image, self.clip_image_size)

        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        image = augmented.image
        frame = image.shape[:2]
        # Padding is not among the transforms: masks are drawn in the frame without it.
        if self.pad_to:
            image = pad(image, (self.pad_to, self.pad_to), PAD_VALUE)
        sample["image"] = to_tensor(image, self.image_format)
        if self.is_train:
            annotations = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
            masks = [transform_mask(a["segmentation"], transforms, frame) for a in annotations]
            labels = [a["category_id"] for a in annotations]
            sample["instances"] = _make_instances(masks, labels, image.shape[:2])
        return sample


def find_image_input_errors(cfg: CfgNode) -> Iterator[str]:
    """Yield an error message for each wrong key of the training's augmentation."""
    node = cfg.INPUT
    if node.IMAGE_SIZE < 1:
        yield f"INPUT.IMAGE_SIZE: expected at least 1 pixel, got {node.IMAGE_SIZE}."
    if not 0 < node.MIN_SCALE <= node.MAX_SCALE < math.inf:
        yield (
            "INPUT.MIN_SCALE, MAX_SCALE: expected factors of INPUT.IMAGE_SIZE above 0, the smaller "
            f"one first; got {node.MIN_SCALE} and {node.MAX_SCALE}."
        )
    # Built only for their messages, each by itself, so that every wrong key is reported.
    for build in (
        partial(build_flip, node.RANDOM_FLIP),
        partial(build_extra_augmentations, node.AUGMENTATIONS, "INPUT.AUGMENTATIONS"),
    ):
        try:
            build()
        except ValueError as error:
            yield str(error)


def check_image_format(image_format: str) -> None:
    """Raise ValueError if ``INPUT.FORMAT`` is not known."""
    if image_format not in IMAGE_FORMATS:
        known = ", ".join(IMAGE_FORMATS)
        raise ValueError(f"INPUT.FORMAT: unknown format {image_format!r}. Known: {known}.")


def to_tensor(image: np.ndarray, image_format: str) -> torch.Tensor:
    """Turn RGB pixels (H, W, 3) into a tensor (3, H, W) with channels in the order of a format."""
    if image_format == "BGR":
        image = image[:, :, ::-1]
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def read_rgb(file_name: str) -> np.ndarray:
    """Read an image as uint8 (H, W, 3), RGB, upright as its EXIF data say.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file can't be decoded.
    """
    try:
        return read_image(file_name, format="RGB")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file_name}: no such image file.") from error
    except Exception as error:  # decoders raise many types: OSError, SyntaxError, struct.error, ...
        raise ValueError(
            f"{file_name}: the image can't be decoded ({type(error).__name__}: {error}). "
            "Download or generate it again."
        ) from error


def transform_mask(
    segmentation: list | dict, transforms: T.TransformList, frame: tuple[int, int]
) -> np.ndarray:
    """Apply an image's transforms to the mask of an object.

    Polygons are transformed as points and drawn once: repeated resampling would lose detail, and
    points outside the frame need no clipping.

    Args:
        segmentation: polygons as flat sequences of x and y, or an RLE.
        transforms: applied to the image.
        frame: size (h, w) of the transformed image.

    Returns:
        uint8 (h, w), of zeros and ones.
    """
    # An RLE has no points to move; its pixels move as those of the image do.
    if isinstance(segmentation, dict):
        return transforms.apply_segmentation(coco_mask.decode(segmentation))
    polygons = [
        # Transforms work in place.
        transforms.apply_coords(np.array(polygon, dtype=np.float64).reshape(-1, 2)).reshape(-1)
        for polygon in segmentation
    ]
    return coco_mask.decode(polygons_to_rle(polygons, *frame))


def _make_instances(
    masks: Sequence[np.ndarray], labels: Sequence[int], image_size: tuple[int, int]
) -> Instances:
    """Return the instances whose masks are not empty, padded at the right and the bottom.

    Args:
        masks: N masks, uint8 (h, w).
        labels: N contiguous category ids.
        image_size: (H, W).
    """
    # One allocation for all masks: images of LVIS may have hundreds.
    padded = torch.zeros((len(masks), *image_size), dtype=torch.bool)
    for target, mask in zip(padded, masks, strict=True):
        target[: mask.shape[0], : mask.shape[1]] = torch.from_numpy(np.ascontiguousarray(mask)) > 0
    instances = Instances(image_size)
    instances.gt_classes = torch.tensor(labels, dtype=torch.int64)
    instances.gt_masks = BitMasks(padded)
    # Boxes of the augmented masks: a rotated or cropped box would be too large.
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    return filter_empty_instances(instances)


def open_embeddings(cfg: CfgNode, key: str) -> ImageEmbeddingStore | None:
    """Open the store of image embeddings that a key of ``MODEL.MASK_FORMER`` names.

    Returns:
        The store; None where the key is empty.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a store, or its width is not that of the CLIP model.
    """
    path = cfg.MODEL.MASK_FORMER[key]
    if not path:
        return None
    store = ImageEmbeddingStore.open(path)
    clip = cfg.MODEL.CLIP
    if store.dim != clip.EMBED_DIM:
        raise ValueError(
            f"MODEL.MASK_FORMER.{key}: {store.path} holds features of width {store.dim}, but "
            f"MODEL.CLIP.EMBED_DIM is {clip.EMBED_DIM}. Both have to come from one CLIP model."
        )
    # A warning only: two names may stand for the same weights.
    made_with = (store.info.get("clip", clip.NAME), store.info.get("pretrained", clip.PRETRAINED))
    if made_with != (clip.NAME, clip.PRETRAINED):
        logger.warning(
            "MODEL.MASK_FORMER.%s: %s was made with CLIP %s, the config has %s. Features of "
            "another model mean nothing to this one.",
            key,
            store.path,
            " / ".join(made_with),
            f"{clip.NAME} / {clip.PRETRAINED}",
        )
    return store
