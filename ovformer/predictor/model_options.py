"""Command-line options of scripts that predict: weights, vocabulary, device, score threshold."""

import argparse
from pathlib import Path

from ovformer.arguments import positive_int, unit_float
from ovformer.predictor.pretrained import ARCHITECTURES
from ovformer.predictor.video_predictor import VideoPredictor


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that :func:`load_predictor` reads."""
    add = parser.add_argument
    add("--weights", type=Path, required=True, help="checkpoint of a training")
    add(
        "--vocabulary",
        default="checkpoint",
        metavar="WORDS",
        help="words with commas, .txt or .json files of names, names of data sets (lvis, lvvis, "
        "coco, ...), 'checkpoint' for the names in the weights, or several of these with commas "
        "(default: %(default)s)",
    )
    add("--config-file", type=Path, help="default: the config inside the weights or beside them")
    add("--device", help="for example cpu or cuda (default: a GPU where there is one)")
    add(
        "--model",
        choices=list(ARCHITECTURES),
        help="image: each frame by itself; video: frame by frame, tracked; clip: in clips "
        "(default: that of the config, with video in place of image)",
    )
    add(
        "--templates",
        nargs="+",
        metavar="PROMPT",
        help="with {} for the name; or simple (7 prompts), imagenet (80) (default: those of the "
        "training, or simple where they are not known)",
    )
    add("--clip", metavar="NAME", help="CLIP model, as MODEL.CLIP.NAME: open_clip's or local-dir:")
    add(
        "--clip-pretrained", default="", metavar="TAG", help="its weights, as MODEL.CLIP.PRETRAINED"
    )
    add(
        "--score-threshold", type=unit_float, default=0.3, help="least score (default: %(default)s)"
    )
    add(
        "--resize",
        type=positive_int,
        metavar="PIXELS",
        help="short edge of the frames that the network gets (default: INPUT.MIN_SIZE_TEST)",
    )


def load_predictor(args: argparse.Namespace) -> VideoPredictor:
    """Return the predictor of the options that :func:`add_model_options` added.

    Raises:
        FileNotFoundError: there are no weights, or no config.
        ValueError: weights, config, vocabulary and CLIP model don't fit each other.
    """
    load = {"device": args.device, "architecture": args.model, "templates": args.templates}
    if args.clip:
        load["clip"] = (args.clip, args.clip_pretrained)
    if args.resize:
        # Frames up to 2.5 times as long as high get this short edge.
        longest = args.resize * 5 // 2
        load["opts"] = ["INPUT.MIN_SIZE_TEST", args.resize, "INPUT.MAX_SIZE_TEST", longest]
    return VideoPredictor.from_checkpoint(args.config_file, args.weights, args.vocabulary, **load)
