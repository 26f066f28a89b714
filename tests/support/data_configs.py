"""Configs and samples of the small data sets."""

import itertools

import numpy as np

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import CfgNode
from ovformer.data.loading.video_loaders import build_video_train_loader


def data_config(family: str, *opts: object) -> CfgNode:
    """A config of small images and clips of ``<family>_train`` and ``<family>_val``."""
    base = {
        "DATASETS.TRAIN": f"('{family}_train',)",
        "DATASETS.TEST": f"('{family}_val',)",
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.FORMAT": "RGB",
        "INPUT.IMAGE_SIZE": 32,
        "INPUT.MIN_SIZE_TEST": 24,
        "INPUT.MIN_SIZE_TRAIN": (20, 30),
        "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice_by_clip",
        "INPUT.PSEUDO.MIN_SIZE_TRAIN": (28, 32),
        "MODEL.CLIP.IMAGE_SIZE": 8,
        "MODEL.DEVICE": "cpu",
        "SEED": 5,
    }
    return get_ovformer_cfg(None, [*itertools.chain(*base.items()), *opts])


def clip_config(family: str, *opts: object) -> CfgNode:
    """The same for clips: two in a batch, also of videos without annotations, flipped as one."""
    clips = ("SOLVER.IMS_PER_BATCH", 2, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False)
    return data_config(family, *clips, "INPUT.RANDOM_FLIP", "flip_by_clip", *opts)


def clip_samples(cfg: CfgNode, count: int, start: int = 0) -> list[dict]:
    """The training clips of ``count`` batches."""
    batches = itertools.islice(build_video_train_loader(cfg, start), count)
    return [sample for batch in batches for sample in batch]


def frame_times(frames: list) -> list[int]:
    """The time of each frame of ``mini_videos``, which is its second colour."""
    return [int(np.asarray(frame)[1, 0, 0]) for frame in frames]
