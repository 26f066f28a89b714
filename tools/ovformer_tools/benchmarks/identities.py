"""Count objects of a stream that keep their number, also after they were out of sight.

Each video has four drawn objects; one of them leaves the frame and returns. A model that was
trained on the ``shapes`` benchmark follows them. Two ways of showing its tracks are compared: the
best track of each frame, with the number of that track ("by frame"), and the number that all tracks
on the object vote for ("votes").
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ovformer.evaluation.duplicates import StreamIdentities
from ovformer.predictor import VideoPredictor
from ovformer.predictor.predictions import ObjectInFrame, drop_overlaps, merge_objects
from ovformer.predictor.video_predictor import WITNESS_RATIO
from ovformer_tools import shape_scenes

SIZE = 128
CENTRES = ((32, 32), (96, 32), (32, 96), (96, 96))
# Frames before the object has left, and after it has returned; and when numbers are compared.
BEFORE, AFTER = 12, 12
FIRST_LOOK, LAST_LOOK = 6, -2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--weights", required=True, help="a checkpoint with names and CLIP model")
    parser.add_argument("--gaps", type=int, nargs="+", default=[5, 20, 60], help="frames unseen")
    parser.add_argument("--videos", type=int, default=12, help="of each gap (default: %(default)s)")
    parser.add_argument("--score-threshold", type=float, default=0.25, help="(default: 0.25)")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Follow the objects of each video once, and number them in both ways."""
    predictor = VideoPredictor.from_checkpoint(
        None, Path(args.weights), vocabulary="shapes", opts=["INPUT.MIN_SIZE_TEST", str(SIZE)]
    )
    rows = []
    for gap in args.gaps:
        counts = {name: {"returned": [], "stayed": []} for name in ("by frame", "votes")}
        seconds, num_frames = 0.0, 0
        for seed in range(args.videos):
            frames = draw_video(seed, gap)
            # With this max_iou the stream shows all tracks, each with a number of its own.
            options = {"score_threshold": WITNESS_RATIO * args.score_threshold, "max_iou": 1.0}
            tracks = [frame.objects for frame in predictor.stream(frames, **options)]
            shown = [[o for o in objects if o.score >= args.score_threshold] for objects in tracks]
            compare(number_objects(shown, by_frame), counts["by frame"])
            merger = Merger(args.score_threshold)
            compare(number_objects(tracks, merger), counts["votes"])
            seconds, num_frames = seconds + merger.seconds, num_frames + len(frames)
        for name, outcome in counts.items():
            rows.append(
                {
                    "gap": gap,
                    "way": name,
                    **{
                        f"{kind} with own number": f"{sum(same)} of {len(same)}"
                        for kind, same in outcome.items()
                    },
                    "ms a frame": 1000 * seconds / num_frames if name == "votes" else 0.0,
                }
            )
    return {"videos": args.videos, "rows": rows}


def draw_video(seed: int, gap: int) -> list[np.ndarray]:
    """Return frames, uint8 (SIZE, SIZE, 3), where the first object is away for ``gap`` frames."""
    rng = np.random.default_rng(seed)
    canvas = shape_scenes.draw_background(rng, SIZE)
    categories = rng.choice(shape_scenes.BASE_INDICES, len(CENTRES), replace=False)
    objects = [
        replace(shape_scenes.random_object(rng, int(category), SIZE, (14, 20)), centre=centre)
        for category, centre in zip(categories, CENTRES, strict=True)
    ]
    frames = []
    for t in range(BEFORE + gap + AFTER):
        image = canvas.copy()
        for number, item in enumerate(objects):
            x, y = item.centre
            centre = (x + 2 * np.sin(t / 3 + number), y + 2 * np.cos(t / 4 + number))
            if number == 0 and BEFORE - 4 <= t < BEFORE + gap + AFTER - 8:
                leaving, returning = x - 22 * (t - BEFORE + 4), -44 + 22 * (t - BEFORE - gap)
                centre = (leaving if t < BEFORE else min(x, returning), y)
            item = replace(item, centre=centre)
            shape_scenes.paint(image, shape_scenes.object_alpha(item, SIZE), item.rgb)
        frames.append(shape_scenes.finish(rng, image))
    return frames


def by_frame(objects: list[ObjectInFrame]) -> list[ObjectInFrame]:
    """Return the tracks of a frame without those that a better one covers."""
    return drop_overlaps(objects, 0.7)


class Merger:
    """Numbers objects by votes, and measures the seconds that it takes."""

    def __init__(self, score_threshold: float) -> None:
        self._identities = StreamIdentities()
        self._score_threshold = score_threshold
        self.seconds = 0.0

    def __call__(self, objects: list[ObjectInFrame]) -> list[ObjectInFrame]:
        """Return the objects of the next frame."""
        start = time.perf_counter()
        merged = merge_objects(objects, self._identities, self._score_threshold)
        self.seconds += time.perf_counter() - start
        return merged


def number_objects(
    tracks: Sequence[list[ObjectInFrame]],
    show: Callable[[list[ObjectInFrame]], list[ObjectInFrame]],
) -> list[dict[int, int]]:
    """Return place -> number of the object that is shown there, for the two frames to compare."""
    shown = [show(objects) for objects in tracks]
    found = []
    for objects in (shown[FIRST_LOOK], shown[LAST_LOOK]):
        places = {}
        for item in objects:
            rows, columns = np.nonzero(item.mask)
            for place, (x, y) in enumerate(CENTRES):
                if abs(columns.mean() - x) < 16 and abs(rows.mean() - y) < 16:
                    places.setdefault(place, item.track_id)
        found.append(places)
    return found


def compare(found: Sequence[dict[int, int]], counts: dict[str, list[bool]]) -> None:
    """Add whether each object that is seen in both frames has the same number in both."""
    first, last = found
    for place in first.keys() & last.keys():
        counts["returned" if place == 0 else "stayed"].append(first[place] == last[place])
