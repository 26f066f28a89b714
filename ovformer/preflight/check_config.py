"""Checks of a config before any long work. All that is wrong is reported at once.

What each check looks at is in :mod:`ovformer.preflight`. For the published models they take one
and a half seconds of a CPU core, most of it for building the model without memory. Two take longer
and are left for when all else is right: the CLIP model is loaded, if image features are not stored,
and that may be a download; and the test sets are read, as the evaluation after the training will.
"""

import argparse
import logging
import os

from ovformer.config import read_config
from ovformer.d2 import CfgNode
from ovformer.data.catalog.custom import register_custom
from ovformer.engine.launch import world_size
from ovformer.engine.optimizer import scale_to_world_size
from ovformer.engine.stages import Stage
from ovformer.preflight import data, machine, model, values, vocabulary
from ovformer.preflight.report import ConfigError, Findings, caught

__all__ = ["ConfigError", "checked_config", "validate_config"]

logger = logging.getLogger(__name__)


def checked_config(stage: Stage, args: argparse.Namespace) -> CfgNode:
    """Return the config of a command line, after checking everything that can be known.

    Args:
        stage: what is to be trained or evaluated.
        args: the command line of a training script.

    Returns:
        The config as it was given, which is not scaled to the number of processes.

    Raises:
        FileNotFoundError: there is no such config file.
        ValueError: it can't be read at all.
        ConfigError: something is wrong; of all that is, one message.
    """
    cfg, found = read_and_check(stage, args)
    _finish(cfg, stage, args, found)
    return cfg


def validate_config(cfg: CfgNode, stage: Stage, args: argparse.Namespace) -> None:
    """Check a config against this machine, the files on it, and itself.

    Args:
        cfg: the config, scaled to the number of processes.
        stage: what is to be trained or evaluated.
        args: the command line; ``eval_only``, ``resume``, ``allow_older`` where there is such an
            option, ``num_gpus`` and ``num_machines`` count.

    Raises:
        ConfigError: something is wrong.
    """
    _finish(cfg, stage, args, quick_faults(cfg, stage, args))


def read_and_check(stage: Stage, args: argparse.Namespace) -> tuple[CfgNode, Findings]:
    """Read the config of a command line and look for faults in it, but for those that take long.

    Args:
        stage: what is to be trained or evaluated.
        args: the command line of a training script.

    Returns:
        The config without what is wrong in it by itself, not scaled; and all that was found.

    Raises:
        FileNotFoundError: there is no such config file.
        ValueError: it can't be read at all.
    """
    cfg, unread = read_config(args.config_file, args.opts)
    custom = "\n".join(caught(register_custom, cfg.DATASETS.CUSTOM))
    errors = [*map(str, unread), *custom.splitlines()]
    processes, scaled = world_size(args.num_gpus, args.num_machines), cfg
    if processes > 0:
        try:
            scaled = scale_to_world_size(cfg, processes)
        except ValueError as error:
            errors.append(str(error))
    found = quick_faults(scaled, stage, args)
    found.errors = errors + found.errors
    return cfg, found


def quick_faults(cfg: CfgNode, stage: Stage, args: argparse.Namespace) -> Findings:
    """Look for faults as :func:`validate_config` does, but for those that take long.

    Args:
        cfg: the config, scaled to the number of processes.
        stage: what is to be trained or evaluated.
        args: see :func:`validate_config`.
    """
    eval_only, resume = args.eval_only, args.resume
    found = Findings(
        [
            *machine.process_errors(cfg, args),
            *values.value_errors(cfg, stage, eval_only),
            *(no_folder := list(machine.output_errors(cfg))),
            *data.data_errors(cfg, stage, eval_only),
            *vocabulary.classifier_errors(cfg, eval_only),
            *vocabulary.feature_errors(cfg, eval_only),
            *vocabulary.clip_name_errors(cfg, eval_only),
        ],
        list(vocabulary.classifier_warnings(cfg, eval_only)),
    )
    network, errors = model.model_errors(cfg, stage)
    allow_older = getattr(args, "allow_older", False)
    wrong_weights = model.weights_errors(cfg, network, resume, allow_older, not eval_only)
    found.errors += [*errors, *wrong_weights]
    if not eval_only:
        processes = world_size(args.num_gpus, args.num_machines)
        found.errors += values.batch_errors(cfg, processes)
        found.warnings += values.value_warnings(cfg)
        found.warnings += machine.output_warnings(cfg, resume)
        if network is not None and not no_folder:
            size = machine.checkpoint_bytes(network, cfg.SOLVER.OPTIMIZER)
            found.errors += machine.disk_errors(cfg, size)
            found.warnings += machine.disk_warnings(cfg, size, resume)
    return found


def slow_faults(cfg: CfgNode, stage: Stage, eval_only: bool, load_clip: bool = True) -> list[str]:
    """Look for the faults that take long to find.

    Args:
        cfg: the config.
        stage: what is to be trained or evaluated.
        eval_only: an evaluation, which reads its first test set right away, so it is left out here.
        load_clip: load the CLIP model, if image features are not stored; it may be downloaded.
    """
    errors = list(vocabulary.clip_model_errors(cfg, eval_only)) if load_clip else []
    return errors + list(data.reading_errors(cfg, stage, eval_only))


def _finish(cfg: CfgNode, stage: Stage, args: argparse.Namespace, found: Findings) -> None:
    """Tell what was found; if that is nothing bad, look for what takes long, in one process."""
    if int(os.environ.get("RANK", 0)) == 0:
        for warning in found.warnings:
            logger.warning("Likely not meant: %s", warning)
        if not found.errors:
            found.errors = slow_faults(cfg, stage, args.eval_only)
    found.raise_errors()
