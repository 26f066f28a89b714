"""Federated class loss: each batch is trained on the classes present and some drawn ones.

The images of a data set with many classes are not annotated with all of them. The class loss of a
batch is therefore computed over a few classes. Source: Zhou et al., Probabilistic two-stage
detection, https://arxiv.org/abs/2103.07461.

Legend: N instances, K classes.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ovformer.d2 import CfgNode, MetadataCatalog
from ovformer.paths import resolve_path

# Frequency of classes that training must not see, not even as negatives: LVIS rare, LV-VIS novel.
HELD_OUT_FREQUENCIES = ("r", "n")


def sample_federated_classes(present: Tensor, class_weights: Tensor, num_classes: int) -> Tensor:
    """Choose the classes that a batch is trained on.

    The classes present are always chosen. Others are drawn without replacement until there are
    ``num_classes``, or until none is left that may be drawn.

    Args:
        present: int64, distinct class ids; the id K ("no object") may be among them and counts.
        class_weights: (K,) proportional to the probability of being drawn; 0 is never drawn.
        num_classes: how many classes to choose.

    Returns:
        (K,) bool.
    """
    # One more entry for "no object", which may be present but is never drawn.
    weights = torch.cat([class_weights, class_weights.new_zeros(1)])
    weights[present] = 0
    chosen = torch.zeros_like(weights, dtype=torch.bool)
    chosen[present] = True
    # torch.multinomial fails where fewer classes have a weight than are to be drawn.
    num_drawn = min(num_classes - len(present), int(weights.count_nonzero()))
    if num_drawn > 0:
        chosen[torch.multinomial(weights, num_drawn, replacement=False)] = True
    return chosen[:-1]


def federated_class_loss(logits: Tensor, labels: Tensor, chosen: Tensor) -> Tensor:
    """Sum of the sigmoid cross-entropy over instances and chosen classes.

    Args:
        logits: (N, K) class logits of the queries matched to instances.
        labels: (N,) int64 classes of these instances.
        chosen: (K,) bool, the classes that count.

    Returns:
        Scalar; 0 for no instances.
    """
    target = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits[:, chosen], target[:, chosen], reduction="sum")


def compute_draw_weights(category_info: Sequence[Mapping[str, Any]], power: float) -> Tensor:
    """Return the weights with which classes are drawn for the federated loss.

    Args:
        category_info: ``id``, ``frequency`` and ``image_count`` of each category, any order.
        power: exponent of the image count.

    Returns:
        (K,) float32 by ascending id: image_count ** power, and 0 for held-out classes.

    Raises:
        KeyError: a category lacks one of the fields.
    """
    counts = torch.tensor(
        [
            0 if category["frequency"] in HELD_OUT_FREQUENCIES else category["image_count"]
            for category in sorted(category_info, key=lambda category: category["id"])
        ],
        dtype=torch.float32,
    )
    # 0 ** 0 is 1: with a power of 0 the held-out classes would be drawn.
    return torch.where(counts > 0, counts**power, 0.0)


def freq_weight_from_config(cfg: CfgNode, num_classes: int) -> Tensor:
    """Return the drawing weights for a config's training set.

    Args:
        cfg: the config.
        num_classes: K.

    Returns:
        (K,) float32; ones for a model without a training set and a category info file, which can
        only be used for inference.

    Raises:
        FileNotFoundError: the category info file does not exist.
        ValueError: the category info is missing, broken or of another number of classes.
    """
    if not cfg.MODEL.MASK_FORMER.CAT_INFO_PATH and not cfg.DATASETS.TRAIN:
        return torch.ones(num_classes)
    # A training needs the counts: from here on, a file that is missing or wrong is an error.
    info, source = _read_category_info(cfg)
    try:
        weights = compute_draw_weights(info, cfg.MODEL.MASK_FORMER.FED_LOSS_POWER)
    # A user made the file: a field may be missing or of any type.
    except (AttributeError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{source}: expected a list of categories with id, frequency and image_count; "
            f"reading it failed with {error!r}"
        ) from error
    if len(weights) != num_classes:
        raise ValueError(
            f"{source} has {len(weights)} categories, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is "
            f"{num_classes}; set the key to the number of classes of the training set"
        )
    return weights


def _read_category_info(cfg: CfgNode) -> tuple[Sequence[Mapping[str, Any]], str]:
    """Return the category info of a config, and its source, for messages."""
    key = "MODEL.MASK_FORMER.CAT_INFO_PATH"
    if cfg.MODEL.MASK_FORMER.CAT_INFO_PATH:
        path = resolve_path(cfg.MODEL.MASK_FORMER.CAT_INFO_PATH)
        if not path.is_file():
            raise FileNotFoundError(
                f"{key}: no file {path}. tools/get_lvis_cat_info.py (of videos: "
                "get_lvvis_cat_info.py) makes it from the annotations"
            )
        try:
            return json.loads(path.read_text(encoding="utf-8")), f"{key} ({path})"
        except (RecursionError, ValueError) as error:
            raise ValueError(f"{key}: {path} is not valid JSON: {error}") from error
    name = cfg.DATASETS.TRAIN[0]
    info = getattr(MetadataCatalog.get(name), "category_info", None)
    if info is None:
        raise ValueError(
            f"{key}: not set, and the data set {name!r} has no category_info in its metadata. Set "
            "it to a file made by tools/get_lvis_cat_info.py from the training annotations"
        )
    return info, f"the metadata of {name}"
