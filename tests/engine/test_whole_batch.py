"""Several processes, micro-batches and recomputed activations have the gradient of the plain step.

With the real models and losses; images and clips have different numbers of instances. All is
computed in float64, with the same random points for each instance in any process and micro-batch.
A case is ``STAGE:NORM:STEPS``: values of CLASS_LOSS_NORM and ACCUMULATION_STEPS; "r" after the
latter recomputes activations (ACTIVATION_CHECKPOINTING). Two processes run this file:
``torchrun test_whole_batch.py CONFIG FOLDER CASE ...``.
"""

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import BitMasks, CfgNode, Instances, build_model, comm
from ovformer.engine.interruption import Interruption
from ovformer.engine.launch import launch
from ovformer.engine.stages import CLIPS, FRAMES, IMAGE, Stage
from ovformer.run import build_trainer
from support.tiny_runs import TinyRun, make_run

OPTS = ["SOLVER.MAX_ITER", 1, "SOLVER.STEPS", (), "SOLVER.IMS_PER_BATCH", 4]
OPTS += ["INPUT.MIN_SCALE", 1.0, "INPUT.MAX_SCALE", 1.0]
# With this seed the four images have 1, 2, 0 and 3 instances.
OPTS += ["DATALOADER.FILTER_EMPTY_ANNOTATIONS", False, "SEED", 5]
# All 27 base classes are in the federated loss, so that no class is drawn at random.
OPTS += ["MODEL.MASK_FORMER.FED_LOSS_NUM_CLASSES", 36]
# A factor on all gradients would not be seen after clipping.
OPTS += ["SOLVER.CLIP_GRADIENTS.ENABLED", False]
# In which of its two frames each instance of the four clips is.
MANY = (((1, 1),), ((1, 0), (0, 1)), (), ((1, 1), (1, 1), (0, 1)))
ONE = ((), (), ((0, 1),), ())
# Height and width in pixels.
SAME = ((48, 64),) * 4
DIFFERENT = ((48, 64), (50, 80), (100, 48), (48, 64))
CLASSES = 27

_random = torch.rand


def same_for_each_instance(*size: int, **options) -> Tensor:
    """In place of torch.rand(N, P, 2): the same points for all N."""
    if len(size) != 3:
        return _random(*size, **options)
    options |= {"dtype": torch.float64, "generator": torch.Generator().manual_seed(size[1])}
    return _random(1, *size[1:], **options).expand(size).contiguous()


def clips(present: tuple, sizes: tuple, cfg: CfgNode, start_iteration: int) -> Iterator[list[dict]]:
    """Endless batches of this process's share of four clips."""
    numbered = zip(range(4), present, sizes, strict=True)
    share = list(numbered)[comm.get_rank() :: comm.get_world_size()]
    while True:
        yield [clip(*arguments, cfg.MODEL.CLIP.EMBED_DIM) for arguments in share]


def clip(number: int, present: tuple, size: tuple[int, int], clip_dim: int) -> dict:
    """Two noisy frames, and instances that are in some of them."""
    generator = torch.Generator().manual_seed(number)
    present = torch.tensor(present, dtype=torch.bool).reshape(-1, 2)
    corners = torch.randint(4, 24, (len(present), 2), generator=generator).tolist()
    classes = torch.randint(CLASSES, (len(present),), generator=generator)
    frames = []
    for t in range(2):
        masks = torch.zeros(len(present), *size, dtype=torch.bool)
        for mask, (top, left), is_there in zip(masks, corners, present[:, t], strict=True):
            mask[top : top + 20, left + t : left + t + 20] = is_there
        instances = Instances(size)
        instances.gt_classes = classes
        instances.gt_ids = torch.where(present[:, t], torch.arange(len(present)), -1)
        instances.gt_masks = BitMasks(masks)
        frames.append(instances)
    return {
        "video_id": number,
        "length": 2,
        "image": [torch.randint(256, (3, *size), generator=generator) for _ in range(2)],
        "clip_features": torch.randn(2, clip_dim, generator=generator),
        "instances": frames,
    }


