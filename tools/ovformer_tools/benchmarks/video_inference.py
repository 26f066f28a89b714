"""Frames per second of a config's video model, against the same network computed plainly.

The input are JPEG frames, the output is a prediction dict with RLEs. CLIP's image embeddings are
read from a file.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import nn

from ovformer.arguments import positive_int
from ovformer.data.samples.video_reader import VideoReader
from ovformer_tools.benchmarks import plain_video, synthetic
from ovformer_tools.benchmarks.measure import force_kernel, make_rows, measure

BASELINE = "plain"
THREADS = 4  # that read frames: the published DATALOADER.NUM_WORKERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    synthetic.add_model_arguments(parser, "configs/lvvis/ovformer_R50_bs8.yaml")
    parser.add_argument("--frames", type=positive_int, default=10, help="(default: %(default)s)")
    parser.add_argument(
        "--repeats", type=positive_int, default=2, help="the best counts (default: 2)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Check that all ways agree, and time them.

    Raises:
        RuntimeError: the plain way and ours do not agree.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {
            key: model.eval() for key, model in synthetic.build_networks(args, folder).items()
        }
        cfg = synthetic.load_config(args, folder)
        record = synthetic.video_record(
            folder, args.frames, args.size, cfg.MODEL.CLIP.EMBED_DIM, args.seed
        )
        reader = VideoReader(cfg)
        ways = {
            BASELINE: _bind_plain(models.pop(BASELINE), record, reader),
            "ours, PyTorch kernel": _bind_ours(models["ours"], record, reader, "torch"),
            **{key: _bind_ours(model, record, reader) for key, model in models.items()},
        }
        device = torch.device(args.device)
        expected = ways[BASELINE]()
        agreement = {key: agree(expected, way()) for key, way in ways.items() if key != BASELINE}
        check(agreement["ours"])
        rows = make_rows(measure(ways, device, args.repeats), BASELINE)
    for row in rows:
        row["frames per second"] = args.frames / row["seconds"]
        row |= agreement.get(row["way"], {})
    return {
        "config": args.config_file,
        "changes": " ".join(args.opts),
        "frames": args.frames,
        "size": args.size,
        "classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        "rows": rows,
    }


def agree(expected: Mapping[str, Any], got: Mapping[str, Any]) -> dict[str, float]:
    """Compare two prediction dicts.

    Returns:
        ``score difference``: the largest one between scores in their order, relative to the
        largest score. ``same masks``: the mean IoU of both tubes over all predictions, 0 for a
        prediction that has no counterpart of its class.
    """
    scores, others = (np.array(one["pred_scores"]) for one in (expected, got))
    tubes, other_tubes = _pair_with_labels(expected), _pair_with_labels(got)
    overlaps = []
    for label, tube in tubes:
        candidates = [_tube_iou(tube, other) for name, other in other_tubes if name == label]
        overlaps.append(max(candidates, default=0.0))
    return {
        "score difference": float(np.abs(scores - others).max() / scores.max()),
        "same masks": float(np.mean(overlaps)),
    }


def check(agreement: Mapping[str, float]) -> None:
    """Raise RuntimeError unless two prediction dicts differ by rounding only.

    Rounding can move a pixel over a mask's boundary, and with it the attention to that pixel.
    """
    if agreement["score difference"] > 1e-3 or agreement["same masks"] < 0.98:
        raise RuntimeError(f"The plain network and ours do not agree: {agreement}")


def _bind_plain(model: nn.Module, record: dict, reader: VideoReader) -> Callable[[], dict]:
    def predict() -> dict:
        with force_kernel("torch"), ThreadPoolExecutor(1) as executor:
            return plain_video.predict_video(model, reader.open(record, executor))

    return predict


def _bind_ours(
    model: nn.Module, record: dict, reader: VideoReader, name: str = "auto"
) -> Callable[[], dict]:
    def predict() -> dict:
        with force_kernel(name), ThreadPoolExecutor(THREADS) as executor, torch.no_grad():
            return model([reader.open(record, executor)])[0]

    return predict


def _pair_with_labels(predictions: Mapping[str, Any]) -> list[tuple[int, list[dict]]]:
    return list(zip(predictions["pred_labels"], predictions["segmentations"], strict=True))


def _tube_iou(tube: list[dict], other: list[dict]) -> float:
    intersection = union = 0
    for pair in zip(tube, other, strict=True):
        intersection += coco_mask.area(coco_mask.merge(list(pair), intersect=True))
        union += coco_mask.area(coco_mask.merge(list(pair)))
    return float(intersection / union) if union else 1.0
