#!/usr/bin/env python
"""Store CLIP's image features, so that training and evaluation need not compute them.

    python tools/save_clip_features.py --dataset lvis_v1_train lvis_v1_val \
        --output datasets/metadata/lvis_clip_features.safetensors
    python tools/save_clip_features.py --dataset ytvis_2019_val ovis_val burst_val lvvis_val \
        --output datasets/metadata/video_clip_features.safetensors

For videos, the features of every frame are stored. The same command resumes an interrupted run:
images whose features are in the output are skipped. ``--num-gpus 4``, or torchrun, starts several
processes, which share the images.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ovformer.arguments import choose_device, exit_on_user_error
from ovformer.config import get_ovformer_cfg
from ovformer.d2 import InferenceSampler, comm
from ovformer.data.catalog.custom import register_custom
from ovformer.data.catalog.dataset_spec import load_dataset
from ovformer.data.files.image_embeddings import (
    ImageEmbeddingWriter,
    crop_for_embedding,
    make_image_key,
)
from ovformer.data.files.image_files import check_images_exist, iterate_images
from ovformer.data.samples.image_mapper import read_rgb
from ovformer.engine.launch import launch
from ovformer.modeling.language.clip_encoder import CLIPEncoder

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}


def main(argv: Sequence[str] | None = None) -> None:
    """Start the processes, which store the features."""
    parser = make_parser()
    args = parser.parse_args(argv)
    with exit_on_user_error(parser):
        args.device = choose_device(args.device)
        launch(work, (args,), device=args.device, num_gpus=args.num_gpus)


def work(args: argparse.Namespace) -> None:
    """Encode this process's part of the images that are not in the output yet."""
    register_custom(get_ovformer_cfg(args.config_file).DATASETS.CUSTOM)
    if args.dataset:
        images = find_dataset_images(args.dataset)
    else:
        images = find_folder_images(args.images)
    info = {"clip": args.clip, "pretrained": args.pretrained}
    dtype = torch.float16 if args.half else torch.float32
    with ImageEmbeddingWriter(args.output, info, dtype) as writer:
        pending = {key: file for key, file in images.items() if key not in writer.done}
        if comm.is_main_process():
            print(f"{args.output}: {len(pending)} of {len(images)} images to encode")
        if pending:
            items = list(pending.items())
            own = dict(items[index] for index in InferenceSampler(len(items)))
            encoder = CLIPEncoder.from_pretrained(args.clip, args.pretrained, device=args.device)
            encode(own, encoder, writer, args.batch_size, args.num_workers)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    clip = get_ovformer_cfg().MODEL.CLIP
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", nargs="+", metavar="NAME", help="registered data sets")
    source.add_argument("--images", type=Path, help="folder of images, with its sub-folders")
    parser.add_argument(
        "--config-file", help="config whose DATASETS.CUSTOM describes a data set of your own"
    )
    parser.add_argument("--output", type=Path, required=True, help="the .safetensors file")
    parser.add_argument(
        "--clip",
        default=clip.NAME,
        help="open_clip model name, or local-dir:FOLDER (default: %(default)s)",
    )
    parser.add_argument(
        "--pretrained",
        default=clip.PRETRAINED,
        help="open_clip tag, or a file of weights (default: %(default)s)",
    )
    parser.add_argument("--half", action="store_true", help="store float16 instead of float32")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-workers", type=int, default=4, help="processes that decode images")
    parser.add_argument(
        "--num-gpus", type=int, default=1, help="processes; with --device cpu, too (default: 1)"
    )
    parser.add_argument("--device", help="for example cpu or cuda (default: a GPU if there is one)")
    return parser


def find_dataset_images(names: Iterable[str]) -> dict[str, str]:
    """Return key -> file of all images, or frames of videos, of registered data sets.

    Raises:
        ValueError: a data set is unknown.
        FileNotFoundError: an annotation file or an image is missing.
    """
    images = {}
    for name in names:
        records = load_dataset(name, "--dataset")
        check_images_exist(name, records)
        for entry in iterate_images(records):
            file = entry["file_name"]
            images[entry.get("clip_key") or make_image_key(file)] = file
    return images


def find_folder_images(folder: Path) -> dict[str, str]:
    """Return key -> file of all images in a folder and its sub-folders.

    Raises:
        FileNotFoundError: the folder holds no image.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise FileNotFoundError(
            f"--images: no image in {folder}. Looked for {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return {make_image_key(file): str(file) for file in files}


class ClipImages(Dataset):
    """Image files at CLIP's size, read in worker processes.

    Args:
        images: key -> file.
        size: side S of the image that CLIP takes, in pixels.
    """

    def __init__(self, images: dict[str, str], size: int):
        self.images = list(images.items())
        self.size = size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[str, torch.Tensor]:
        """Return the key and the image, uint8 (3, S, S)."""
        key, file = self.images[index]
        return key, crop_for_embedding(read_rgb(file), self.size)


def encode(
    images: dict[str, str],
    encoder: CLIPEncoder,
    writer: ImageEmbeddingWriter,
    batch_size: int,
    num_workers: int,
) -> None:
    """Encode images in batches and hand their features to the writer.

    Args:
        images: key -> file.
        encoder: the CLIP model.
        writer: takes the features.
        batch_size: number of images that are encoded together.
        num_workers: processes that decode images; 0 decodes in this one.
    """
    dataset = ClipImages(images, encoder.image_size)
    with tqdm(total=len(images), unit="image", disable=not comm.is_main_process()) as progress:
        for keys, batch in DataLoader(dataset, batch_size, num_workers=num_workers):
            writer.add(keys, encoder.encode_image(batch))
            progress.update(len(keys))


if __name__ == "__main__":
    main()
