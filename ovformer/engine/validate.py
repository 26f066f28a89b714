"""Checks of a config before any long work. All that is wrong is reported at once."""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ovformer.config import FIXED_KEYS
from ovformer.d2 import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    CfgNode,
    MetadataCatalog,
    Registry,
    build_backbone,
)
from ovformer.data.clip_features import ClipFeatureStore
from ovformer.data.dataset_spec import check_class_count, check_dataset_name
from ovformer.data.image_mapper import IMAGE_FORMATS
from ovformer.data.loaders import TRAIN_MAPPERS
from ovformer.data.training_sets import TRAIN_SAMPLERS, dataset_ratios
from ovformer.engine.launch import is_torchrun, world_size
from ovformer.engine.optimizer import CLIP_TYPES, OPTIMIZERS
from ovformer.engine.stages import STAGES, Stage
from ovformer.engine.trainer import AMP_TYPES
from ovformer.modeling.clip_encoder import ClipEncoder
from ovformer.modeling.execution import Execution
from ovformer.modeling.federated_loss import freq_weight_from_config
from ovformer.modeling.meta_arch_base import OVFormerBase
from ovformer.modeling.query_decoder import TRANSFORMER_DECODER_REGISTRY
from ovformer.modeling.text_classifier import load_text_classifier
from ovformer.paths import resolve_path

LR_SCHEDULERS = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")

# Config keys of names, with what is known.
_CHOICES = {
    "SOLVER.OPTIMIZER": OPTIMIZERS,
    "SOLVER.LR_SCHEDULER_NAME": LR_SCHEDULERS,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": CLIP_TYPES,
    "SOLVER.AMP.PRECISION": tuple(AMP_TYPES),
    "INPUT.FORMAT": IMAGE_FORMATS,
    "INPUT.DATASET_MAPPER_NAME": tuple(TRAIN_MAPPERS),
    "DATALOADER.SAMPLER_TRAIN": TRAIN_SAMPLERS,
}
# Smallest values; those of "INPUT." and "SOLVER." count in training only.
_AT_LEAST = {
    "DATALOADER.MAX_BROKEN": 0,
    "INPUT.SAMPLING_FRAME_NUM": 1,
    "INPUT.SAMPLING_FRAME_RANGE": 0,
    "MODEL.MASK_FORMER.TEST.CLIP_LENGTH": 1,
    "MODEL.MASK_FORMER.TEST.CLIP_OVERLAP": 0,
    "MODEL.MASK_FORMER.TEST.WINDOW_SIZE": 0,
    "SOLVER.ACCUMULATION_STEPS": 1,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.MAX_ITER": 1,
    "TEST.DETECTIONS_PER_IMAGE": 1,
}


class ConfigError(ValueError):
    """Something in a config is wrong; the message lists everything that is."""


def validate_config(cfg: CfgNode, stage: Stage, args: argparse.Namespace) -> None:
    """Check a config against this machine, the files on it, and itself.

    Args:
        cfg: the config, scaled to the number of processes.
        stage: what is to be trained or evaluated.
        args: the command line; ``eval_only``, ``resume``, ``num_gpus`` and ``num_machines`` count.

    Raises:
        ConfigError: something is wrong.
    """
    processes = world_size(args.num_gpus, args.num_machines)
    errors = [
        *_processes(cfg, args),
        *_fixed_keys(cfg),
        *_ranges(cfg, args.eval_only),
        *_output_folder(cfg),
        *_weights(cfg, args.resume),
        *_data_sets(cfg, stage, args.eval_only),
        *_classifier(cfg),
        *_model(cfg, stage),
        *_stored_features(cfg, args.eval_only),
    ]
    if not args.eval_only:
        errors += [*_training(cfg, stage), *_batch(cfg, processes)]
    # These take seconds or minutes; under torchrun one process is enough.
    if not errors and int(os.environ.get("RANK", 0)) == 0:
        errors += [*_clip_model(cfg, args.eval_only), *_test_sets(cfg, stage, args.eval_only)]
    if errors:
        raise ConfigError("\n  ".join([f"{len(errors)} thing(s) to mend:", *errors]))


def _processes(cfg: CfgNode, args: argparse.Namespace) -> Iterator[str]:
    device, wanted, found = cfg.MODEL.DEVICE, args.num_gpus, torch.cuda.device_count()
    option = f"--num-gpus {wanted}"
    if is_torchrun():
        if wanted != 1:
            yield f"{option}: torchrun starts the processes; say --nproc-per-node {wanted} instead."
        wanted = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        option = f"--nproc-per-node {wanted}"
    elif wanted < 1 or args.num_machines < 1:
        yield f"{option} --num-machines {args.num_machines}: expected at least 1 of each."
        return
    on_cpu = "Without GPUs: MODEL.DEVICE cpu, also with several processes."
    if device.startswith("cuda"):
        if found == 0 and wanted == 1:
            yield f"MODEL.DEVICE: {device}, but no GPU found (torch {torch.__version__}). {on_cpu}"
        elif wanted > found:
            yield (
                f"{option}, but {found} found (CUDA_VISIBLE_DEVICES="
                f"{os.environ.get('CUDA_VISIBLE_DEVICES', '')!r}). {on_cpu}"
            )


