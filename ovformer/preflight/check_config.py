"""Reads a config and checks it before any long work; all errors are reported at once.

:func:`read_checked_config` is the entry for training scripts. tools/check_setup.py uses the steps.

The quick checks take one and a half seconds of a CPU core for the published models, most of it for
building the model on the meta device. Two checks take longer and run only where all others pass:
the CLIP model is loaded where image features are not stored, which may download it; and the test
sets are read, as the evaluation after the training will read them.
"""

import argparse
import logging
import os

from ovformer.config import read_config
from ovformer.d2 import CfgNode
from ovformer.data.catalog.custom import register_custom
from ovformer.engine.launch import count_processes
from ovformer.engine.optimizer import scale_to_world_size
from ovformer.engine.stages import Stage
from ovformer.preflight import data, machine, model, values, vocabulary
from ovformer.preflight.report import ConfigFaults, collect_errors

logger = logging.getLogger(__name__)


def read_checked_config(stage: Stage, args: argparse.Namespace) -> CfgNode:
    """Return the config of a command line, after checking everything that can be known.

    Args:
        stage: what is to be trained or evaluated.
        args: the command line of a training script.

    Returns:
        The config as given, not scaled to the number of processes.

    Raises:
        FileNotFoundError: there is no such config file.
        ValueError: it can't be read at all.
        ConfigError: something is wrong; the message lists all errors.
    """
    cfg, faults = find_faults(stage, args)
    # Of the processes that torchrun started, one warns and does the slow checks.
    if int(os.environ.get("RANK", 0)) == 0:
        for warning in faults.warnings:
            logger.warning("Likely not meant: %s", warning)
        if not faults.errors:
            faults.errors = find_slow_errors(cfg, stage, args.eval_only)
    faults.raise_errors()
    return cfg


def find_faults(stage: Stage, args: argparse.Namespace) -> tuple[CfgNode, ConfigFaults]:
    """Read the config of a command line and do all quick checks.

    Args:
        stage: what is to be trained or evaluated.
        args: the command line of a training script.

    Returns:
        The config without its invalid keys and values, not scaled; and everything that was found.

    Raises:
        FileNotFoundError: there is no such config file.
        ValueError: it can't be read at all.
    """
    # Keys and values that can't be read are left out, so that the rest is checked as well.
    cfg, read_errors = read_config(args.config_file, args.opts)
    errors = [str(error) for error in read_errors]
    # Before the checks of data sets, which look names up in the catalog.
    for message in collect_errors(register_custom, cfg.DATASETS.CUSTOM):
        errors += message.splitlines()
    # The checks see the numbers that the run will use, such as the batch of each process.
    processes, scaled = count_processes(args.num_gpus, args.num_machines), cfg
    if processes > 0:
        try:
            scaled = scale_to_world_size(cfg, processes)
        except ValueError as error:
            errors.append(str(error))
    faults = find_config_faults(scaled, stage, args)
    faults.errors = errors + faults.errors
    return cfg, faults


def find_config_faults(cfg: CfgNode, stage: Stage, args: argparse.Namespace) -> ConfigFaults:
    """Do the quick checks of a config against this machine, the files on it, and itself.

    Args:
        cfg: the config, scaled to the number of processes.
        stage: what is to be trained or evaluated.
        args: the command line; uses ``eval_only``, ``resume``, ``num_gpus``, ``num_machines`` and,
            where the script has it, ``allow_older``.
    """
    eval_only, resume = args.eval_only, args.resume
    output_errors = list(machine.find_output_errors(cfg))
    faults = ConfigFaults(
        [
            *machine.find_process_errors(cfg, args),
            *values.find_value_errors(cfg, stage, eval_only),
            *output_errors,
            *data.find_data_errors(cfg, stage, eval_only),
            *vocabulary.find_classifier_errors(cfg, eval_only),
            *vocabulary.find_feature_errors(cfg, eval_only),
            *vocabulary.find_clip_name_errors(cfg, eval_only),
        ],
        list(vocabulary.find_classifier_warnings(cfg, eval_only)),
    )
    # The model takes most of the time, and is built once for all checks that need it.
    network, errors = model.find_model_errors(cfg, stage)
    faults.errors += errors
    faults.errors += model.find_weights_errors(
        cfg, network, resume, getattr(args, "allow_older", False), is_training=not eval_only
    )
    if not eval_only:
        processes = count_processes(args.num_gpus, args.num_machines)
        faults.errors += values.find_batch_errors(cfg, processes)
        faults.warnings += values.find_value_warnings(cfg)
        faults.warnings += machine.find_output_warnings(cfg, resume)
        # Where the folder can't be written to, free space on its disk means nothing.
        if network is not None and not output_errors:
            size = machine.estimate_checkpoint_bytes(network, cfg.SOLVER.OPTIMIZER)
            faults.errors += machine.find_disk_errors(cfg, size)
            faults.warnings += machine.find_disk_warnings(cfg, size, resume)
    return faults


def find_slow_errors(
    cfg: CfgNode, stage: Stage, eval_only: bool, load_clip: bool = True
) -> list[str]:
    """Return the errors that take long to find.

    Args:
        cfg: the config.
        stage: what is to be trained or evaluated.
        eval_only: skip the first test set, because an evaluation reads it right away.
        load_clip: load the CLIP model where image features are not stored; may download it.
    """
    errors = list(vocabulary.find_clip_model_errors(cfg, eval_only)) if load_clip else []
    return errors + list(data.find_reading_errors(cfg, stage, eval_only))
