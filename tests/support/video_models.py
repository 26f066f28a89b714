"""Models and videos for the tests: the small models of the recorded files, and the tiny one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ovformer.modeling  # noqa: F401  (registers)
from ovformer.config import get_ovformer_cfg
from ovformer.d2 import BitMasks, CfgNode, Instances, build_model

CLIP_DIM = 16  # of the videos below

RECORDED = {
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 256,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 64,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 2,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 20,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 128,
    "MODEL.MASK_FORMER.DEC_LAYERS": 5,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 256,
    "TEST.DETECTIONS_PER_IMAGE": 10,
}
FEATURES = ["layer2", "layer3", "layer4", "layer5"]
# The classes of all parts of these models; their sizes are those of RECORDED or TINY.
PARTS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "build_timm_backbone",
    "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": FEATURES,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": FEATURES[1:],
}
TINY = {
    "MODEL.TIMM.BASE_NAME": "resnet18",
    "MODEL.TIMM.KWARGS": "{layers: [1, 1, 1, 1], channels: [8, 8, 16, 16], stem_width: 8}",
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD": 32,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 16,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 6,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 32,
    "MODEL.MASK_FORMER.DEC_LAYERS": 3,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 64,
    "TEST.DETECTIONS_PER_IMAGE": 4,
}
# Options that make it a clip model.
CLIPS = {
    "MODEL.META_ARCHITECTURE": "VideoOVFormer",
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "VideoMultiScaleMaskedTransformerDecoder",
}


def make_cfg(options: Mapping[str, Any], config_file: str | None = None) -> CfgNode:
    """Return the config of some keys and their values, and perhaps of a file."""
    return get_ovformer_cfg(config_file, [word for pair in options.items() for word in pair])


def write_vocabulary(
    folder: Path, classes: int, clip_dim: int, frequencies: str = "f"
) -> dict[str, Any]:
    """Write a text classifier and category information; return the config keys that name them.

    Args:
        folder: of the files.
        classes: number of classes.
        clip_dim: width of CLIP's space.
        frequencies: of the classes in turn, as in files of category information.
    """
    random = np.random.RandomState(7 + classes)
    np.save(folder / "text.npy", random.standard_normal((classes, clip_dim)).astype(np.float32))
    categories = [
        {
            "id": i + 1,
            "image_count": (i * 37) % 101 + 1,
            "frequency": frequencies[i % len(frequencies)],
        }
        for i in range(classes)
    ]
    (folder / "categories.json").write_text(json.dumps(categories))
    return {
        "MODEL.CLIP.EMBED_DIM": clip_dim,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": classes,
        "MODEL.MASK_FORMER.CLIP_TEXT_PATH": str(folder / "text.npy"),
        "MODEL.MASK_FORMER.CAT_INFO_PATH": str(folder / "categories.json"),
    }


def build_small_model(
    folder: Path,
    classes: int = 3,
    clip_dim: int = CLIP_DIM,
    sizes: Mapping[str, Any] = TINY,
    frequencies: str = "f",
    **options: Any,
) -> nn.Module:
    """Return a model of random weights in training mode, an OVFormerVideo by default.

    Args:
        folder: of the files of its vocabulary.
        classes: number of classes.
        clip_dim: width of CLIP's space.
        sizes: TINY or RECORDED.
        frequencies: of the classes, see :func:`write_vocabulary`.
        **options: more config keys, last.
    """
    vocabulary = write_vocabulary(folder, classes, clip_dim, frequencies)
    kind = {"MODEL.META_ARCHITECTURE": "OVFormerVideo"}
    torch.manual_seed(0)
    return build_model(make_cfg({**kind, **PARTS, **vocabulary, **sizes, **options}))


def assert_gradients_are_finite(model: nn.Module) -> None:
    """Every trained parameter takes part in the losses, as training on several GPUs requires."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def video(num_frames, size=(40, 56), seed=0, **more):
    """A record with random frames."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_frames, 3, *size)
    return {
        "video_id": 5,
        "image": list(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)),
        "clip_features": torch.randn(num_frames, CLIP_DIM, generator=generator),
        "height": 47,
        "width": 31,
        **more,
    }


def assert_same_prediction(got, expected) -> None:
    """Compare two prediction dicts."""
    assert got["pred_scores"] == pytest.approx(expected["pred_scores"], abs=1e-5)
    for key in ("pred_labels", "segmentations", "video_id", "image_size"):
        assert got[key] == expected[key]


def make_instances(size, masks):
    """The instances of a frame; those with an empty mask are absent."""
    result = Instances(size)
    result.gt_masks = BitMasks(masks)
    result.gt_classes = torch.arange(len(masks))
    result.gt_ids = torch.where(masks.flatten(1).any(1), torch.arange(len(masks)), -1)
    return result


def training_batch():
    """Two videos of two frames. The second instance is not in the last frame."""
    batch = [video(2), video(2, size=(50, 40), seed=1)]
    for record in batch:
        size = tuple(record["image"][0].shape[1:])
        record["instances"] = []
        for t in range(2):
            masks = torch.zeros(2, *size, dtype=torch.bool)
            masks[0, 5 + t : 20, 5:30] = True
            masks[1, 8:30, 10:25] = t == 0
            record["instances"].append(make_instances(size, masks))
    return batch
