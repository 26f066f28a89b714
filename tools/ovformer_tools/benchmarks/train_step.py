"""A training step of a config (image or clip), against the same network computed plainly.

A step computes the losses of a batch of synthetic frames with rectangles as objects, and their
gradient. The optimizer's part, the same in all ways, is not measured.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ovformer.arguments import positive_int
from ovformer.engine.trainer import AMP_TYPES
from ovformer_tools.benchmarks import plain_criterion, synthetic
from ovformer_tools.benchmarks.measure import force_kernel, make_rows, measure
from ovformer_tools.benchmarks.plain_network import PlainNetwork

BASELINE = "plain"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    synthetic.add_model_arguments(parser, "configs/lvvis/ovformer_R50_bs8.yaml")
    parser.add_argument(
        "--batch", type=positive_int, default=1, help="images or clips (default: 1)"
    )
    parser.add_argument("--frames", type=positive_int, default=2, help="of a clip (default: 2)")
    parser.add_argument("--objects", type=positive_int, default=5, help="in a frame (default: 5)")
    parser.add_argument(
        "--repeats", type=positive_int, default=2, help="the best counts (default: 2)"
    )
    parser.add_argument(
        "--precision",
        choices=["float32", *AMP_TYPES],
        default="float32",
        help="float32, or autocast to a half type (default: float32)",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Check that all ways agree, and time them.

    Raises:
        RuntimeError: the plain way and ours do not agree.
    """
    with tempfile.TemporaryDirectory() as name:
        models = {
            key: model.train() for key, model in synthetic.build_networks(args, Path(name)).items()
        }
        cfg = synthetic.load_config(args, Path(name))
    frames = args.frames if "Video" in cfg.MODEL.META_ARCHITECTURE else 0
    batch = synthetic.training_batch(args.batch, frames, args.size, args.objects, cfg, args.seed)
    plain, ours = models.pop(BASELINE), models["ours"]
    ways = {
        BASELINE: _make_step(args, plain, lambda: plain_loss(plain, batch), "torch"),
        "ours, PyTorch kernel": _make_step(args, ours, lambda: _sum_losses(ours, batch), "torch"),
    }
    for key, model in models.items():
        ways[key] = _make_step(args, model, lambda model=model: _sum_losses(model, batch), "auto")
    device = torch.device(args.device)
    expected = ways[BASELINE]()
    agreement = {key: agree(expected, way()) for key, way in ways.items() if key != BASELINE}
    del expected
    check(agreement["ours"], args.precision)
    rows = make_rows(measure(ways, device, args.repeats), BASELINE)
    return {
        "config": args.config_file,
        "changes": " ".join(args.opts),
        "frames": len(synthetic.split_into_images(batch)),
        "size": args.size,
        "precision": args.precision,
        "classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        "rows": [row | agreement.get(row["way"], {}) for row in rows],
    }


def plain_loss(model: nn.Module, batch: Sequence[dict]) -> Tensor:
    """Return the loss of a batch of images or clips, computed plainly."""
    clips = batch if model.SEES_CLIPS else synthetic.split_into_images(batch)
    images = synthetic.split_into_images(batch)
    normalized = model.normalize_images([image["image"] for image in images]).tensor
    features = torch.stack([clip["clip_features"] for clip in clips]).to(model.device)
    outputs = PlainNetwork(model)(normalized, features)
    targets = model.prepare_targets(clips, tuple(normalized.shape[-2:]))
    return plain_criterion.total_loss(model.criterion, outputs, targets)


def agree(
    expected: tuple[float, dict[str, Tensor]], got: tuple[float, dict[str, Tensor]]
) -> dict[str, float]:
    """Compare losses and gradients.

    Returns:
        ``loss difference``, relative, and ``gradient difference``: the norm of the difference of
        the whole gradients, relative to the norm of the expected one.
    """
    gradients, others = expected[1], got[1]
    squares = sum((x - others[name]).double().square().sum() for name, x in gradients.items())
    norm = sum(x.double().square().sum() for x in gradients.values())
    return {
        "loss difference": abs(got[0] / expected[0] - 1),
        "gradient difference": float((squares / norm).sqrt()),
    }


def check(agreement: dict[str, float], precision: str) -> None:
    """Raise RuntimeError unless two steps differ by rounding only."""
    loss, gradient = (1e-4, 2e-2) if precision == "float32" else (2e-2, 1.0)
    if not (agreement["loss difference"] < loss and agreement["gradient difference"] < gradient):
        raise RuntimeError(f"The plain network and ours do not agree: {agreement}")


def _sum_losses(model: nn.Module, batch: Sequence[dict]) -> Tensor:
    return sum(model(batch).values())


def _make_step(
    args: argparse.Namespace, model: nn.Module, loss: Callable[[], Tensor], name: str
) -> Callable[[], tuple[float, dict[str, Tensor]]]:
    """Return a function that does a step and returns the loss and the gradients."""
    amp_type = AMP_TYPES.get(args.precision, torch.float32)
    # Small gradients would vanish in float16.
    scale = 1024.0 if args.precision == "float16" else 1.0

    def step() -> tuple[float, dict[str, Tensor]]:
        model.zero_grad()
        torch.manual_seed(args.seed)
        device = torch.device(args.device).type
        with force_kernel(name):
            with torch.autocast(device, amp_type, enabled=args.precision != "float32"):
                value = loss()
            (value * scale).backward()
        gradients = {
            key: x.grad / scale for key, x in model.named_parameters() if x.grad is not None
        }
        return value.item(), gradients

    return step