FRAME_OPTIONS = ["MODEL.META_ARCHITECTURE", "OVFormerVideo"]
CLIP_OPTIONS = [
    *("MODEL.META_ARCHITECTURE", "VideoOVFormer"),
    *("MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "VideoMultiScaleMaskedTransformerDecoder"),
]
STAGES = {
    "image": (IMAGE, []),
    "video": (replace(FRAMES, build_train_loader=partial(clips, MANY, SAME)), FRAME_OPTIONS),
    "clip": (replace(CLIPS, build_train_loader=partial(clips, MANY, SAME)), CLIP_OPTIONS),
    "clip of one": (replace(CLIPS, build_train_loader=partial(clips, ONE, SAME)), CLIP_OPTIONS),
    "sizes": (replace(CLIPS, build_train_loader=partial(clips, MANY, DIFFERENT)), CLIP_OPTIONS),
}


def gradients(cfg: CfgNode, stage: Stage) -> dict:
    """Do the step and return gradients, losses and the sizes of the targets."""
    torch.manual_seed(0)
    model = build_model(cfg).double()
    features = model.image_embedder
    model.image_embedder = lambda *arguments: features(*arguments).double()
    counts = []
    targets = model.prepare_targets

    def counted(*arguments) -> list[dict]:
        found = targets(*arguments)
        counts.extend(len(target["labels"]) for target in found)
        return found

    model.prepare_targets = counted
    trainer = build_trainer(cfg, stage, model, cfg.SEED, Interruption())
    trainer._hooks.clear()  # neither a checkpoint nor an evaluation
    trainer.train()
    latest = trainer.storage.latest()
    return {
        "counts": sorted(itertools.chain(*comm.all_gather(counts))),
        "gradients": {name: p.grad for name, p in model.named_parameters()},
        "losses": {name: value for name, (value, _) in latest.items() if "loss" in name},
    }


def work(config: str, folder: str, cases: list[str]) -> None:
    """Do all cases in one of the processes of the run."""
    for case in cases:
        name, norm, steps = case.split(":")
        stage, options = STAGES[name]
        opts = ["SOLVER.ACCUMULATION_STEPS", int(steps.rstrip("r")), "OUTPUT_DIR", folder, *options]
        opts += ["MODEL.ACTIVATION_CHECKPOINTING", steps.endswith("r")]
        opts += ["MODEL.MASK_FORMER.CLASS_LOSS_NORM", norm]
        result = gradients(get_ovformer_cfg(config, OPTS + opts), stage)
        if comm.is_main_process():
            torch.save(result, Path(folder, f"{case}:{comm.get_world_size()}.pth"))


def replace_in_torch(setattr: Callable[[object, str, object], None] = setattr) -> None:
    """Use the same random points for each instance, and double precision in the losses."""
    setattr(torch, "rand", same_for_each_instance)
    setattr(Tensor, "float", Tensor.double)  # losses take single precision, whatever the model has


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# Stage and norm of the class loss, and how many instances the targets of the whole batch have:
# images, frames, or clips.
KINDS = {
    "image:queries": [0, 1, 2, 3],
    "image:instances": [0, 1, 2, 3],
    "video:instances": [0, 0, 1, 1, 1, 1, 2, 3],
    "clip:queries": [0, 1, 2, 3],
    "clip:instances": [0, 1, 2, 3],
    "clip of one:instances": [0, 0, 0, 1],  # in one of several parts
}
# Of each kind a plain step, and the same one of two micro-batches.
CASES = [f"{kind}:{steps}" for kind in KINDS for steps in (1, 2)]
MORE = ["image:instances:4", "image:instances:1r", "video:instances:1r", "clip:queries:1r"]
MORE += ["clip:queries:2r"]
# Clips of different sizes; one process pads them all to the largest height and width.
SIZES = ["sizes:queries:2", "sizes:queries:4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    made = make_run(tmp_path_factory.mktemp("whole batch"))
    made.output.mkdir()
    return made


def results(run: TinyRun) -> dict[str, dict]:
    """Case "stage:norm:steps:processes" -> losses and gradients."""
    return {path.stem: torch.load(path) for path in run.output.glob("*.pth")}


@pytest.fixture(scope="module")
def one_process(run: TinyRun) -> dict[str, dict]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(run.root))
        replace_in_torch(patch.setattr)
        sizes = ["sizes:queries:1", *SIZES]
        work(str(run.config), str(run.output), CASES + MORE + sizes)
    return results(run)


@pytest.fixture(scope="module")
def two_processes(run: TinyRun, one_process: dict) -> dict[str, dict]:
    cases = [*CASES, "clip:queries:2r"]
    command = [*TORCHRUN, __file__, str(run.config), str(run.output), *cases]
    run.python(*command).check_returncode()
    return results(run)


def check_gradient(results: dict[str, dict], kind: str, parts: str) -> None:
    """Compare the step of a split batch with that of the whole batch."""
    whole, cut = results[f"{kind}:1:1"], results[f"{kind}:{parts}"]
    assert cut["counts"] == whole["counts"] == KINDS.get(kind, [0, 1, 2, 3])
    assert cut["losses"] == pytest.approx(whole["losses"], rel=1e-10)
    for name, expected in whole["gradients"].items():
        difference = (cut["gradients"][name] - expected).norm() / expected.norm().clamp(min=1e-3)
        assert difference < 1e-10, name


@pytest.mark.parametrize("case", [*CASES[1::2], *MORE, *SIZES])
def test_one_process(one_process: dict[str, dict], case: str) -> None:
    """With accumulation, recomputed activations, or both."""
    kind, steps = case.rsplit(":", 1)
    check_gradient(one_process, kind, f"{steps}:1")


@pytest.mark.slow
@pytest.mark.parametrize("case", [*CASES, "clip:queries:2r"])
def test_two_processes(two_processes: dict[str, dict], case: str) -> None:
    """Without and with accumulation."""
    kind, steps = case.rsplit(":", 1)
    check_gradient(two_processes, kind, f"{steps}:2")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "of one" not in kind])
def test_every_parameter_has_a_gradient(one_process: dict[str, dict], kind: str) -> None:
    gradients = one_process[f"{kind}:1:1"]["gradients"]
    zero = [name for name, gradient in gradients.items() if gradient.norm() < 1e-9]
    # Norms that follow take biases off, and deformable attention starts with the same offsets and
    # weights everywhere.
    decoder = "sem_seg_head.pixel_decoder"
    biases = [f"{decoder}.input_proj.{level}.0.bias" for level in range(3)]
    assert sorted(zero) == [*biases, f"{decoder}.transformer.level_embed"]


if __name__ == "__main__":
    replace_in_torch()
    launch(work, (sys.argv[1], sys.argv[2], sys.argv[3:]), device="cpu")
