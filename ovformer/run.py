"""What a training script does, from the command line to the last log line."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ovformer import __version__
from ovformer.arguments import exit_on_user_error
from ovformer.d2 import (
    BACKEND,
    CfgNode,
    MetadataCatalog,
    build_lr_scheduler,
    build_model,
    collect_env_info,
    comm,
    default_argument_parser,
    hooks,
    seed_all_rng,
    setup_logger,
)
from ovformer.data.catalog.custom import register_custom
from ovformer.engine.checkpoint import Checkpointer, collect_metadata
from ovformer.engine.evaluate import drop_undefined_scores, evaluate
from ovformer.engine.hooks import CpuMemory, Evaluation, PeriodicCheckpoint
from ovformer.engine.interruption import Interrupted, Interruption, StopWhenInterrupted
from ovformer.engine.launch import launch
from ovformer.engine.metrics import MetricsWriter
from ovformer.engine.optimizer import build_gradient_clipper, build_optimizer, scale_to_world_size
from ovformer.engine.resume import resume_or_load
from ovformer.engine.run_record import record_run
from ovformer.engine.stages import Stage
from ovformer.engine.trainer import AMP_TYPES, Trainer
from ovformer.engine.write_errors import explain_write_errors
from ovformer.files import write_text
from ovformer.preflight.check_config import read_checked_config

# Iterations between two lines on the console and in metrics.json.
WRITE_PERIOD = 20

logger = logging.getLogger(__name__)


def main(stage: Stage, argv: Sequence[str] | None = None) -> None:
    """Run a training script: check everything, start the processes, train or evaluate.

    Args:
        stage: what the script trains.
        argv: command line without the script's name; by default that of this process.
    """
    parser = default_argument_parser()
    parser.add_argument(
        "--allow-older",
        action="store_true",
        help="with --resume: if the last checkpoint is damaged, continue from the one before it",
    )
    args = parser.parse_args(argv)
    args.command = [stage.script, *(sys.argv[1:] if argv is None else argv)]
    if not args.config_file:
        parser.error("--config-file is missing; the repository's are under configs/")
    if args.allow_older and (args.eval_only or not args.resume):
        parser.error(
            "--allow-older needs --resume, and is for training; to evaluate an older checkpoint, "
            "name it in MODEL.WEIGHTS"
        )
    # Only here is an error the user's: one that comes later has its traceback in the log.
    with exit_on_user_error(parser):
        cfg = read_checked_config(stage, args)
    launch(
        run,
        (cfg, stage, args),
        device=cfg.MODEL.DEVICE,
        num_gpus=args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
    )


def run(cfg: CfgNode, stage: Stage, args: argparse.Namespace) -> None:
    """Train or evaluate, in one of the processes of the run.

    Args:
        cfg: the config as given, not scaled to the number of processes.
        stage: what is trained.
        args: the command line.

    Raises:
        Interrupted: a signal ended the run.
        WriteError: the disk is full, or a file or folder can't be written to.
    """
    start_logging(cfg, args)
    with explain_write_errors(cfg.OUTPUT_DIR), Interruption() as interruption:
        try:
            train_or_evaluate(cfg, stage, args, interruption)
        except Interrupted as interrupted:
            logger.info("%s To continue: the same command with --resume.", interrupted.message)
            raise


def train_or_evaluate(
    cfg: CfgNode, stage: Stage, args: argparse.Namespace, interruption: Interruption
) -> None:
    """Do the work of :func:`run`, once the log is open and signals are handled."""
    # The checks registered them in the first process only; a spawned one starts without.
    register_custom(cfg.DATASETS.CUSTOM)
    cfg = scale_to_world_size(cfg, comm.get_world_size())
    seed = choose_seed(cfg)
    # Each process has its own: with one seed all would draw the same numbers for other images.
    seed_all_rng(seed + comm.get_rank())
    set_deterministic(cfg.SOLVER.DETERMINISTIC)
    # Timing kernels pays off only where image sizes repeat, and may choose another one each time.
    benchmark = cfg.CUDNN_BENCHMARK and not args.eval_only and not cfg.SOLVER.DETERMINISTIC
    torch.backends.cudnn.benchmark = benchmark
    if cfg.get("FLOAT32_PRECISION"):
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
    config_file = Path(cfg.OUTPUT_DIR, "config.yaml")
    # An evaluation keeps the config of the training whose checkpoints are in the same folder.
    if comm.is_main_process() and not (args.eval_only and config_file.exists()):
        write_text(config_file, cfg.dump())
    with record_run(cfg, args, seed):
        if args.eval_only:
            evaluate_only(remove_training_set(cfg), stage, args)
        else:
            model = build_logged_model(cfg)
            trainer = build_trainer(cfg, stage, model, seed, interruption)
            trainer.resume_or_load(cfg.MODEL.WEIGHTS, args.resume, args.allow_older)
            trainer.train()


def evaluate_only(cfg: CfgNode, stage: Stage, args: argparse.Namespace) -> None:
    """Evaluate the weights of ``MODEL.WEIGHTS``, or with ``--resume`` the last checkpoint."""
    model = build_logged_model(cfg)
    checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, class_names=class_names(cfg, model))
    resume_or_load(checkpointer, cfg.MODEL.WEIGHTS, args.resume)
    if not checkpointer.has_loaded_all:
        logger.warning(
            "The model has random weights, at least outside the backbone. Name a checkpoint: "
            "MODEL.WEIGHTS (now %r), or --resume for the last one in OUTPUT_DIR.",
            cfg.MODEL.WEIGHTS,
        )
    evaluate(cfg, stage, model, resume=args.resume)


def build_logged_model(cfg: CfgNode) -> nn.Module:
    """Build the model of a config and write its modules to the log."""
    model = build_model(cfg)
    logger.info("Model:\n%s", model)
    return model


def remove_training_set(cfg: CfgNode) -> CfgNode:
    """Return a copy for evaluation, whose model is built without any file of the training set."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN = ()
    cfg.MODEL.MASK_FORMER.CAT_INFO_PATH = ""
    cfg.freeze()
    return cfg


