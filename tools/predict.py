#!/usr/bin/env python
"""Find, track and name the objects of a video, an image or a folder of frames, by your words.

    python tools/predict.py my.mp4 --vocabulary "dog, red ball, person on a skateboard" \
        --weights model.pth --output out/

writes into the output folder: the video (or image) with the objects drawn, results.json in the
format of evaluations, annotations.json in that of YouTube-VIS (of an image, or with --model image:
COCO), and index.html with the drawn video, a timeline of each object and thumbnails. Ctrl-C keeps
the frames so far. Needs the extra [demo]: pip install 'ovformer[demo]'. What happens with unusual
input: docs/predict.md.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from tqdm import tqdm

from ovformer.arguments import INTERRUPTED, exit_on_user_error, positive_int, seconds
from ovformer.d2 import setup_logger
from ovformer.data.files.video_files import Frame, VideoSource
from ovformer.demo.output_folder import PredictionOptions, Progress, predict_to_folder
from ovformer.predictor.model_options import add_model_options, load_predictor

MAX_PRINTED = 200  # objects with the highest scores; index.html lists as many


def main(argv: Sequence[str] | None = None) -> None:
    """Predict, write the results, draw them; exit with 130 if Ctrl-C ended it early."""
    parser = make_parser()
    args = parser.parse_args(argv)
    for name in ("ovformer", "fvcore"):
        setup_logger(name=name).setLevel(logging.WARNING)
    with exit_on_user_error(parser):
        is_complete = run(args)
    sys.exit(0 if is_complete else INTERRUPTED)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("input", type=Path, help="video, image, or folder of frames")
    add("--output", type=Path, required=True, help="folder")
    add_model_options(parser)
    add(
        "--max-objects",
        type=positive_int,
        metavar="N",
        help="most objects in results.json, with --model image of each frame (default: "
        "TEST.DETECTIONS_PER_IMAGE)",
    )
    add("--stride", type=positive_int, default=1, metavar="N", help="use one frame in N")
    add("--every", type=seconds, default=0.0, metavar="SECONDS", help="use one frame per this time")
    add("--frames-out", action="store_true", help="also write each drawn frame as PNG")
    return parser


def run(args: argparse.Namespace) -> bool:
    """Predict as the command line says; return whether all frames were seen and drawn."""
    source = VideoSource(args.input)
    path = Path(os.path.abspath(args.input))  # "." has no name of its own
    predictor = load_predictor(args)
    options = PredictionOptions(
        stride=args.stride,
        every=args.every,
        score_threshold=args.score_threshold,
        max_objects=args.max_objects,
        frames_out=args.frames_out,
    )
    try:
        saved = predict_to_folder(
            predictor,
            source,
            args.output,
            options,
            TerminalProgress(),
            title=path.name,
            stem=f"{path.stem}_objects",
        )
    except OSError as error:  # of a full disk, it does not name the folder
        raise OSError(f"{args.output}: {error}. Files that were written stay.") from error
    best = saved.best
    for item in best.objects[:MAX_PRINTED]:
        print(f"{item.score:.2f}  {item.name}")
    if len(best.objects) > MAX_PRINTED:
        print(f"... and {len(best.objects) - MAX_PRINTED} more")
    print(f"{len(best.objects)} objects in {len(best.times)} frames: {args.output}/index.html")
    return not saved.is_stopped


class TerminalProgress(Progress):
    """Bars with rate and remaining time; Ctrl-C stops."""

    @contextmanager
    def allow_stop(self) -> Iterator[Callable[[], bool]]:
        """Yield a function that tells whether Ctrl-C was pressed. A second Ctrl-C ends at once."""
        stopped = Event()

        def stop(*_: object) -> None:
            if stopped.is_set():
                raise KeyboardInterrupt
            stopped.set()
            print(
                "\nStopping: the frames so far are kept. Ctrl-C again to stop at once.",
                file=sys.stderr,
            )

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield stopped.is_set
        finally:
            signal.signal(signal.SIGINT, before)

    def track(self, frames: Iterable[Frame], total: int | None, text: str) -> Iterable[Frame]:
        """Return the same frames, with a progress bar."""
        return tqdm(frames, total=total, desc=text, unit="frame")


if __name__ == "__main__":
    main()
