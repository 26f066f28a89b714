#!/usr/bin/env python
"""Draw a video of coloured shapes, a novel one of each colour, to try a model on.

    python tools/make_film.py --output film.mp4

It is unlike the videos of the ``shapes`` benchmark: larger, oblong, longer, on stripes, and
compressed. Two more files are written beside it: its ground truth, film.json in the format of
YouTube-VIS, and the names of all novel categories, film.txt. The same arguments draw the same
video.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from make_shapes import track_annotations
from ovformer.arguments import exit_on_user_error, positive_int
from ovformer.data.files.json_file import write_json
from ovformer.data.files.video_writer import VideoWriter
from ovformer.files import write_text
from ovformer.predictor.predictions import to_categories
from ovformer_tools.shape_scenes import (
    CATEGORY_NAMES,
    NOVEL_NAMES,
    MovingScene,
    ShapeObject,
    draw_moving_scene,
)

WIDTH, HEIGHT = 384, 288
RADII = (30.0, 56.0)
RATE = 12.0  # frames per second


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the video that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="the .mp4 file")
    parser.add_argument("--frames", type=positive_int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    with exit_on_user_error(parser):
        make_film(args)


def make_film(args: argparse.Namespace) -> None:
    """Draw the video, and write it with its ground truth and the novel names."""
    rng = np.random.default_rng([args.seed, 2])
    novel = [i for i in rng.permutation(len(CATEGORY_NAMES)) if CATEGORY_NAMES[i] in NOVEL_NAMES]
    # The last novel category of each colour: objects of one colour would not overlap.
    by_colour = {CATEGORY_NAMES[index].split()[0]: index for index in novel}
    chosen = list(by_colour.values())
    square = draw_moving_scene(
        rng, chosen, args.frames, WIDTH, RADII, background=stripes(rng), move=sway
    )
    scene = crop(square)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(args.output, RATE) as writer:
        for t, image in enumerate(scene.images):
            writer.write(image, t / RATE)
    video = {"id": 1, "width": WIDTH, "height": HEIGHT, "length": args.frames}
    video["file_names"] = [f"frame{t:06d}" for t in range(args.frames)]
    tracks = [
        {"id": number, "video_id": 1, **annotation}
        for number, annotation in enumerate(track_annotations(scene), start=1)
    ]
    content = {
        "videos": [video],
        "annotations": tracks,
        "categories": to_categories(CATEGORY_NAMES),
    }
    write_json(args.output.with_suffix(".json"), content)
    write_text(args.output.with_suffix(".txt"), "".join(f"{n}\n" for n in sorted(NOVEL_NAMES)))
    print(f"{args.output}: {', '.join(CATEGORY_NAMES[c] for c in scene.categories)}")


def stripes(rng: np.random.Generator) -> np.ndarray:
    """Return a background of slanting stripes, from dark to light: float32 (W, W, 3), 0..255."""
    y, x = np.mgrid[:WIDTH, :WIDTH].astype(np.float32) / WIDTH
    slant, waves = rng.uniform(0.3, 1.5), rng.uniform(9, 16)
    grey = 80 + 80 * (x + y) / 2 + 14 * np.sin(2 * np.pi * waves * (x + slant * y))
    return (grey[..., None] + rng.uniform(-10, 10, 3)).astype(np.float32)


def sway(rng: np.random.Generator, item: ShapeObject, num_frames: int) -> list[ShapeObject]:
    """Move an object on an ellipse while it turns and changes its size; it starts in sight."""
    # The rows outside the middle HEIGHT are cut off later.
    least = (WIDTH - HEIGHT) / 2 + item.radius
    home = np.array([item.centre[0], np.clip(item.centre[1], least, WIDTH - least)])
    reach, phase = rng.uniform(15, 70, 2), rng.uniform(0, 2 * np.pi, 2)
    turns, spin = rng.uniform(0.5, 1.5), rng.uniform(-2, 2) * np.pi
    poses = []
    for part in np.arange(num_frames) / num_frames:
        angle = 2 * np.pi * turns * part + phase
        way = reach * (np.sin(angle) - np.sin(phase))
        poses.append(
            replace(
                item,
                centre=tuple(home + way),
                radius=item.radius * (1 + 0.15 * np.sin(angle[0])),
                angle=item.angle + spin * part,
            )
        )
    return poses


def crop(scene: MovingScene) -> MovingScene:
    """Return the middle HEIGHT rows of a square video."""
    rows = slice((WIDTH - HEIGHT) // 2, (WIDTH + HEIGHT) // 2)
    images = [image[rows] for image in scene.images]
    return MovingScene(images, scene.categories, scene.masks[:, :, rows])


if __name__ == "__main__":
    main()
