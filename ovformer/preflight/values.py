"""Checks of numbers and names in a config that need no file.

What the model's constructors check is not repeated here: :mod:`ovformer.preflight.model` builds the
model and reports their messages. These are the values that no constructor checks.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ovformer.config import FIXED_KEYS
from ovformer.d2 import CfgNode
from ovformer.data.loading.loaders import TRAIN_MAPPERS
from ovformer.data.loading.training_sets import TRAIN_SAMPLERS, read_dataset_ratios
from ovformer.data.samples.image_mapper import check_image_format
from ovformer.engine.optimizer import OPTIMIZERS, build_gradient_clipper
from ovformer.engine.stages import Stage
from ovformer.engine.trainer import AMP_TYPES
from ovformer.preflight.report import collect_errors

LR_SCHEDULERS = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")
# NumPy takes seeds below 2 ** 32, and each process adds its rank to the config's.
LARGEST_SEED = 2**32 - 2**16


@dataclass(frozen=True)
class Range:
    """Finite numbers from ``low`` to ``high``; ``is_open`` excludes ``low`` itself."""

    low: float
    high: float = math.inf
    is_open: bool = False

    def __contains__(self, value: float) -> bool:
        is_above = value > self.low if self.is_open else value >= self.low
        return is_above and value <= self.high and math.isfinite(value)

    def __str__(self) -> str:
        start = f"above {self.low:g}" if self.is_open else f"at least {self.low:g}"
        return start if self.high == math.inf else f"{start} and at most {self.high:g}"


POSITIVE, SHARE = Range(0, is_open=True), Range(0, 1)
# Config key -> valid numbers: in any run, and in training.
ALWAYS = {
    "DATALOADER.MAX_BROKEN": Range(0),
    "DATALOADER.NUM_WORKERS": Range(0),
    "INPUT.MAX_SIZE_TEST": Range(1),
    "INPUT.MIN_SIZE_TEST": Range(0),
    "MODEL.MASK_FORMER.CLASS_TEMPERATURE": POSITIVE,
    "TEST.DETECTIONS_PER_IMAGE": Range(1),
}
IN_TRAINING = {
    "DATALOADER.REPEAT_THRESHOLD": Range(0),
    "INPUT.SAMPLING_FRAME_NUM": Range(1),
    "INPUT.SAMPLING_FRAME_RANGE": Range(0),
    "MODEL.MASK_FORMER.CLASS_LOSS_SCALE": Range(0),
    "MODEL.MASK_FORMER.CLASS_WEIGHT": Range(0),
    "MODEL.MASK_FORMER.DICE_WEIGHT": Range(0),
    "MODEL.MASK_FORMER.FED_LOSS_NUM_CLASSES": Range(1),
    "MODEL.MASK_FORMER.FED_LOSS_POWER": Range(0),
    "MODEL.MASK_FORMER.MASK_WEIGHT": Range(0),
    "MODEL.MASK_FORMER.NO_OBJECT_OBJECTNESS_WEIGHT": Range(0),
    "MODEL.MASK_FORMER.OBJECT_WEIGHT": Range(0),
    "SEED": Range(-math.inf, LARGEST_SEED),
    "SOLVER.ACCUMULATION_STEPS": Range(1),
    "SOLVER.BACKBONE_MULTIPLIER": Range(0),
    "SOLVER.BASE_LR": POSITIVE,
    "SOLVER.CHECKPOINT_PERIOD": Range(1),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": Range(0),
    "SOLVER.IMS_PER_BATCH": Range(1),
    "SOLVER.MAX_ITER": Range(1),
    "SOLVER.MOMENTUM": SHARE,
    "SOLVER.WARMUP_FACTOR": SHARE,
    "SOLVER.WARMUP_ITERS": Range(0),
    "SOLVER.WEIGHT_DECAY": Range(0),
    "SOLVER.WEIGHT_DECAY_EMBED": Range(0),
    "SOLVER.WEIGHT_DECAY_NORM": Range(0),
    "TEST.EVAL_PERIOD": Range(0),
}
# Config key -> valid names: in any run, and in training.
ALWAYS_ONE_OF = {"FLOAT32_PRECISION": ("", "highest", "high", "medium")}
IN_TRAINING_ONE_OF = {
    "DATALOADER.SAMPLER_TRAIN": TRAIN_SAMPLERS,
    "INPUT.DATASET_MAPPER_NAME": tuple(TRAIN_MAPPERS),
    "SOLVER.AMP.PRECISION": tuple(AMP_TYPES),
    "SOLVER.LR_SCHEDULER_NAME": LR_SCHEDULERS,
    "SOLVER.OPTIMIZER": OPTIMIZERS,
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
}


def find_value_errors(cfg: CfgNode, stage: Stage, eval_only: bool) -> Iterator[str]:
    """Yield errors in single values, and in values that have to fit together."""
    for key, value in FIXED_KEYS.items():
        if lookup(cfg, key) != value:
            yield f"{key}: got {lookup(cfg, key)!r}, only {value!r} is implemented."
    yield from find_range_errors(cfg, ALWAYS)
    yield from _find_choice_errors(cfg, ALWAYS_ONE_OF)
    yield from collect_errors(check_image_format, cfg.INPUT.FORMAT)
    # A size that is itself out of range has its error already.
    if 1 <= cfg.INPUT.MAX_SIZE_TEST < cfg.INPUT.MIN_SIZE_TEST:
        yield (
            f"INPUT.MIN_SIZE_TEST: expected at most INPUT.MAX_SIZE_TEST, {cfg.INPUT.MAX_SIZE_TEST} "
            f"pixels, got {cfg.INPUT.MIN_SIZE_TEST}. It is the length of the short edge, and "
            "INPUT.MAX_SIZE_TEST limits the long edge."
        )
    for key, is_valid, expected in (
        ("PIXEL_MEAN", math.isfinite, "three numbers"),
        ("PIXEL_STD", POSITIVE.__contains__, "three numbers above 0"),
    ):
        if len(cfg.MODEL[key]) != 3 or not all(map(is_valid, cfg.MODEL[key])):
            yield f"MODEL.{key}: expected {expected}, got {list(cfg.MODEL[key])}."
    # An evaluation reads none of these, and must run with the config of any training.
    if not eval_only:
        yield from find_range_errors(cfg, IN_TRAINING)
        yield from _find_choice_errors(cfg, IN_TRAINING_ONE_OF)
        yield from _find_schedule_errors(cfg.SOLVER)
        yield from collect_errors(build_gradient_clipper, cfg)
        yield from collect_errors(read_dataset_ratios, cfg)
        yield from stage.input_errors(cfg)


def find_range_errors(cfg: CfgNode, ranges: Mapping[str, Range]) -> Iterator[str]:
    """Yield an error for each value out of its range."""
    for key, allowed in ranges.items():
        if lookup(cfg, key) not in allowed:
            yield f"{key}: expected {allowed}, got {lookup(cfg, key)}."


def find_value_warnings(cfg: CfgNode) -> Iterator[str]:
    """Yield warnings about values of a training that are allowed, but likely not meant."""
    solver = cfg.SOLVER
    late = [step for step in solver.STEPS if step >= solver.MAX_ITER]
    if late and solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        yield (
            f"SOLVER.STEPS: the learning rate does not fall at {', '.join(map(str, late))} "
            f"because the training ends at SOLVER.MAX_ITER, {solver.MAX_ITER}."
        )
    if solver.WARMUP_ITERS >= solver.MAX_ITER and solver.WARMUP_FACTOR != 1:
        yield (
            f"SOLVER.WARMUP_ITERS: the warm-up takes {solver.WARMUP_ITERS} iterations and the "
            f"training SOLVER.MAX_ITER, {solver.MAX_ITER}: it never reaches SOLVER.BASE_LR."
        )


def find_batch_errors(cfg: CfgNode, processes: int) -> Iterator[str]:
    """Yield why the batch can't be split among a number of processes."""
    total, steps = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS
    # Numbers below 1 have errors of their own, and no remainder.
    if min(total, steps, processes) > 0 and total % (processes * steps):
        yield (
            f"SOLVER.IMS_PER_BATCH: {total} images can't be split evenly into {processes} "
            f"process(es) x {steps} SOLVER.ACCUMULATION_STEPS. Expected a multiple of "
            f"{processes * steps}. SOLVER.REFERENCE_WORLD_SIZE scales a config to another number "
            "of processes."
        )