def _fixed_keys(cfg: CfgNode) -> Iterator[str]:
    for key, value in FIXED_KEYS.items():
        if _lookup(cfg, key) != value:
            yield f"{key}: got {_lookup(cfg, key)!r}, only {value!r} is implemented."


def _ranges(cfg: CfgNode, eval_only: bool) -> Iterator[str]:
    for key, least in _AT_LEAST.items():
        is_of_training = key.startswith(("INPUT.", "SOLVER."))
        if _lookup(cfg, key) < least and not (eval_only and is_of_training):
            yield f"{key}: expected at least {least}, got {_lookup(cfg, key)}."
    test = cfg.MODEL.MASK_FORMER.TEST
    if test.CLIP_OVERLAP >= test.CLIP_LENGTH >= 1:
        yield (
            "MODEL.MASK_FORMER.TEST.CLIP_OVERLAP: expected less than CLIP_LENGTH, "
            f"{test.CLIP_LENGTH}, got {test.CLIP_OVERLAP}."
        )


def _training(cfg: CfgNode, stage: Stage) -> Iterator[str]:
    for key, known in _CHOICES.items():
        if _lookup(cfg, key) not in known:
            yield f"{key}: unknown {_lookup(cfg, key)!r}. Known: {', '.join(known)}."
    yield from _caught(dataset_ratios, cfg)
    yield from stage.input_errors(cfg)


def _batch(cfg: CfgNode, processes: int) -> Iterator[str]:
    total, steps = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS
    if min(total, steps, processes) > 0 and total % (processes * steps):
        yield (
            f"SOLVER.IMS_PER_BATCH: {total} images can't be split evenly into {processes} "
            f"process(es) x {steps} SOLVER.ACCUMULATION_STEPS. Expected a multiple of "
            f"{processes * steps}. SOLVER.REFERENCE_WORLD_SIZE scales a config to another number "
            "of processes."
        )


def _output_folder(cfg: CfgNode) -> Iterator[str]:
    try:
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cfg.OUTPUT_DIR):
            pass
    except OSError as error:
        yield f"OUTPUT_DIR: can't write to {cfg.OUTPUT_DIR!r} ({error}). Name another folder."


def _weights(cfg: CfgNode, resume: bool) -> Iterator[str]:
    path = cfg.MODEL.WEIGHTS
    if resume and Path(cfg.OUTPUT_DIR, "last_checkpoint").is_file():
        return
    if path and "://" not in path and not resolve_path(path).is_file():
        yield (
            f"MODEL.WEIGHTS: {path} not found. tools/convert-thirdparty-pretrained-model-to-d2.py "
            'makes the published backbones\' files; MODEL.WEIGHTS "" starts from random weights.'
        )


def _data_sets(cfg: CfgNode, stage: Stage, eval_only: bool) -> Iterator[str]:
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if not eval_only and not cfg.DATASETS.TRAIN:
        yield "DATASETS.TRAIN is empty: name at least one data set."
    if eval_only and not cfg.DATASETS.TEST:
        yield "DATASETS.TEST is empty, so --eval-only has nothing to do."
    for key, names in (
        ("DATASETS.TRAIN", () if eval_only else cfg.DATASETS.TRAIN),
        ("DATASETS.TEST", cfg.DATASETS.TEST),
    ):
        for name in names:
            if key == "DATASETS.TRAIN" and name != names[0]:  # gets the first one's classes
                errors = list(_caught(check_dataset_name, name, key))
            else:
                errors = list(_caught(check_class_count, [name], num_classes, key))
            yield from errors
            if errors:
                continue
            path = MetadataCatalog.get(name).get("json_file")
            if path and not Path(path).is_file():
                yield f"{key}: annotations {path} of {name!r} not found. See datasets/README.md."
            elif key == "DATASETS.TRAIN" and name == names[0]:
                yield from _caught(freq_weight_from_config, cfg, num_classes)
            if key == "DATASETS.TEST":
                yield from _caught(stage.evaluator_type, name)


def _classifier(cfg: CfgNode) -> Iterator[str]:
    key, path = "MODEL.MASK_FORMER.CLIP_TEXT_PATH", cfg.MODEL.MASK_FORMER.CLIP_TEXT_PATH
    if not path:
        yield f"{key} is empty: tools/build_text_classifier.py makes a text classifier."
        return
    try:
        classifier = load_text_classifier(resolve_path(path))
    except (OSError, ValueError) as error:
        yield f"{key}: {error}"
        return
    num_classes, width = classifier.weights.shape
    for other, wanted, got, what in (
        (
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
            cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            num_classes,
            "classes",
        ),
        ("MODEL.CLIP.EMBED_DIM", cfg.MODEL.CLIP.EMBED_DIM, width, "numbers per class"),
    ):
        if wanted != got:
            yield f"{key}: {path} has {got} {what}, but {other} is {wanted}."


