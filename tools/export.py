#!/usr/bin/env python
"""Export a model to a file that runs without OVFormer: PyTorch's .pt2 or ONNX.

    python tools/export.py --weights model.pth --output model.onnx

The file takes images of any size and any vocabulary, as text embeddings. The tool reads it again
and compares it with the model at sizes that were not traced; if they differ, it writes nothing.
Inputs and outputs: docs/export.md. ONNX needs the extra [export]: pip install 'ovformer[export]'.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from ovformer.arguments import exit_on_user_error
from ovformer.d2 import setup_logger
from ovformer.export.exported_network import check_target, export
from ovformer.predictor.pretrained import ARCHITECTURES, load_pretrained

# Graphs are float32 and not compiled, regardless of the training's config.
EXPORT_OPTS = ("TEST.PRECISION", "float32", "MODEL.COMPILE", "")


def main(argv: Sequence[str] | None = None) -> None:
    """Load the model, export it, print how much both differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--weights", type=Path, required=True, help="checkpoint of a training")
    add("--output", type=Path, required=True, help="file whose name ends in .pt2 or .onnx")
    add(
        "--model",
        choices=list(ARCHITECTURES),
        help="image or video: a program for single images or frames (the same one); clip: for the "
        "frames of a clip together (default: that of the config, with video in place of image)",
    )
    add("--config-file", type=Path, help="default: the config inside the weights or beside them")
    add(
        "--keep-operator",
        action="store_true",
        help="leave deformable attention to OVFormer's operator, with its fast kernels (.pt2 only)",
    )
    args = parser.parse_args(argv)
    for name in ("ovformer", "fvcore"):
        setup_logger(name=name).setLevel(logging.WARNING)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it logs what it does not optimise
    with exit_on_user_error(parser):
        check_target(args.output, args.keep_operator)
        loaded = load_pretrained(
            args.config_file, args.weights, device="cpu", architecture=args.model, opts=EXPORT_OPTS
        )
        differences = export(loaded, args.output, args.keep_operator)
    for name, difference in differences.items():
        print(f"{name:<18} differs from the model's by {difference:.1e} of the largest value")
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
