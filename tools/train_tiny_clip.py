#!/usr/bin/env python
"""Train a tiny CLIP model on drawn pictures of shapes and their captions.

    python tools/train_tiny_clip.py --output datasets/shapes/clip

It replaces a real CLIP model where nothing can be downloaded: like a real one, it has seen pictures
and captions of all names, also of those that the segmenter never sees. The model is open_clip's
own, and "local-dir:datasets/shapes/clip" names it wherever open_clip is used. The same
arguments on the same number of threads give the same weights.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import Normalize
from tqdm import tqdm

from ovformer.arguments import exit_on_user_error
from ovformer.data.files.image_embeddings import crop_for_embedding
from ovformer.data.files.json_file import read_json
from ovformer.files import replacing
from ovformer.modeling.language.clip_encoder import LOCAL_PREFIX, CLIPEncoder
from ovformer_tools.shape_scenes import CATEGORY_NAMES, NOVEL_NAMES, draw_scene

CONFIG = Path(__file__).resolve().parent.parent / "configs/quickstart/tiny_clip.json"
TEMPLATES = ("{}", "a {}", "a picture of a {}", "there is a {}")
CROP_RADIUS = (8.0, 30.0)
SCENE_SIZE = 128
SIGMOID_WEIGHT = 0.3


def main(argv: Sequence[str] | None = None) -> None:
    """Train the model that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    parser.add_argument("--config", type=Path, default=CONFIG, help="open_clip_config.json to use")
    parser.add_argument("--steps", type=int, default=750)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--scenes", type=int, default=6, help="scenes of several objects per batch")
    parser.add_argument("--crops-per-name", type=int, default=120, help="pictures drawn in advance")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    with exit_on_user_error(parser):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Train, write the model's folder and print its zero-shot accuracy."""
    read_json(args.config, ("model_cfg", "preprocess_cfg"))  # before anything is written
    args.output.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(args.config, args.output / "open_clip_config.json")
    train(args)
    evaluate(args.output, args.seed)


def train(args: argparse.Namespace) -> None:
    """Train the model that ``args.output`` describes and write its weights there."""
    torch.manual_seed(args.seed)
    config = json.loads((args.output / "open_clip_config.json").read_text())
    model = CLIP(**config["model_cfg"])
    # A fixed, small scale keeps the text embeddings of similar names apart: they cannot rely on
    # large logits.
    model.logit_scale.requires_grad_(False)
    tokenizer = open_clip.get_tokenizer(f"{LOCAL_PREFIX}{args.output}")
    preprocess = config["preprocess_cfg"]
    normalize = Normalize(preprocess["mean"], preprocess["std"])
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, args.lr, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, args.steps, pct_start=0.05, cycle_momentum=False
    )
    batches = draw_batches(args.seed, args.scenes, args.crops_per_name, preprocess["size"])
    progress = tqdm(range(args.steps), desc="training CLIP", mininterval=2)
    for _ in progress:
        images, names, captions = next(batches)
        image_embeddings = F.normalize(model.encode_image(normalize(images / 255)), dim=1)
        text_embeddings = F.normalize(model.encode_text(tokenizer(captions)), dim=1)
        logits = model.logit_scale.exp() * image_embeddings @ text_embeddings.T
        loss = contrastive_loss(logits, names)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    with replacing(args.output / "open_clip_model.safetensors") as temporary:
        save_file(model.state_dict(), temporary)


