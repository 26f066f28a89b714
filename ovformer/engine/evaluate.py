"""Evaluation of a model on every test set, each under its own name."""

import logging
import math
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from ovformer.d2 import CfgNode, comm, inference_on_dataset, print_csv_format
from ovformer.engine.broken_inputs import BROKEN, evaluate_without_broken
from ovformer.engine.stages import Stage

logger = logging.getLogger(__name__)


def evaluate(
    cfg: CfgNode, stage: Stage, model: nn.Module, resume: bool = False
) -> OrderedDict[str, dict]:
    """Run a model over all of ``DATASETS.TEST`` and score it. All processes take part.

    Predictions of a data set are in ``OUTPUT_DIR/inference/<data set>/results.json`` before they
    are scored.

    Args:
        cfg: the config.
        stage: gives loaders and metrics.
        model: not wrapped in DistributedDataParallel.
        resume: skip the videos that an interrupted evaluation finished.

    Returns:
        Data set -> task -> metric -> value, in percent, in the order of the config. In other
        processes than the main one, data sets have no scores.
    """
    results = OrderedDict()
    for name in cfg.DATASETS.TEST:
        folder = get_inference_folder(cfg, name)
        evaluator = stage.build_evaluator(name, folder, resume)
        # The evaluator has read what an earlier run finished: the loader need not load these
        # videos.
        skip = {"skip": evaluator.finished} if stage.can_resume else {}
        loader = stage.build_test_loader(cfg, name, **skip)
        if comm.is_main_process():
            (folder / BROKEN).unlink(missing_ok=True)  # of a previous evaluation
        if cfg.DATALOADER.SKIP_BROKEN:
            scores = evaluate_without_broken(model, loader, evaluator, folder)
        else:
            scores = inference_on_dataset(model, loader, evaluator)
        results[name] = scores
        if comm.is_main_process():
            logger.info("Scores of %s, in %s:", name, folder)
            print_csv_format(scores)
    return results


def drop_undefined_scores(results: Mapping[str, Mapping]) -> dict[str, dict]:
    """Return scores without those that are NaN, which metrics.json can't hold."""
    return {
        name: {
            task: {metric: value for metric, value in metrics.items() if not math.isnan(value)}
            for task, metrics in tasks.items()
        }
        for name, tasks in results.items()
    }


def get_inference_folder(cfg: CfgNode, dataset_name: str) -> Path:
    """Return the folder of the predictions for a data set."""
    return Path(cfg.OUTPUT_DIR, "inference", dataset_name)
