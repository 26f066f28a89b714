"""Does one optimizer step of the real model for each of several settings and writes the gradients.

Run by test_whole_batch.py, directly and by torchrun: ``python one_step.py CONFIG OUTPUT_FOLDER
STEPS:NORM ...`` with values of ACCUMULATION_STEPS and CLASS_LOSS_NORM. What is random in the losses
is the same for each instance, whichever process has it.
"""

import sys
from pathlib import Path

import torch

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import build_model, comm
from ovformer.engine.cli import build_trainer
from ovformer.engine.launch import launch
from ovformer.engine.stages import IMAGE

OPTS = ["SOLVER.MAX_ITER", 1, "SOLVER.STEPS", (), "SOLVER.IMS_PER_BATCH", 4]
OPTS += ["INPUT.MIN_SCALE", 1.0, "INPUT.MAX_SCALE", 1.0]
# With this seed the four images have 1, 2, 0 and 3 instances.
OPTS += ["DATALOADER.FILTER_EMPTY_ANNOTATIONS", False, "SEED", 5]
# All 27 base classes are in the federated loss, so that no class is drawn at random.
OPTS += ["MODEL.MASK_FORMER.FED_LOSS_NUM_CLASSES", 36]

_random = torch.rand


def same_for_each_instance(*size: int, **options) -> torch.Tensor:
    """In place of torch.rand(N, P, 2): the same points for all N."""
    if len(size) != 3:
        return _random(*size, **options)
    generator = torch.Generator().manual_seed(size[1])
    return _random(1, *size[1:], generator=generator).expand(size).contiguous()


def work(config: str, folder: str, cases: list[str]) -> None:
    for case in cases:
        steps, norm = case.split(":")
        opts = ["SOLVER.ACCUMULATION_STEPS", int(steps), "OUTPUT_DIR", folder]
        opts += ["MODEL.MASK_FORMER.CLASS_LOSS_NORM", norm]
        cfg = get_ovformer_cfg(config, OPTS + opts)
        torch.rand = _random
        torch.manual_seed(0)
        model = build_model(cfg)
        trainer = build_trainer(cfg, IMAGE, model, cfg.SEED)
        trainer._hooks.clear()  # neither a checkpoint nor an evaluation
        torch.rand = same_for_each_instance
        trainer.train()
        batch = next(iter(IMAGE.build_train_loader(cfg, 0)))
        counts = comm.gather([len(record["instances"]) for record in batch])
        if comm.is_main_process():
            latest = trainer.storage.latest()
            content = {
                "counts": sorted(sum(counts, [])),
                "gradients": {name: p.grad for name, p in model.named_parameters()},
                "losses": {name: value for name, (value, _) in latest.items() if "loss" in name},
            }
            torch.save(content, Path(folder, f"{comm.get_world_size()}:{case}.pth"))


if __name__ == "__main__":
    launch(work, (sys.argv[1], sys.argv[2], sys.argv[3:]), device="cpu")
