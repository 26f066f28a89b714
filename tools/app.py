#!/usr/bin/env python
"""Serve a page on which a video or picture is looked at for the words that one types.

    python tools/app.py --weights model.pth --vocabulary "dog, red ball"

Then http://127.0.0.1:7860 has a field for a file and one for words, and shows the film, a timeline
of each object, and files to download. It does what tools/predict.py does, for one visitor at a
time. Ctrl-C ends it, and removes all that was sent and found. Needs the extra [demo]:
pip install 'ovformer[demo]'. What is allowed and what is not: docs/predict.md.
"""

import argparse
import logging
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ovformer.arguments import positive_int
from ovformer.config import UnknownKeyError
from ovformer.d2 import setup_logger
from ovformer.data.catalog.vocabulary import is_vocabulary_file
from ovformer.demo.browser_page import import_gradio, make_page, serve
from ovformer.demo.painter import Painter
from ovformer.demo.prediction_service import Limits, PredictionService
from ovformer.predictor.model_options import add_model_options, load_predictor


def main(argv: Sequence[str] | None = None) -> None:
    """Load the model, then serve the page."""
    parser = make_parser()
    args = parser.parse_args(argv)
    for name in ("ovformer", "fvcore"):
        setup_logger(name=name).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C
    try:
        with tempfile.TemporaryDirectory(
            prefix="ovformer_app_", ignore_cleanup_errors=True
        ) as folder:
            run(args, Path(folder).resolve())
    except (OSError, ModuleNotFoundError, UnknownKeyError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "\nInterrupted.\n")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add_model_options(parser)
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=7860, help="port to listen on (default: %(default)s)")
    limits = Limits()
    add(
        "--max-upload-mb",
        type=positive_int,
        default=limits.upload_mb,
        metavar="N",
        help="megabytes of a file, at most (default: %(default)s)",
    )
    add(
        "--max-frames",
        type=positive_int,
        default=limits.frames,
        metavar="N",
        help="frames that are looked at, the rest is left out (default: %(default)s)",
    )
    return parser


def run(args: argparse.Namespace, folder: Path) -> None:
    """Do what the command line says, with all temporary files in a folder."""
    # Where gradio keeps what is sent, and what it serves: nothing else of this machine.
    os.environ["GRADIO_TEMP_DIR"] = os.environ["GRADIO_EXAMPLES_CACHE"] = str(folder)
    import_gradio()
    Painter()  # where supervision is missing, this fails now
    predictor = load_predictor(args)
    words = args.vocabulary
    if any(map(is_vocabulary_file, words.split(","))):  # visitors name no files
        words = ", ".join(predictor.names)
    # Through the whole model once: what is wrong with it, or with its CLIP model, is seen now.
    predictor.predict(np.zeros((64, 64, 3), np.uint8))
    limits = Limits(upload_mb=args.max_upload_mb, frames=args.max_frames)
    service = PredictionService(predictor, folder / "results", limits)
    serve(make_page(service, words, args.score_threshold), service, args.host, args.port)


if __name__ == "__main__":
    main()