def _model(cfg: CfgNode, stage: Stage) -> Iterator[str]:
    name = cfg.MODEL.META_ARCHITECTURE
    errors = list(_registered("MODEL.META_ARCHITECTURE", name, META_ARCH_REGISTRY))
    yield from _script(name, stage)
    if not errors and issubclass(META_ARCH_REGISTRY.get(name), OVFormerBase):
        head, mask_former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
        for key, value, registry in (
            ("SEM_SEG_HEAD.NAME", head.NAME, SEM_SEG_HEADS_REGISTRY),
            ("SEM_SEG_HEAD.PIXEL_DECODER_NAME", head.PIXEL_DECODER_NAME, SEM_SEG_HEADS_REGISTRY),
            (
                "MASK_FORMER.TRANSFORMER_DECODER_NAME",
                mask_former.TRANSFORMER_DECODER_NAME,
                TRANSFORMER_DECODER_REGISTRY,
            ),
        ):
            errors += _registered(f"MODEL.{key}", value, registry)
        yield from errors or _caught(META_ARCH_REGISTRY.get(name).check_decoder, cfg)
        yield from _caught(Execution.from_config, cfg)
    else:
        yield from errors
    backbone_errors = list(
        _registered("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY)
    )
    yield from backbone_errors or _backbone(cfg)


def _script(meta_architecture: str, stage: Stage) -> Iterator[str]:
    """A model that is another script's own would get the wrong data; a user's own model may run."""
    for other in STAGES:
        if other.meta_architecture == meta_architecture != stage.meta_architecture:
            yield (
                f"MODEL.META_ARCHITECTURE: {other.script} runs {meta_architecture}; "
                f"{stage.script} runs {stage.meta_architecture}. Use the other script, or a config "
                f"of {stage.meta_architecture}."
            )


def _backbone(cfg: CfgNode) -> Iterator[str]:
    """Build the backbone, which takes a second, and look for the features that the head wants."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.TIMM.PRETRAINED = False
    try:
        features = build_backbone(cfg).output_shape()
    except (ValueError, OSError) as error:
        yield str(error)
        return
    for key in ("IN_FEATURES", "DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES"):
        missing = [name for name in cfg.MODEL.SEM_SEG_HEAD[key] if name not in features]
        if missing:
            yield (
                f"MODEL.SEM_SEG_HEAD.{key}: {', '.join(missing)} not among the features of "
                f"{cfg.MODEL.BACKBONE.NAME}: {', '.join(features)}."
            )


def _stored_features(cfg: CfgNode, eval_only: bool) -> Iterator[str]:
    for key in _feature_keys(eval_only):
        if path := cfg.MODEL.MASK_FORMER[key]:
            try:
                width = ClipFeatureStore.open(path).dim
            except (OSError, ValueError) as error:
                yield f"MODEL.MASK_FORMER.{key}: {error}"
            else:
                yield from _clip_width(cfg, width, f"{path} (MODEL.MASK_FORMER.{key})")


def _clip_model(cfg: CfgNode, eval_only: bool) -> Iterator[str]:
    """Load the CLIP model if features are not stored; that may mean a download."""
    if all(cfg.MODEL.MASK_FORMER[key] for key in _feature_keys(eval_only)):
        return
    clip = cfg.MODEL.CLIP
    try:
        encoder = ClipEncoder.from_pretrained(clip.NAME, clip.PRETRAINED)
    except (OSError, ValueError) as error:
        yield str(error)
        return
    yield from _clip_width(cfg, encoder.embed_dim, f"{clip.NAME} (MODEL.CLIP.NAME)")
    if encoder.image_size != clip.IMAGE_SIZE:
        yield (
            f"MODEL.CLIP.IMAGE_SIZE is {clip.IMAGE_SIZE}, but {clip.NAME} takes images of "
            f"{encoder.image_size} pixels."
        )


def _feature_keys(eval_only: bool) -> list[str]:
    return ["CLIP_IMAGE_PATH"] if eval_only else ["CLIP_IMAGE_PATH_TRAIN", "CLIP_IMAGE_PATH"]


def _clip_width(cfg: CfgNode, width: int, source: str) -> Iterator[str]:
    if width != cfg.MODEL.CLIP.EMBED_DIM:
        yield f"MODEL.CLIP.EMBED_DIM is {cfg.MODEL.CLIP.EMBED_DIM}, but {source} has width {width}."


def _test_sets(cfg: CfgNode, stage: Stage, eval_only: bool) -> Iterator[str]:
    """Read the test sets, whose faults would else be found at the end of the training."""
    first = 1 if eval_only else 0  # an evaluation reads the first one right away
    for name in cfg.DATASETS.TEST[first:]:
        yield from _caught(stage.build_test_loader, cfg, name)


def _registered(key: str, name: str, registry: Registry) -> Iterator[str]:
    if name not in registry:
        known = ", ".join(sorted(known for known, _ in registry))
        yield f"{key}: unknown {name!r}. Known: {known}."


def _caught(function: Callable[..., Any], *args: Any) -> Iterator[str]:
    """Call a function and yield the message of what it raises."""
    try:
        function(*args)
    except KeyError as error:
        yield str(error.args[0])
    except (OSError, ValueError) as error:
        yield str(error)


def _lookup(cfg: CfgNode, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg
