#!/usr/bin/env python
"""Build a text classifier: CLIP's embeddings of class names, with the names inside the file.

    python tools/build_text_classifier.py \
        --vocabulary ovformer/data/catalog/categories/lvis_v1.json \
        --output datasets/metadata/lvis_v1.safetensors
    python tools/build_text_classifier.py --names "red circle" "blue ring" --output two.safetensors
    python tools/build_text_classifier.py \
        --vocabulary ovformer/data/catalog/categories/lvis_v1.json \
        --from-npy fg_bg_5_10_lvis_ens.npy --output datasets/metadata/lvis_v1.safetensors

The last one computes nothing: it adds names to a published classifier. The output is for
MODEL.MASK_FORMER.CLIP_TEXT_PATH. Classes are in the order of their category ids, as in data sets.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ovformer.arguments import choose_device, exit_on_user_error
from ovformer.config import get_ovformer_cfg
from ovformer.data.catalog.vocabulary import read_vocabulary
from ovformer.modeling.language.clip_encoder import CLIPEncoder
from ovformer.modeling.language.prompts import expand_templates
from ovformer.modeling.language.text_classifier import load_text_classifier, save_text_classifier


def main(argv: Sequence[str] | None = None) -> None:
    """Write the classifier that the command line describes."""
    parser = make_parser()
    args = parser.parse_args(argv)
    with exit_on_user_error(parser):
        build(args)


def build(args: argparse.Namespace) -> None:
    """Read the vocabulary, embed it or take given embeddings, and write the classifier."""
    args.device = choose_device(args.device)
    names = args.names or read_vocabulary(args.vocabulary)
    check_names(names)
    if args.from_npy:
        weights = load_text_classifier(args.from_npy).weights
        meta = {"source": args.from_npy.name}
    else:
        # Names in annotation files may have "_" for a space; CLIP was trained on plain text.
        templates = expand_templates(args.templates)
        encoder = CLIPEncoder.from_pretrained(args.clip, args.pretrained, device=args.device)
        weights = encoder.embed_names([name.replace("_", " ") for name in names], templates)
        meta = {"clip": args.clip, "pretrained": args.pretrained, "templates": templates}
    save_text_classifier(args.output, weights, names, meta)
    print(f"{args.output}: {len(names)} classes, width {weights.shape[1]}")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    clip = get_ovformer_cfg().MODEL.CLIP
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--names", nargs="+", metavar="NAME", help="class names, in order")
    source.add_argument(
        "--vocabulary",
        type=Path,
        help=".txt with one name per line, or .json: names, categories or an annotation file",
    )
    parser.add_argument("--output", type=Path, required=True, help="the .safetensors file")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--templates",
        nargs="+",
        default=["simple"],
        metavar="PROMPT",
        help='prompts in which {} is the name, or "simple" (7 prompts) or "imagenet" (80); the '
        "embeddings are averaged (default: simple)",
    )
    how.add_argument(
        "--from-npy", type=Path, help="take the embeddings of this classifier, (classes, width)"
    )
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
    parser.add_argument("--device", help="for example cpu or cuda (default: a GPU if there is one)")
    return parser


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError if there are no names, or if one occurs twice: two classes look the same."""
    if not names:
        raise ValueError("--vocabulary: no class names")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"class names that occur more than once: {', '.join(repeated[:10])}")


if __name__ == "__main__":
    main()
