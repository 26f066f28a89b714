#!/usr/bin/env python
"""Count a model's parameters, operations and activations, or print its structure.

    python tools/analyze_model.py --config-file configs/lvis/ovformer_R50_bs8.yaml
    python tools/analyze_model.py --tasks flop --size 360 640 \
        --config-file configs/lvis/ovformer_R50_bs8.yaml MODEL.MASK_FORMER.NUM_OBJECT_QUERIES 200

Needs neither data nor weights: one random image goes through backbone and head, as at inference;
for a model that sees clips, one random clip of MODEL.MASK_FORMER.TEST.CLIP_LENGTH frames. A "FLOP"
is a multiply-add of a convolution or matrix product, the field's convention; activations are the
elements that these operations write (Radosavovic et al., 2020). Sampling, as in deformable
attention, and elementwise operations are not counted.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import ovformer.data
import ovformer.modeling  # noqa: F401  (both register what configs name)
from ovformer.arguments import exit_on_user_error
from ovformer.config import get_ovformer_cfg
from ovformer.d2 import CfgNode
from ovformer.modeling.meta_arch.base_model import build_without_vocabulary

TASKS = ("parameter", "flop", "activation", "structure")
UNITS = {
    "parameter": ("M parameters", 1e6),
    "flop": ("GFLOPs", 1e9),
    "activation": ("M activations", 1e6),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Build the model of a config, count and print."""
    parser = make_parser()
    args = parser.parse_args(argv)
    with exit_on_user_error(parser):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Print the structure of a model, and a table of the counts that were asked for."""
    cfg = get_ovformer_cfg(args.config_file, args.opts)
    model = build_without_vocabulary(cfg, "cpu").eval()
    # The cost depends on the number of class names, not on the names.
    model.set_text_classifier(
        torch.randn(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.CLIP.EMBED_DIM)
    )
    if "structure" in args.tasks:
        print(model)
    # In the order of UNITS, whatever the order on the command line.
    tasks = [task for task in UNITS if task in args.tasks]
    counts = {"parameter": count_parameters(model)}
    if "flop" in tasks or "activation" in tasks:
        size = tuple(args.size or largest_test_image(cfg))
        num_frames = cfg.MODEL.MASK_FORMER.TEST.CLIP_LENGTH if model.SEES_CLIPS else 1
        what = f"clip: {num_frames} frames of" if model.SEES_CLIPS else "image:"
        print(f"{what} {size[0]} x {size[1]} pixels")
        counts |= count_operations(model, *size, cfg.MODEL.CLIP.EMBED_DIM, num_frames)
    if tasks:
        print(format_table({task: counts[task] for task in tasks}, args.depth))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True)
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, default=["parameter", "flop", "activation"]
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of the image (default: the config's largest test image)",
    )
    parser.add_argument("--depth", type=int, default=2, help="levels of modules (%(default)s)")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="KEY VALUE ... at the end, as in train_net.py"
    )
    return parser


def largest_test_image(cfg: CfgNode) -> tuple[int, int]:
    """Return height and width of the largest image of the test mapper, in landscape format."""
    short = cfg.INPUT.MIN_SIZE_TEST or cfg.INPUT.IMAGE_SIZE
    return short, max(short, cfg.INPUT.MAX_SIZE_TEST)


def count_parameters(model: nn.Module) -> Counter[str]:
    """Return the number of parameters in each module; "" is the whole model."""
    counts = Counter()
    for name, parameter in model.named_parameters():
        # A parameter counts in each module around it: "a.b.weight" in "", "a" and "a.b".
        parts = name.split(".")
        for end in range(len(parts)):
            counts[".".join(parts[:end])] += parameter.numel()
    return counts


class OperationCounter(TorchDispatchMode):
    """Counts multiply-adds and activations of each module while it is active.

    Args:
        model: its modules get hooks, which ``close`` removes.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()
        self.activations: Counter[str] = Counter()
        # Names of the modules whose forward is running, from the outside in.
        self._running = [""]
        self._hooks = []
        for name, module in model.named_modules():
            if name:
                enter = partial(self._enter, name)
                self._hooks.append(module.register_forward_pre_hook(enter))
                self._hooks.append(module.register_forward_hook(self._leave))

    def _enter(self, name: str, *_: object) -> None:
        self._running.append(name)

    def _leave(self, *_: object) -> None:
        self._running.pop()

    def close(self) -> None:
        """Remove the hooks from the model."""
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            # PyTorch counts a multiply-add as two operations.
            flops = count(*args, **kwargs, out_val=out) // 2
            for name in self._running:
                self.flops[name] += flops
                self.activations[name] += out.numel()
        return out


def count_operations(
    model: nn.Module, height: int, width: int, clip_dim: int, num_frames: int = 1
) -> dict[str, Counter[str]]:
    """Return ``flop`` and ``activation`` of each module for one image or clip; "" is the model.

    Args:
        model: one of our meta-architectures, in evaluation mode.
        height: of the image in pixels; it is padded as at inference.
        width: of the image in pixels.
        clip_dim: D, the width of CLIP's embeddings.
        num_frames: of the clip; 1 for a model that sees images or single frames.
    """
    images = model.normalize_images(list(torch.rand(num_frames, 3, height, width))).tensor
    counter = OperationCounter(model)
    # A fused attention is one operation: the matrix products inside it would not be counted.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            model.sem_seg_head(model.backbone(images), torch.randn(1, num_frames, clip_dim))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        counter.close()
    return {"flop": counter.flops, "activation": counter.activations}


def format_table(counts: dict[str, Counter[str]], depth: int) -> str:
    """Return a table with a row for each module of at most ``depth`` levels, and the total."""
    names = {name for column in counts.values() for name in column}
    names = sorted(name for name in names if name and name.count(".") < depth)
    rows = [["module", *(UNITS[task][0] for task in counts)]]
    for name in ["", *names]:
        values = (f"{counts[task][name] / UNITS[task][1]:.2f}" for task in counts)
        rows.append([name or "total", *values])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


if __name__ == "__main__":
    main()
