"""Values that no constructor checks: each error names the key, the value and what is valid."""

import pytest

from ovformer.config import get_ovformer_cfg
from ovformer.engine.stages import CLIPS, IMAGE
from ovformer.preflight.values import find_batch_errors, find_value_errors, find_value_warnings


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DATALOADER.NUM_WORKERS", -1),
        ("INPUT.MIN_SIZE_TEST", 1334),  # INPUT.MAX_SIZE_TEST is 1333
        ("INPUT.SAMPLING_FRAME_NUM", 0),
        ("INPUT.SAMPLING_FRAME_RANGE", -1),
        ("MODEL.MASK_FORMER.CLASS_TEMPERATURE", 0.0),
        ("MODEL.MASK_FORMER.PRE_NORM", True),  # a fixed key
        ("MODEL.PIXEL_STD", [1.0, 0.0, 1.0]),
        ("SEED", 5000000000),
        ("SOLVER.ACCUMULATION_STEPS", 0),
        ("SOLVER.BASE_LR", 0.0),
        ("SOLVER.BASE_LR", float("inf")),
        ("SOLVER.CHECKPOINT_PERIOD", 0),
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", -1.0),
        ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", 0.0),
        ("SOLVER.GAMMA", 0.0),
        ("SOLVER.MAX_ITER", 0),
        ("SOLVER.MOMENTUM", 1.5),
        ("SOLVER.STEPS", (3, 2)),
        ("SOLVER.WEIGHT_DECAY", float("nan")),
        ("TEST.EVAL_PERIOD", -1),
    ],
)
def test_number(key: str, value: object) -> None:
    (error,) = find_value_errors(get_ovformer_cfg(None, [key, value]), CLIPS, eval_only=False)
    assert error.startswith(f"{key}: ") and f"got {value}" in error


@pytest.mark.parametrize(
    ("key", "value", "known"),
    [
        ("DATALOADER.SAMPLER_TRAIN", "Random", "TrainingSampler"),
        ("FLOAT32_PRECISION", "half", "high, medium"),
        ("INPUT.DATASET_MAPPER_NAME", "lsj", "coco_instance_lsj"),
        ("INPUT.FORMAT", "GBR", "RGB, BGR"),
        ("INPUT.RANDOM_FLIP", "left", "horizontal"),
        ("SOLVER.AMP.PRECISION", "fp16", "float16, bfloat16"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "all", "full_model, norm"),
        ("SOLVER.LR_SCHEDULER_NAME", "Cosine", "WarmupCosineLR"),
        ("SOLVER.OPTIMIZER", "ADAM", "ADAMW, SGD"),
        ("SOLVER.WARMUP_METHOD", "burn", "linear"),
    ],
)
def test_name(key: str, value: str, known: str) -> None:
    (error,) = find_value_errors(get_ovformer_cfg(None, [key, value]), IMAGE, eval_only=False)
    assert error.startswith(f"{key}: ") and repr(value) in error and known in error


@pytest.mark.parametrize(
    ("key", "value", "opts", "next_step"),
    [
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0, ["SOLVER.CLIP_GRADIENTS.ENABLED", True], "False"),
        ("SOLVER.NUM_DECAYS", -1, ["SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR"], ""),
        ("SOLVER.BASE_LR_END", 1.0, ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"], "BASE_LR"),
        ("SOLVER.MOMENTUM", 0, ["SOLVER.OPTIMIZER", "SGD", "SOLVER.NESTEROV", True], "above 0"),
    ],
)
def test_keys_that_some_schedules_read(key: str, value: object, opts: list, next_step: str) -> None:
    assert not list(find_value_errors(get_ovformer_cfg(None, [key, value]), IMAGE, eval_only=True))
    (error,) = find_value_errors(
        get_ovformer_cfg(None, [key, value, *opts]), IMAGE, eval_only=False
    )
    assert key in error and f"got {value}" in error and next_step in error


def test_a_batch_that_cannot_be_split() -> None:
    cfg = get_ovformer_cfg(None, ["SOLVER.IMS_PER_BATCH", 6, "SOLVER.ACCUMULATION_STEPS", 2])
    assert not list(find_batch_errors(cfg, 3))
    (error,) = find_batch_errors(cfg, 2)
    assert error.startswith("SOLVER.IMS_PER_BATCH: 6") and "multiple of 4" in error


def test_a_warm_up_that_never_ends() -> None:
    opts = ["SOLVER.MAX_ITER", 100, "SOLVER.STEPS", (50,), "SOLVER.WARMUP_ITERS", 100]
    (warning,) = find_value_warnings(get_ovformer_cfg(None, opts))
    assert warning.startswith("SOLVER.WARMUP_ITERS: ")
