"""Models for the tests of videos: the small ones of the recorded files, and tiny ones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import ovformer.modeling  # noqa: F401  (registers)
from ovformer.config import get_ovformer_cfg
from ovformer.d2 import build_model

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


def build_video_model(
    folder: Path, classes: int, clip_dim: int, sizes: dict, frequencies: str = "f", **options: Any
) -> nn.Module:
    """Return a model of random weights in training mode, an OVFormerVideo unless options say else.

    Args:
        folder: where its classifier is written.
        classes: number of classes.
        clip_dim: width of CLIP's space.
        sizes: RECORDED or TINY.
        frequencies: of the classes in turn, as in files of category information.
        **options: more config keys, last.
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
    features = ["layer2", "layer3", "layer4", "layer5"]
    options = {
        "MODEL.META_ARCHITECTURE": "OVFormerVideo",
        "MODEL.DEVICE": "cpu",
        "MODEL.BACKBONE.NAME": "build_timm_backbone",
        "MODEL.CLIP.EMBED_DIM": clip_dim,
        "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": classes,
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": features,
        "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": features[1:],
        "MODEL.MASK_FORMER.CLIP_TEXT_PATH": str(folder / "text.npy"),
        "MODEL.MASK_FORMER.CAT_INFO_PATH": str(folder / "categories.json"),
        **sizes,
        **options,
    }
    torch.manual_seed(0)
    return build_model(get_ovformer_cfg(None, [x for pair in options.items() for x in pair]))
