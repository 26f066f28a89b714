"""Checks of the model that a config describes, and of the weights that are loaded into it.

The model is built on PyTorch's meta device: with all its parts, but without memory or random
numbers, so that even a large one takes about a second.
"""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from ovformer.d2 import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    CfgNode,
)
from ovformer.engine.checkpoint import Checkpointer, read_weights
from ovformer.engine.resume import DamagedCheckpointError, find_whole_checkpoint
from ovformer.engine.stages import STAGES, Stage
from ovformer.modeling.decoders.query_decoder import TRANSFORMER_DECODER_REGISTRY
from ovformer.modeling.meta_arch.base_model import OVFormerBase, build_without_vocabulary
from ovformer.paths import resolve_path

# What constructors of PyTorch and timm raise for values that do not fit.
_BUILD_ERRORS = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    ZeroDivisionError,
)
# What a resumed training can't change: the weights may fit another value, but the optimizer's state
# and the iterations done would not.
_FIXED = (("MODEL", "META_ARCHITECTURE"), ("SOLVER", "OPTIMIZER"))


def find_name_errors(cfg: CfgNode, stage: Stage) -> Iterator[str]:
    """Yield an error for a model of another script, and for each part whose name is unknown."""
    name, head = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SEM_SEG_HEAD
    for other in STAGES:
        # This script would give it the wrong data. A user's own model may run in any script.
        if other.meta_architecture == name != stage.meta_architecture:
            yield (
                f"MODEL.META_ARCHITECTURE: {other.script} runs {name}; {stage.script} runs "
                f"{stage.meta_architecture}. Use the other script, or a config of "
                f"{stage.meta_architecture}."
            )
    # A user's own model may have any parts, or none of these.
    parts = [
        ("MODEL.META_ARCHITECTURE", name, META_ARCH_REGISTRY),
        ("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY),
    ]
    if is_own_model(cfg):
        decoder = cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME
        parts += [
            ("MODEL.SEM_SEG_HEAD.NAME", head.NAME, SEM_SEG_HEADS_REGISTRY),
            (
                "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME",
                head.PIXEL_DECODER_NAME,
                SEM_SEG_HEADS_REGISTRY,
            ),
            (
                "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME",
                decoder,
                TRANSFORMER_DECODER_REGISTRY,
            ),
        ]
    for key, value, registry in parts:
        if value not in registry:
            known = ", ".join(sorted(known for known, _ in registry))
            yield f"{key}: unknown {value!r}. Known: {known}."


def is_own_model(cfg: CfgNode) -> bool:
    """Return whether the model is one of OVFormer's, not one that the user has registered."""
    name = cfg.MODEL.META_ARCHITECTURE
    return name in META_ARCH_REGISTRY and issubclass(META_ARCH_REGISTRY.get(name), OVFormerBase)


def find_model_errors(cfg: CfgNode, stage: Stage) -> tuple[nn.Module | None, list[str]]:
    """Build the model on the meta device.

    Returns:
        The model of :func:`build_without_memory`, and the errors. The model is None if it can't be
        built, or is one that the user has registered, whose constructor may do anything.
    """
    errors = list(find_name_errors(cfg, stage))
    network = None
    if not errors and is_own_model(cfg):
        try:
            network = build_without_memory(cfg)
        except (OSError, ValueError) as error:
            errors.append(str(error))
    return network, errors


def build_without_memory(cfg: CfgNode) -> nn.Module:
    """Build a model on the meta device, without any file of its vocabulary or training set.

    A model with a constructor that computes can't be built there; it is built on the CPU.

    Raises:
        OSError: a file can't be read.
        ValueError: the values in the config do not fit.
    """
    try:
        return _build(cfg, "meta")
    except (OSError, ValueError) as error:
        # PyTorch has no type for this error, only messages that name the meta device.
        if "meta" not in str(error):
            raise
        return _build(cfg, "cpu")


def _build(cfg: CfgNode, device: str) -> nn.Module:
    try:
        with torch.device(device):
            return build_without_vocabulary(cfg, device)
    except _BUILD_ERRORS as error:
        if isinstance(error, OSError | ValueError) and "MODEL." in str(error):
            raise
        # PyTorch's own messages name no config key.
        raise ValueError(
            f"MODEL: {cfg.MODEL.META_ARCHITECTURE} can't be built from the values of its keys "
            f"({type(error).__name__}: {error}). Compare them with those of a config in configs/."
        ) from error


class DryRun(Checkpointer):
    """Checks whether a checkpoint can be loaded into a model on the meta device; loads nothing.

    Attributes:
        content: what the file holds; its tensors are read when they are used.
    """

    def __init__(self, model: nn.Module, **others: Any) -> None:
        super().__init__(model, **others)
        self.logger = logging.getLogger(f"{__name__}.silent")
        self.logger.disabled = True  # the run itself logs the same again
        self.content: dict[str, Any] = {}

    def _load_file(self, filename: str) -> dict[str, Any]:
        # Mapped, not read: names and shapes are enough, and files may be larger than the memory.
        self.content = read_weights(filename, mmap=True)
        # A copy, because the checkpointer takes entries out of it.
        return dict(self.content)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Check a checkpoint, see :meth:`Checkpointer.load`."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*copying from a non-meta parameter", UserWarning)
            return super().load(path, checkpointables)


