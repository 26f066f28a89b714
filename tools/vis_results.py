#!/usr/bin/env python
"""Draw the results of a video data set on its frames, or its annotations.

    python tools/vis_results.py --results output --dataset lvvis_val --score 0.5
    python tools/vis_results.py --annotations --dataset lvvis_val

writes a folder of PNG frames and an mp4 for each video that has predictions, into visualization/
next to the results or the annotation file. An object keeps its colour through the video. Needs the
extra [demo]: pip install 'ovformer[demo]'.
"""

import argparse
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
from pycocotools import mask as coco_mask
from tqdm import tqdm

from ovformer.arguments import exit_on_user_error, positive_int, unit_float
from ovformer.config import get_ovformer_cfg
from ovformer.d2 import MetadataCatalog
from ovformer.data.catalog.custom import register_custom
from ovformer.data.catalog.dataset_spec import check_dataset_name, load_dataset
from ovformer.data.files.video_writer import VideoWriter
from ovformer.data.files.vis_json import load_vis_json
from ovformer.data.samples.video_reader import check_frame_size, read_frame
from ovformer.demo.painter import Painter
from ovformer.evaluation.results_reader import find_results, read_checked
from ovformer.predictor.predictions import ObjectInFrame, make_object_in_frame


def main(argv: Sequence[str] | None = None) -> None:
    """Read the results, draw the videos."""
    parser = make_parser()
    args = parser.parse_args(argv)
    with exit_on_user_error(parser):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Draw what the command line says."""
    register_custom(get_ovformer_cfg(args.config_file).DATASETS.CUSTOM)
    check_dataset_name(args.dataset, "--dataset")
    records = {record["video_id"]: record for record in load_dataset(args.dataset, "--dataset")}
    categories = MetadataCatalog.get(args.dataset).category_info
    names = {category["id"]: category["name"] for category in categories}
    if args.annotations:
        results = Path(MetadataCatalog.get(args.dataset).json_file)
        predictions = read_annotations(results)
    else:
        results = find_results(args.results, args.dataset)
        videos = [{"id": number, **record} for number, record in records.items()]
        checked = read_checked(results, {"videos": videos, "categories": categories})
        predictions = itertools.chain.from_iterable(entries for _, entries in checked)
    best = select_best(predictions, args.score, args.top, args.videos)
    output = args.out or results.parent / "visualization"
    painter = Painter()
    folders = choose_folder_names(records.values())
    for number, of_video in tqdm(sorted(best.items()), unit="video"):
        frames = output / folders[number]
        draw_video(records[number], of_video, names, painter, frames, args.fps)
    print(f"{output}: {len(best)} videos")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("output"),
        help="a results.json, or the folder of a run (default: %(default)s)",
    )
    parser.add_argument("--dataset", required=True, metavar="NAME", help="for example lvvis_val")
    parser.add_argument(
        "--config-file", help="config whose DATASETS.CUSTOM describes a data set of your own"
    )
    parser.add_argument(
        "--annotations", action="store_true", help="draw the annotations instead of results"
    )
    parser.add_argument("--videos", type=int, nargs="+", metavar="ID", help="only these videos")
    parser.add_argument(
        "--score",
        type=unit_float,
        default=0.5,
        help="least score that is drawn (default: %(default)s)",
    )
    parser.add_argument(
        "--top",
        type=positive_int,
        default=20,
        metavar="N",
        help="most objects drawn in a video (default: %(default)s)",
    )
    parser.add_argument("--fps", type=float, default=6, help="of the mp4 (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder (default: visualization/ by the results)")
    return parser


def read_annotations(path: Path) -> list[dict]:
    """Return the annotations of a data set as predictions with a score of 1."""
    keys = ("video_id", "category_id", "segmentations")
    return [
        {**{key: annotation[key] for key in keys}, "score": 1.0}
        for annotation in load_vis_json(path).get("annotations") or []
    ]


def select_best(
    predictions: Iterable[dict], least: float, top: int, videos: Sequence[int] | None
) -> dict[int, list[dict]]:
    """Return the best predictions of each video, best first.

    Args:
        predictions: entries of a results.json.
        least: least score of a prediction that is kept.
        top: most predictions of a video.
        videos: ids of the videos; None for all.
    """
    kept = defaultdict(list)
    for prediction in predictions:
        is_wanted = videos is None or prediction["video_id"] in videos
        if is_wanted and prediction["score"] >= least:
            kept[prediction["video_id"]].append(prediction)
    return {
        number: sorted(of_video, key=lambda prediction: -prediction["score"])[:top]
        for number, of_video in kept.items()
    }


def draw_video(
    record: dict,
    predictions: Sequence[dict],
    names: dict[int, str],
    painter: Painter,
    frames: Path,
    fps: float,
) -> None:
    """Write the drawn frames of a video as PNG files and as an mp4.

    Args:
        record: the dataset dict of the video.
        predictions: those to draw; the index in this list selects the colour.
        names: category id -> name.
        painter: draws the objects.
        frames: folder of the PNG files; the mp4 is beside it and has its name.
        fps: frames per second of the mp4.

    Raises:
        FileNotFoundError: a frame is missing.
        OSError: a frame can't be written.
        ValueError: a frame can't be decoded or differs in size from the predictions.
    """
    size = record["height"], record["width"]
    frames.mkdir(parents=True, exist_ok=True)
    with VideoWriter(frames.with_name(f"{frames.name}.mp4"), fps) as video:
        for t, file_name in enumerate(record["file_names"]):
            frame = read_frame(record, t)
            check_frame_size(record, t, frame.shape[:2], size)
            drawn = painter(frame, find_visible_objects(predictions, names, t))
            video.write(drawn, t / fps)
            path = frames / f"{Path(file_name).stem}.png"
            if not cv2.imwrite(str(path), drawn[:, :, ::-1]):
                raise OSError(f"{path} can't be written: is there room on the disk?")


def choose_folder_names(records: Iterable[dict]) -> dict[int, str]:
    """Return video id -> folder name: that of its frames, with the id where two are equal."""
    names = {}
    for record in records:
        number, name = record["video_id"], Path(record["file_names"][0]).parent.name
        names[number] = f"video{number}" if name in ("", ".", "..") else name
    count = Counter(names.values())
    return {n: name if count[name] == 1 else f"{name}_video{n}" for n, name in names.items()}


def find_visible_objects(
    predictions: Sequence[dict], names: dict[int, str], t: int
) -> list[ObjectInFrame]:
    """Return the predictions of a video that have a pixel in frame ``t``."""
    seen = []
    for row, prediction in enumerate(predictions):
        label, rle = prediction["category_id"], prediction["segmentations"][t]
        if rle and coco_mask.area(rle):
            seen.append(make_object_in_frame(row, label, names[label], prediction["score"], rle))
    return seen


if __name__ == "__main__":
    main()