def lookup(cfg: CfgNode, key: str) -> Any:
    """Return the value of a dotted key, as ``SOLVER.BASE_LR``."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _find_choice_errors(cfg: CfgNode, choices: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    for key, known in choices.items():
        if lookup(cfg, key) not in known:
            yield f"{key}: unknown {lookup(cfg, key)!r}. Known: {', '.join(known)}."


def _find_schedule_errors(solver: CfgNode) -> Iterator[str]:
    """Yield errors in keys that only some optimizers and schedules read."""
    schedule, steps = solver.LR_SCHEDULER_NAME, list(solver.STEPS)
    if schedule != "WarmupCosineLR" and solver.GAMMA not in Range(0, 1, is_open=True):
        yield f"SOLVER.GAMMA: expected above 0 and at most 1, got {solver.GAMMA}."
    if schedule == "WarmupMultiStepLR" and (
        steps != sorted(set(steps)) or any(step < 1 for step in steps)
    ):
        yield f"SOLVER.STEPS: expected iterations from 1 that increase, got {tuple(steps)}."
    if schedule == "WarmupStepWithFixedGammaLR" and solver.NUM_DECAYS < 0:
        yield f"SOLVER.NUM_DECAYS: expected at least 0, got {solver.NUM_DECAYS}."
    if schedule == "WarmupCosineLR" and not 0 <= solver.BASE_LR_END <= solver.BASE_LR:
        yield (
            f"SOLVER.BASE_LR_END: expected 0 to SOLVER.BASE_LR, {solver.BASE_LR}, got "
            f"{solver.BASE_LR_END}."
        )
    if solver.OPTIMIZER == "SGD" and solver.NESTEROV and solver.MOMENTUM == 0:
        yield "SOLVER.NESTEROV: expected SOLVER.MOMENTUM above 0 with it, got 0."
    clip = solver.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_VALUE == 0:
        yield (
            "SOLVER.CLIP_GRADIENTS.CLIP_VALUE: expected above 0, got 0. To train without clipping: "
            "SOLVER.CLIP_GRADIENTS.ENABLED False."
        )
    if not clip.NORM_TYPE > 0:  # it may be infinite
        yield f"SOLVER.CLIP_GRADIENTS.NORM_TYPE: expected above 0, got {clip.NORM_TYPE}."