def find_weights_path(cfg: CfgNode, resume: bool) -> str:
    """Return the file of the weights that the run starts from, "" for none.

    Raises:
        DamagedCheckpointError: the last checkpoint, from which to resume, is damaged.
    """
    path = find_whole_checkpoint(Path(cfg.OUTPUT_DIR)) if resume else None
    return cfg.MODEL.WEIGHTS if path is None else str(path)


def find_weights_errors(
    cfg: CfgNode,
    model: nn.Module | None,
    resume: bool,
    allow_older: bool = False,
    is_training: bool = False,
) -> Iterator[str]:
    """Yield why a run can't start from its weights.

    Args:
        cfg: the config.
        model: of :func:`build_without_memory`; None if it can't be built: then only the existence
            of the file is checked.
        resume: continue from the last checkpoint of the output folder, if any.
        allow_older: a damaged last checkpoint is no error, because the run takes the one before it.
        is_training: a resumed training must have the same model and optimizer.
    """
    try:
        path = find_weights_path(cfg, resume)
    except DamagedCheckpointError as error:
        if not allow_older:
            yield str(error)
        return
    if not path or "://" in path:
        return  # what has to be fetched can only be checked when the run starts
    if not resolve_path(path).is_file():
        yield (
            f"MODEL.WEIGHTS: {path} not found. tools/convert-thirdparty-pretrained-model-to-d2.py "
            'makes the files of the published backbones; MODEL.WEIGHTS "" starts from random '
            "weights."
        )
        return
    if model is None:
        return
    dry_run = DryRun(model)
    try:
        dry_run.load(path)
        # MODEL.WEIGHTS starts a new training, which may change anything.
        if is_training and path != cfg.MODEL.WEIGHTS:
            yield from _find_change_errors(cfg, path, dry_run.content.get("metadata"))
    except (OSError, ValueError) as error:
        key = "MODEL.WEIGHTS" if path == cfg.MODEL.WEIGHTS else "--resume"
        yield str(error) if "MODEL.WEIGHTS" in str(error) else f"{key}: {error}"


def _find_change_errors(cfg: CfgNode, path: str, metadata: object) -> Iterator[str]:
    """Yield an error for each changed key that a resumed training can't change.

    Args:
        cfg: the config.
        path: the last checkpoint.
        metadata: the checkpoint's own, with the old config; if that is missing, no errors.
    """
    text = metadata.get("config") if isinstance(metadata, dict) else None
    try:
        saved = yaml.safe_load(text) if isinstance(text, str) else None
    except yaml.YAMLError:
        return
    for section, key in _FIXED:
        values, now = saved.get(section) if isinstance(saved, dict) else None, cfg[section][key]
        if isinstance(values, dict) and (value := values.get(key, now)) != now:
            yield (
                f"--resume: {path} is of a training with {section}.{key} {value}, now it is "
                f"{now}. To start a new training from its weights: MODEL.WEIGHTS {path}, another "
                "OUTPUT_DIR, no --resume."
            )
