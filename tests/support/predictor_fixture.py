"""A tiny model of random weights with its tiny CLIP model, saved as after a training."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ovformer.modeling  # noqa: F401  (registers)
from ovformer.config import get_ovformer_cfg
from ovformer.d2 import CfgNode, build_model
from ovformer.data.files.video_writer import VideoWriter
from ovformer.engine.checkpoint import Checkpointer, collect_metadata
from ovformer.modeling.language.clip_encoder import CLIPEncoder
from ovformer.modeling.language.text_classifier import save_text_classifier
from ovformer.predictor import VideoPredictor
from support.tiny_clip import make_clip
from support.video_models import PARTS, TINY

WORDS = ["red circle", "blue ring", "green star"]
TEMPLATES = ["a {}", "the {}"]


def make_cfg(folder: Path, clip: str, **options: Any) -> CfgNode:
    """Write a text classifier and return the config of a model with it."""
    classifier = folder / "classifier.safetensors"
    weights = CLIPEncoder.from_pretrained(clip).embed_names(WORDS, TEMPLATES)
    save_text_classifier(classifier, weights, WORDS, {"templates": TEMPLATES})
    values = {
        **PARTS,
        **TINY,
        "MODEL.META_ARCHITECTURE": "OVFormer",
        "MODEL.CLIP.NAME": clip,
        "MODEL.CLIP.PRETRAINED": "",
        "MODEL.CLIP.EMBED_DIM": 16,
        "MODEL.CLIP.IMAGE_SIZE": 32,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": len(WORDS),
        "MODEL.MASK_FORMER.CLIP_TEXT_PATH": str(classifier),
        "DATASETS.TRAIN": (),
        "DATASETS.TEST": (),
        "INPUT.FORMAT": "RGB",
        "INPUT.MIN_SIZE_TEST": 64,
        "INPUT.MAX_SIZE_TEST": 128,
        "TEST.DETECTIONS_PER_IMAGE": 10,
        **options,
    }
    return get_ovformer_cfg(None, [x for pair in values.items() for x in pair])


def save_trained(folder: Path, **options: Any) -> Path:
    """Save a checkpoint as a training does; its CLIP model is the folder "clip" beside it."""
    cfg = make_cfg(folder, make_clip(folder / "clip"), **options)
    torch.manual_seed(0)
    model = build_model(cfg)
    Checkpointer(model, str(folder), class_names=WORDS, metadata=collect_metadata(cfg)).save(
        "model"
    )
    return folder / "model.pth"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, see :func:`save_trained`. Tests must not change it."""
    return save_trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def make_frames() -> Callable[..., list[np.ndarray]]:
    """A function that draws a moving square."""

    def make(count: int, size: tuple[int, int] = (48, 64)) -> list[np.ndarray]:
        rng = np.random.default_rng(0)
        background = rng.integers(60, 90, (*size, 3), np.uint8)
        frames = []
        for t in range(count):
            frame = background.copy()
            top, left = 10 + t % 15, 5 + t % 30
            frame[top : top + 16, left : left + 16] = (220, 40, 40)
            frames.append(frame)
        return frames

    return make


def write_video(path: Path, frames: Sequence[np.ndarray]) -> Path:
    """Write a video file of ten frames a second."""
    with VideoWriter(path, 10) as writer:
        for t, frame in enumerate(frames):
            writer.write(frame, t / 10)
    return path


@pytest.fixture(scope="session")
def predictor(trained: Path) -> VideoPredictor:
    """The tiny model with the vocabulary of its weights. Tests must not change it."""
    return VideoPredictor.from_checkpoint(None, trained, device="cpu")
