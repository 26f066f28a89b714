#!/usr/bin/env python
"""Find, follow and name the objects of a video, a picture or a folder of frames, by your words.

    python tools/predict.py my.mp4 --vocabulary "dog, red ball, person on a skateboard" \
        --weights model.pth --output out/

writes into the output folder: a film (or a picture) with the objects drawn, results.json in the
format of evaluations, annotations.json in that of YouTube-VIS (of a picture: COCO), and index.html
with the film, a timeline of each object and thumbnails. Ctrl-C keeps what was done. Needs the extra
[demo]: pip install 'ovformer[demo]'. What happens with unusual input: docs/predict.md.
"""

import argparse
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median

import cv2
import numpy as np
from tqdm import tqdm

from ovformer.config import UnknownKeyError
from ovformer.d2 import setup_logger
from ovformer.files import write_atomically, write_text
from ovformer.predictor import VideoPredictor, VideoResult
from ovformer.predictor.painter import Painter, scale_for
from ovformer.predictor.predictions import annotations, evaluation_results
from ovformer.predictor.pretrained import ARCHITECTURES
from ovformer.predictor.result_page import Thumbnails, page
from ovformer.predictor.video_io import FilmWriter, Frame, VideoSource, thinned

INTERRUPTED = 130  # exit status, as shells have it


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
    add("--weights", type=Path, required=True, help="checkpoint of a training")
    add("--output", type=Path, required=True, help="folder")
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
        "--templates", nargs="+", metavar="PROMPT", help="with {} for the name, or simple, imagenet"
    )
    add("--clip", metavar="NAME", help="CLIP model, as MODEL.CLIP.NAME: open_clip's or local-dir:")
    add(
        "--clip-pretrained", default="", metavar="TAG", help="its weights, as MODEL.CLIP.PRETRAINED"
    )
    add("--score-threshold", type=float, default=0.3, help="least score (default: %(default)s)")
    add("--max-objects", type=positive, help="most objects (default: TEST.DETECTIONS_PER_IMAGE)")
    add("--stride", type=positive, default=1, metavar="N", help="look at one frame of N")
    add("--every", type=float, default=0.0, metavar="SECONDS", help="look at a frame so often")
    add(
        "--resize",
        type=positive,
        metavar="PIXELS",
        help="short edge that the network sees (default: INPUT.MIN_SIZE_TEST)",
    )
    add("--frames-out", action="store_true", help="also write each drawn frame as PNG")
    return parser