def start_logging(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Log to the console and ``OUTPUT_DIR/log.txt``; the first lines describe the run."""
    for name in ("ovformer", "detectron2", "fvcore"):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)
    logger.info(
        "OVFormer %s; detectron2's names come from: %s; Python %s, torch %s, %s; process %d of %d",
        __version__,
        BACKEND,
        sys.version.split()[0],
        torch.__version__,
        cfg.MODEL.DEVICE,
        comm.get_rank(),
        comm.get_world_size(),
    )
    logger.info("Environment:\n%s", collect_env_info())
    logger.info("Command line: %s", args)
    logger.info("Config:\n%s", cfg.dump())


def set_deterministic(is_deterministic: bool) -> None:
    """Switch deterministic algorithms on or off; PyTorch warns about operations without one."""
    if is_deterministic:
        # cuBLAS reads this variable when it starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(is_deterministic, warn_only=True)


def choose_seed(cfg: CfgNode) -> int:
    """Return ``SEED``, or where that is negative a random number, the same in all processes."""
    if cfg.SEED >= 0:
        return cfg.SEED
    seed = comm.all_gather(int.from_bytes(os.urandom(3), "little"))[0]
    logger.info("SEED: drew %d", seed)
    return seed


def class_names(cfg: CfgNode, model: nn.Module) -> list[str]:
    """Return the vocabulary: the names in the text classifier, or else in the first data set."""
    names = getattr(model, "vocabulary", None)
    datasets = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    if not names and datasets:
        names = MetadataCatalog.get(datasets[0]).get("thing_classes")
    return list(names or [])


def build_trainer(
    cfg: CfgNode, stage: Stage, model: nn.Module, seed: int, interruption: Interruption
) -> Trainer:
    """Return the trainer that a config describes, with its hooks.

    Args:
        cfg: the config.
        stage: gives the data and the metrics.
        model: on its device.
        seed: of the order of the training images.
        interruption: notes signals to stop.
    """
    optimizer = build_optimizer(cfg, model)

    # A resumed training passes the seed of its checkpoint, so that its order of images continues.
    def build_loader(start_iteration: int, seed: int):
        loader_cfg = cfg.clone()
        loader_cfg.defrost()
        loader_cfg.SEED = seed
        return stage.build_train_loader(loader_cfg, start_iteration)

    def evaluate_now() -> dict[str, dict]:
        return trainer.at_once(lambda: drop_undefined_scores(evaluate(cfg, stage, model)))

    trainer = Trainer(
        model,
        optimizer,
        build_lr_scheduler(cfg, optimizer),
        build_loader,
        max_iter=cfg.SOLVER.MAX_ITER,
        seed=seed,
        clip_gradients=build_gradient_clipper(cfg),
        accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
        amp_type=AMP_TYPES[cfg.SOLVER.AMP.PRECISION] if cfg.SOLVER.AMP.ENABLED else None,
        output_dir=cfg.OUTPUT_DIR,
        class_names=class_names(cfg, model),
        metadata=collect_metadata(cfg),
        interruption=interruption,
        max_broken=cfg.DATALOADER.MAX_BROKEN if cfg.DATALOADER.SKIP_BROKEN else None,
    )
    metrics_file = Path(cfg.OUTPUT_DIR, "metrics.json")
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            CpuMemory() if trainer.device.type == "cpu" else None,
            # Before the evaluation: if that fails, the weights are saved.
            PeriodicCheckpoint(cfg.SOLVER.CHECKPOINT_PERIOD),
            StopWhenInterrupted(),
            Evaluation(cfg.TEST.EVAL_PERIOD, evaluate_now, metrics_file),
            # Last, so that it writes the scores of this iteration, too.
            MetricsWriter(cfg.OUTPUT_DIR, WRITE_PERIOD),
        ]
    )
    return trainer
