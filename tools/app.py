#!/usr/bin/env python
"""Serve a page that finds, tracks and names the objects of uploaded videos and images, by words.

    python tools/app.py --weights model.pth --vocabulary "dog, red ball"

Then http://127.0.0.1:7860 has a field for a file and one for words, and shows the output video, a
timeline of each object, and files to download. It does what tools/predict.py does, for one visitor
at a time. Ctrl-C ends it and removes all uploads and results. Needs the extra [demo]:
pip install 'ovformer[demo]'. Its limits: docs/predict.md.
"""

import argparse
import logging
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ovformer.arguments import exit_on_user_error, positive_int
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
    with (
        exit_on_user_error(parser),
        tempfile.TemporaryDirectory(prefix="ovformer_app_", ignore_cleanup_errors=True) as folder,
    ):
        run(args, Path(folder).resolve())


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
        help="frames of a video that are used, the rest is skipped (default: %(default)s)",
    )
    return parser


def run(args: argparse.Namespace, folder: Path) -> None:
    """Load the model and serve the page, with all temporary files in a folder."""
    # gradio keeps uploads here and serves files from here, and from nowhere else on this machine.
    os.environ["GRADIO_TEMP_DIR"] = os.environ["GRADIO_EXAMPLES_CACHE"] = str(folder)
    import_gradio()
    Painter()  # fails now, and not at the first visit, if supervision is not installed
    predictor = load_predictor(args)
    words = args.vocabulary
    if any(map(is_vocabulary_file, words.split(","))):  # visitors may not name files
        words = ", ".join(predictor.names)
    # A broken model or a wrong CLIP model fails now, and not at the first visit.
    predictor.predict(np.zeros((64, 64, 3), np.uint8))
    limits = Limits(upload_mb=args.max_upload_mb, frames=args.max_frames)
    service = PredictionService(predictor, folder / "results", limits)
    serve(make_page(service, words, args.score_threshold), service, args.host, args.port)


if __name__ == "__main__":
    main()
