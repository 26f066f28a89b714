"""Models with random weights, and input for them, without a data set or a download.

Legend: T frames, N instances, D CLIP width, H W pixels.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

import ovformer.modeling  # noqa: F401  (registers the models)
from ovformer.arguments import choose_device, positive_int
from ovformer.config import get_ovformer_cfg
from ovformer.d2 import BitMasks, CfgNode, Instances, build_model
from ovformer.data.files.image_embeddings import ImageEmbeddingWriter, make_image_key

ROOT = Path(__file__).parents[3]
STORE = "clip_features.safetensors"


def add_model_arguments(parser: argparse.ArgumentParser, config_file: str) -> None:
    """Add the options that describe the network and its input."""
    parser.add_argument("--config-file", default=str(ROOT / config_file))
    parser.add_argument(
        "--device",
        default=choose_device(None),
        help="cpu, cuda, cuda:1, ... (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        type=positive_int,
        nargs=2,
        default=[360, 640],
        metavar=("HEIGHT", "WIDTH"),
        help="of a frame in pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--variant",
        nargs="+",
        action="append",
        default=[],
        metavar="WORD",
        help="also measure the config with changes: NAME KEY VALUE [KEY VALUE ...]; repeatable",
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and input (default: 0)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes to the config")


def load_config(args: argparse.Namespace, folder: Path, changes: Sequence[str] = ()) -> CfgNode:
    """Return the config to measure; the files that it names are replaced by random ones.

    Args:
        args: of :func:`add_model_arguments`.
        folder: folder for these files.
        changes: more keys and values.
    """
    opts = ["MODEL.DEVICE", args.device, "MODEL.WEIGHTS", "", *args.opts, *changes]
    cfg = get_ovformer_cfg(args.config_file, opts)
    classes, width = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.CLIP.EMBED_DIM
    text, counts = folder / "text.npy", folder / "counts.json"
    rng = np.random.default_rng(args.seed)
    np.save(text, rng.standard_normal((classes, width), dtype=np.float32))
    entries = [{"id": i + 1, "image_count": 9, "frequency": "f"} for i in range(classes)]
    counts.write_text(json.dumps(entries))
    files = ["MODEL.MASK_FORMER.CLIP_TEXT_PATH", str(text)]
    files += ["MODEL.MASK_FORMER.CAT_INFO_PATH", str(counts)]
    files += ["MODEL.MASK_FORMER.CLIP_IMAGE_PATH", str(folder / STORE)]
    return get_ovformer_cfg(args.config_file, [*opts, *files])


def build_networks(args: argparse.Namespace, folder: Path) -> dict[str, nn.Module]:
    """Return models with the same random weights: "plain", "ours", and one per variant.

    The first two are equal; the caller computes "plain" with :class:`.plain_network.PlainNetwork`.
    """
    models: dict[str, nn.Module] = {}
    for name, *changes in (["plain"], ["ours"], *args.variant):
        torch.manual_seed(args.seed)
        models[name] = build_model(load_config(args, folder, changes))
    return models


def draw_frames(length: int, size: Sequence[int], seed: int) -> list[np.ndarray]:
    """Return T similar frames of a video, uint8 (H, W, 3): a texture that moves."""
    height, width = size
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (12, 20, 3)).astype(np.uint8)
    scene = cv2.resize(coarse, (width + 2 * length, height), interpolation=cv2.INTER_CUBIC)
    noise = rng.integers(-20, 20, scene.shape)
    scene = (scene + noise).clip(0, 255).astype(np.uint8)
    return [np.ascontiguousarray(scene[:, 2 * t : 2 * t + width]) for t in range(length)]


def video_record(
    folder: Path, length: int, size: Sequence[int], clip_dim: int, seed: int
) -> dict[str, Any]:
    """Write the frames of a video as JPEG, and CLIP features (D,) of each; return its record."""
    names = []
    for t, frame in enumerate(draw_frames(length, size, seed)):
        names.append(str(folder / f"{t:05d}.jpg"))
        cv2.imwrite(names[-1], frame[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    keys = [make_image_key(name) for name in names]
    features = torch.randn(length, clip_dim, generator=torch.Generator().manual_seed(seed))
    with ImageEmbeddingWriter(folder / STORE, {}) as writer:
        writer.add(keys, features)
    return {
        "video_id": 1,
        "length": length,
        "height": size[0],
        "width": size[1],
        "file_names": names,
        "clip_keys": keys,
    }


def training_batch(
    records: int, frames: int, size: Sequence[int], objects: int, cfg: CfgNode, seed: int
) -> list[dict[str, Any]]:
    """Return a batch of images, or of clips where ``frames`` is not 0; see :mod:`ovformer.data`."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for index in range(records):
        images, instances = [], []
        labels = torch.from_numpy(rng.integers(0, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, objects))
        corners = rng.uniform(0, 0.6, (objects, 2)) * size
        sides = rng.uniform(0.1, 0.4, (objects, 2)) * size
        for t, frame in enumerate(draw_frames(max(1, frames), size, seed + index)):
            images.append(torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1))))
            instances.append(_make_boxes(corners + 2 * t, sides, labels, size))
        features = torch.randn(max(1, frames), cfg.MODEL.CLIP.EMBED_DIM, generator=generator)
        record = {"height": size[0], "width": size[1], "clip_features": features}
        if frames:
            record |= {"image": images, "instances": instances, "length": frames, "video_id": index}
        else:
            record |= {"image": images[0], "instances": instances[0]}
        batch.append(record)
    return batch


def split_into_images(batch: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a training batch as records of single images, with clips split into frames."""
    images = []
    for record in batch:
        if isinstance(record["image"], list):
            frames = zip(record["image"], record["instances"], record["clip_features"], strict=True)
            images += [
                {"image": image, "instances": instances, "clip_features": features[None]}
                for image, instances, features in frames
            ]
        else:
            images.append(record)
    return images


def _make_boxes(
    corners: np.ndarray, sides: np.ndarray, labels: torch.Tensor, size: Sequence[int]
) -> Instances:
    """Return rectangles as instances of a frame."""
    masks = torch.zeros(len(labels), *size, dtype=torch.bool)
    for mask, corner, extent in zip(masks, corners, sides, strict=True):
        top, left = corner.astype(int)
        bottom, right = (corner + extent).astype(int) + 1
        mask[top:bottom, left:right] = True
    instances = Instances(tuple(size))
    instances.gt_classes = labels
    instances.gt_ids = torch.arange(len(labels))
    instances.gt_masks = BitMasks(masks)
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    return instances
