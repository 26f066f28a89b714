#!/usr/bin/env python
"""Find, follow and name the objects of a video, a picture or a folder of frames, by your words.

    python tools/predict.py my.mp4 --vocabulary "dog, red ball, person on a skateboard" \
        --weights model.pth --output out/

writes into the output folder: a film (or a picture) with the objects drawn, results.json in the
format of evaluations, annotations.json in that of YouTube-VIS (of a picture, or with --model image:
COCO), and index.html with the film, a timeline of each object and thumbnails. Ctrl-C keeps what was
done. Needs the extra [demo]: pip install 'ovformer[demo]'. What happens with unusual input:
docs/predict.md.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from ovformer.arguments import positive_int, seconds
from ovformer.config import UnknownKeyError
from ovformer.d2 import setup_logger
from ovformer.data.files.video_files import Frame, VideoSource
from ovformer.demo.output_folder import Choice, Watch, predict_to_folder
from ovformer.predictor.model_options import add_model_options, load_predictor

INTERRUPTED = 130  # exit status, as shells have it
LISTED = 200  # objects that are printed, the best ones; the page lists as many


def main(argv: Sequence[str] | None = None) -> None:
    """Predict, write the results, draw."""
    parser = make_parser()
    args = parser.parse_args(argv)
    for name in ("ovformer", "fvcore"):
        setup_logger(name=name).setLevel(logging.WARNING)
    try:
        is_complete = run(args)
    except (FileNotFoundError, ModuleNotFoundError, UnknownKeyError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except OSError as error:
        parser.exit(2, f"{parser.prog}: error: {args.output}: {error}. What is there stays.\n")
    except KeyboardInterrupt:
        parser.exit(INTERRUPTED, "\nInterrupted.\n")
    sys.exit(0 if is_complete else INTERRUPTED)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("input", type=Path, help="video, picture, or folder of frames")
    add("--output", type=Path, required=True, help="folder")
    add_model_options(parser)
    add(
        "--max-objects",
        type=positive_int,
        metavar="N",
        help="most objects in results.json, with --model image of each frame (default: "
        "TEST.DETECTIONS_PER_IMAGE)",
    )
    add("--stride", type=positive_int, default=1, metavar="N", help="look at one frame of N")
    add("--every", type=seconds, default=0.0, metavar="SECONDS", help="look at one frame each time")
    add("--frames-out", action="store_true", help="also write each drawn frame as PNG")
    return parser


def run(args: argparse.Namespace) -> bool:
    """Do what the command line says; return whether it was not interrupted."""
    source = VideoSource(args.input)
    path = Path(os.path.abspath(args.input))  # which has a name where "." has none
    predictor = load_predictor(args)
    choice = Choice(
        stride=args.stride,
        every=args.every,
        score_threshold=args.score_threshold,
        max_objects=args.max_objects,
        frames_out=args.frames_out,
    )
    written = predict_to_folder(
        predictor,
        source,
        args.output,
        choice,
        Terminal(),
        title=path.name,
        stem=f"{path.stem}_objects",
    )
    best = written.best
    for item in best.objects[:LISTED]:
        print(f"{item.score:.2f}  {item.name}")
    if len(best.objects) > LISTED:
        print(f"... and {len(best.objects) - LISTED} more")
    print(f"{len(best.objects)} objects in {len(best.times)} frames: {args.output}/index.html")
    return not written.is_stopped


class Terminal(Watch):
    """Bars that show rate and remaining time, and stopping by Ctrl-C."""

    @contextmanager
    def stopping(self) -> Iterator[Callable[[], bool]]:
        """Let the first Ctrl-C set a flag, which the function that is given tells; a second end."""
        asked = []

        def stop(*_: object) -> None:
            if asked:
                raise KeyboardInterrupt
            asked.append(True)
            print(
                "\nStopping: what was done is kept. Ctrl-C again to stop at once.", file=sys.stderr
            )

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield lambda: bool(asked)
        finally:
            signal.signal(signal.SIGINT, before)

    def bar(self, frames: Iterable[Frame], total: int | None, text: str) -> Iterable[Frame]:
        """Return the same frames, with a bar."""
        return tqdm(frames, total=total, desc=text, unit="frame")


if __name__ == "__main__":
    main()