def positive(text: str) -> int:
    """Return a number of the command line, which has to be 1 or more."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return value


def run(args: argparse.Namespace) -> bool:
    """Do what the command line says; return whether it was not interrupted."""
    source = VideoSource(args.input)
    Painter()  # where supervision is missing, this fails now and not after the long work
    predictor = load_predictor(args)
    args.output.mkdir(parents=True, exist_ok=True)
    total = expected_frames(source, args)
    with stopping() as is_stopped:
        numbers: list[int] = []
        frames = noted(chosen_frames(source, args), numbers)
        frames = progress(frames, total, "looking", is_stopped)
        result = predictor.predict(frames, args.max_objects)
        is_complete = not is_stopped()
    names = source.file_names
    names = [names[n] if names else f"frame{n:06d}" for n in numbers[: len(result.times)]]
    per_frame = source.is_still or args.model == "image"
    # Of an image model, predict() has taken the most objects of each frame.
    best = result.best(args.score_threshold, None if per_frame else args.max_objects)
    write_json(args.output / "results.json", evaluation_results(result, per_frame))
    write_json(args.output / "annotations.json", annotations(best, names, per_frame))
    with stopping() as is_stopped:
        frames = chosen_frames(source, args)
        frames = (frame for frame, _ in zip(frames, result.times, strict=False))
        frames = progress(frames, len(result.times), "drawing", is_stopped)
        media, thumbnails = draw(frames, best, args, source.is_still)
        is_complete = is_complete and not is_stopped()
    notes = [] if is_complete else ["Interrupted: these are the frames up to then."]
    text = page(args.input.name, media, best, thumbnails, notes)
    write_text(args.output / "index.html", text)
    for item in best.objects:
        print(f"{item.score:.2f}  {item.name}")
    print(f"{len(best.objects)} objects in {len(result.times)} frames: {args.output}/index.html")
    return is_complete


def load_predictor(args: argparse.Namespace) -> VideoPredictor:
    """Return the predictor that the command line describes."""
    load = {"device": args.device, "architecture": args.model, "templates": args.templates}
    if args.clip:
        load["clip"] = (args.clip, args.clip_pretrained)
    if args.resize:
        longest = args.resize * 5 // 2
        load["opts"] = ["INPUT.MIN_SIZE_TEST", args.resize, "INPUT.MAX_SIZE_TEST", longest]
    return VideoPredictor.from_checkpoint(args.config_file, args.weights, args.vocabulary, **load)


def chosen_frames(source: VideoSource, args: argparse.Namespace) -> Iterator[Frame]:
    """Yield those frames of a video that the command line asks for."""
    return thinned(source, args.stride, args.every)


def noted(frames: Iterable[Frame], numbers: list[int]) -> Iterator[Frame]:
    """Yield frames, after adding their numbers to a list."""
    for frame in frames:
        numbers.append(frame.number)
        yield frame


def expected_frames(source: VideoSource, args: argparse.Namespace) -> int | None:
    """Return about how many frames these are, if the video says how many it has."""
    if not source.num_frames:
        return None
    expected = -(-source.num_frames // args.stride)
    if args.every > 0:
        expected = min(expected, int(source.num_frames / source.rate / args.every) + 1)
    return expected


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C set a flag, which the function that is given tells, and a second end."""
    asked = []

    def stop(*_: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(True)
        print("\nStopping: what was done is kept. Ctrl-C again to stop at once.", file=sys.stderr)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


def progress(
    frames: Iterable[Frame], total: int | None, text: str, is_stopped: Callable[[], bool]
) -> Iterator[Frame]:
    """Yield frames until it is time to stop, with a bar that shows rate and remaining time."""
    with tqdm(total=total, desc=text, unit="frame") as bar:
        for frame in frames:
            if is_stopped() and frame.number:
                return
            yield frame
            bar.update()


def draw(
    frames: Iterable[Frame], result: VideoResult, args: argparse.Namespace, is_still: bool
) -> tuple[str, dict[int, str]]:
    """Draw objects on frames; write the film or the picture, frames and thumbnails.

    Args:
        frames: those that were predicted.
        result: what to draw.
        args: the command line.
        is_still: write a picture in place of a film.

    Returns:
        The name of the film or picture in the output folder, and that of each track's thumbnail.
        A film has a poster.jpg: its first frame.
    """
    painter = Painter(scale_for(result.size))
    thumbnails = Thumbnails(result)
    media = f"{args.input.stem}_objects{'.png' if is_still else '.mp4'}"
    folder = args.output / "frames"
    if args.frames_out:
        folder.mkdir(exist_ok=True)
    steps = np.diff(result.times)
    rate = 1 / median(steps) if len(steps) and median(steps) > 0 else 10.0
    with nullcontext() if is_still else FilmWriter(args.output / media, rate) as film:
        for t, frame in enumerate(frames):
            thumbnails.look(t, frame.image)
            drawn = painter(frame.image, result.in_frame(t))
            if is_still:
                write_picture(args.output / media, drawn)
            else:
                film.write(drawn, frame.time)
            if t == 0 and not is_still:
                write_picture(args.output / "poster.jpg", drawn)
            if args.frames_out:
                write_picture(folder / f"{frame.number:06d}.png", drawn)
    names = {}
    for track_id, picture in thumbnails.pictures.items():
        names[track_id] = f"thumbnails/{track_id:03d}.jpg"
        (args.output / "thumbnails").mkdir(exist_ok=True)
        write_picture(args.output / names[track_id], picture)
    return media, names


def write_picture(path: Path, image: np.ndarray) -> None:
    """Write a picture, uint8 (H, W, 3) RGB, in the format that the name says."""
    is_encoded, content = cv2.imencode(path.suffix, np.ascontiguousarray(image[:, :, ::-1]))
    assert is_encoded, path
    write_atomically(path, lambda file: file.write(content))


def write_json(path: Path, content: object) -> None:
    """Write a JSON file that is complete or not there."""
    write_text(path, json.dumps(content, ensure_ascii=False))


if __name__ == "__main__":
    main()