def draw_batches(
    seed: int, scenes_per_batch: int, crops_per_name: int, size: int
) -> Iterator[tuple[Tensor, list[frozenset[int]], list[str]]]:
    """Yield batches of one picture of each name and some scenes with several objects.

    Each batch has a picture of each name, so every name competes with all others of its colour.

    Args:
        seed: of the pictures and of their order.
        scenes_per_batch: number of scenes.
        crops_per_name: pictures of each name that are drawn in advance, and half as many scenes;
            batches choose from them and turn them.
        size: S, side of CLIP's images in pixels.

    Yields:
        uint8 images (N, 3, S, S), the set of categories in each, and their captions.
    """
    rng = np.random.default_rng([seed, 0])
    all_names = range(len(CATEGORY_NAMES))
    crops = [draw_crops(rng, index, crops_per_name, size) for index in all_names]
    scenes = []
    for _ in range(len(all_names) * crops_per_name // 2):
        scene = draw_scene(rng, rng.choice(all_names, rng.integers(1, 6)), SCENE_SIZE)
        scenes.append(
            (crop_for_embedding(scene.image, size), frozenset(map(int, scene.categories)))
        )
    while True:
        pairs = [(crops[i][rng.integers(crops_per_name)], frozenset([i])) for i in all_names]
        pairs += [scenes[rng.integers(len(scenes))] for _ in range(scenes_per_batch)]
        images = [reorient(image, rng.integers(8)) for image, _ in pairs]
        names = [content for _, content in pairs]
        yield torch.stack(images), names, [make_caption(rng, content) for content in names]


def draw_crops(rng: np.random.Generator, category: int, count: int, size: int) -> Tensor:
    """Return pictures of one object each: uint8 (count, 3, size, size)."""
    radius = tuple(r * size / 64 for r in CROP_RADIUS)
    images = [draw_scene(rng, [category], size, radius).image for _ in range(count)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def reorient(image: Tensor, way: int) -> Tensor:
    """Rotate and mirror an image (3, S, S) in one of eight ways, 0 to 7."""
    image = torch.rot90(image, int(way) % 4, (1, 2))
    return image.flip(2) if way >= 4 else image


def make_caption(rng: np.random.Generator, categories: frozenset[int]) -> str:
    """Return a caption: a template for one name, a list in random order for several."""
    names = [CATEGORY_NAMES[i] for i in rng.permutation(sorted(categories))]
    if len(names) == 1:
        return TEMPLATES[rng.integers(len(TEMPLATES))].format(names[0])
    return ", ".join(f"a {name}" for name in names)


def contrastive_loss(logits: Tensor, names: Sequence[frozenset[int]]) -> Tensor:
    """Return CLIP's loss plus a part of SigLIP's; captions with the same names are positives.

    SigLIP's loss (Zhai et al., 2023), here without a bias, makes the cosine of pictures and wrong
    captions negative. OVFormer needs that: it scores a name by the sigmoid of a scaled cosine.

    Args:
        logits: (N, N), images by texts.
        names: the categories that each of the N pairs shows.
    """
    positive = torch.tensor([[a == b for b in names] for a in names], dtype=logits.dtype)
    target = positive / positive.sum(1, keepdim=True)
    softmax = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    sigmoid = F.binary_cross_entropy_with_logits(logits, positive, reduction="sum") / len(names)
    return softmax + SIGMOID_WEIGHT * sigmoid


def evaluate(folder: Path, seed: int, count: int = 20) -> None:
    """Print the stored model's zero-shot accuracy on new pictures of one object each."""
    encoder = CLIPEncoder.from_pretrained(f"{LOCAL_PREFIX}{folder}")
    classifier = encoder.embed_names(CATEGORY_NAMES, TEMPLATES)
    rng = np.random.default_rng([seed, 1])
    correct = {"base": [], "novel": []}
    for index, name in enumerate(CATEGORY_NAMES):
        features = encoder.encode_image(draw_crops(rng, index, count, encoder.image_size))
        hits = (F.normalize(features, dim=1) @ classifier.T).argmax(1) == index
        correct["novel" if name in NOVEL_NAMES else "base"] += hits.tolist()
    scores = ", ".join(f"{np.mean(hits):.1%} {group}" for group, hits in correct.items())
    print(f"zero-shot accuracy on new pictures of one object: {scores} (chance {1 / 36:.1%})")


if __name__ == "__main__":
    main()
