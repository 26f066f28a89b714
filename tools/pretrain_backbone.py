#!/usr/bin/env python
"""Pre-train a config's backbone on crops of the annotated objects of its training set.

    python tools/pretrain_backbone.py --config-file configs/quickstart/ovformer_shapes.yaml \
        --output datasets/shapes/backbone.pth

It replaces weights from ImageNet where nothing can be downloaded. The backbone learns which words
the name of the object has. Some crops are grey, so that the colour does not give away the shape.
tools/convert-thirdparty-pretrained-model-to-d2.py turns the output into a file for MODEL.WEIGHTS.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import Normalize
from tqdm import tqdm

import ovformer.modeling  # noqa: F401  (registers the backbones)
from ovformer.arguments import exit_on_user_error
from ovformer.config import get_ovformer_cfg
from ovformer.d2 import BoxMode, CfgNode, MetadataCatalog, build_backbone
from ovformer.data.catalog.dataset_spec import load_dataset
from ovformer.data.samples.image_mapper import read_rgb
from ovformer.files import write_atomically

# Side of a crop relative to the larger side of the object's box.
CONTEXT = 1.3


def main(argv: Sequence[str] | None = None) -> None:
    """Pre-train the backbone that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--output", type=Path, required=True, help="the .pth file")
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--crop-size", type=int, default=64, help="side of the crops in pixels")
    parser.add_argument("--grey", type=float, default=0.5, help="share of crops without colour")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes to the config")
    args = parser.parse_args(argv)
    with exit_on_user_error(parser):
        pretrain(args)


def pretrain(args: argparse.Namespace) -> None:
    """Cut the crops, train, and write the backbone's weights."""
    cfg = get_ovformer_cfg(args.config_file, args.opts)
    crops, labels = cut_crops(cfg.DATASETS.TRAIN[0], args.crop_size)
    words = word_targets(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes)
    backbone = train(cfg, crops, words[labels], args)
    write_atomically(args.output, lambda file: torch.save(backbone.state_dict(), file))


def cut_crops(dataset_name: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a square crop around each annotated object.

    Args:
        dataset_name: a registered data set.
        size: side of the crops in pixels.

    Returns:
        uint8 (N, size, size, 3), RGB, and the N classes.
    """
    crops, labels = [], []
    for record in tqdm(load_dataset(dataset_name), desc="cutting crops", mininterval=2):
        image = read_rgb(record["file_name"])
        for annotation in record["annotations"]:
            box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYWH_ABS)
            x, y, width, height = box
            side = CONTEXT * max(width, height)
            zoom, left, top = side / size, x + (width - side) / 2, y + (height - side) / 2
            inverse = np.array([[zoom, 0, left], [0, zoom, top]])
            crop = cv2.warpAffine(
                image,
                inverse,
                (size, size),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REFLECT,
            )
            crops.append(crop)
            labels.append(annotation["category_id"])
    return np.stack(crops), np.array(labels)


def word_targets(names: Sequence[str]) -> np.ndarray:
    """Return 1 where a name has a word, else 0: float32 (names, words), words in their order."""
    words = sorted({word for name in names for word in name.split()})
    return np.array([[word in name.split() for word in words] for name in names], np.float32)


def train(
    cfg: CfgNode, crops: np.ndarray, targets: np.ndarray, args: argparse.Namespace
) -> nn.Module:
    """Train the backbone of a config as a classifier of words.

    Args:
        cfg: the config.
        crops: uint8 (N, S, S, 3), RGB.
        targets: float32 (N, words).
        args: arguments of the command line.
    """
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    backbone = build_backbone(cfg).train()
    # The coarsest features: a linear classifier of their mean is trained along and thrown away.
    last, shape = list(backbone.output_shape().items())[-1]
    classifier = nn.Linear(shape.channels, targets.shape[1])
    normalize = Normalize(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    channels = [0, 1, 2] if cfg.INPUT.FORMAT == "RGB" else [2, 1, 0]
    optimizer = torch.optim.AdamW(
        [*backbone.parameters(), *classifier.parameters()], args.lr, weight_decay=0.05, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, args.iterations, pct_start=0.05, cycle_momentum=False
    )
    progress = tqdm(range(args.iterations), desc="training the backbone", mininterval=2)
    for _ in progress:
        chosen = rng.integers(len(crops), size=args.batch_size)
        images = augment(rng, crops[chosen], args.grey)[:, channels]
        features = backbone(normalize(images))[last]
        loss = F.binary_cross_entropy_with_logits(
            classifier(features.mean((2, 3))), torch.from_numpy(targets[chosen])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return backbone


def augment(rng: np.random.Generator, crops: np.ndarray, grey: float) -> Tensor:
    """Turn and mirror a batch, and take the colour from some of its crops.

    Args:
        rng: source of the randomness.
        crops: uint8 (B, S, S, 3).
        grey: share of the crops without colour.

    Returns:
        float32 (B, 3, S, S), 0..255.
    """
    images = torch.from_numpy(crops).permute(0, 3, 1, 2).float()
    # Shapes of the data set have any angle: one turn for the whole batch is enough.
    images = torch.rot90(images, int(rng.integers(4)), (2, 3))
    if rng.random() < 0.5:
        images = images.flip(3)
    is_grey = torch.from_numpy(rng.random(len(images)) < grey)
    images[is_grey] = images[is_grey].mean(1, keepdim=True)
    return images


if __name__ == "__main__":
    main()
