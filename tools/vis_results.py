#!/usr/bin/env python
"""Draw the results of a data set of videos on their frames, or its annotations.

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

from ovformer.arguments import positive_int, unit_float
from ovformer.config import get_ovformer_cfg
from ovformer.d2 import MetadataCatalog
from ovformer.data.catalog.custom import register_custom
from ovformer.data.catalog.dataset_spec import check_dataset_name, load_dataset
from ovformer.data.files.video_writer import VideoWriter
from ovformer.data.files.vis_json import load_vis_json
from ovformer.data.samples.video_reader import check_frame_size, read_frame
from ovformer.demo.painter import Painter
from ovformer.evaluation.results_reader import find_results, read_checked
from ovformer.predictor.predictions import ObjectInFrame, object_in_frame


def main(argv: Sequence[str] | None = None) -> None:
    """Read the results, draw the videos."""
    args = parse_args(argv)
    register_custom(get_ovformer_cfg(args.config_file).DATASETS.CUSTOM)
    check_dataset_name(args.dataset, "--dataset")
    records = {record["video_id"]: record for record in load_dataset(args.dataset, "--dataset")}
    categories = MetadataCatalog.get(args.dataset).category_info
    names = {category["id"]: category["name"] for category in categories}
    if args.annotations:
        results = Path(MetadataCatalog.get(args.dataset).json_file)
        predictions = annotated(results)
    else:
        results = find_results(args.results, args.dataset)
        videos = [{"id": number, **record} for number, record in records.items()]
        checked = read_checked(results, {"videos": videos, "categories": categories})
        predictions = itertools.chain.from_iterable(entries for _, entries in checked)
    chosen = best_of_videos(predictions, args.score, args.top, args.videos)
    folder = args.out or results.parent / "visualization"
    painter, folders = Painter(), folder_names(records.values())
    for number, predictions in tqdm(sorted(chosen.items()), unit="video"):
        frames = folder / folders[number]
        draw_video(records[number], predictions, names, painter, frames, args.fps)
    print(f"{folder}: {len(chosen)} videos")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments of the command line."""
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
        "--annotations", action="store_true", help="draw what is annotated instead of results"
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
    return parser.parse_args(argv)


def annotated(path: Path) -> list[dict]:
    """Return the annotations of a data set as predictions that are sure."""
    keys = ("video_id", "category_id", "segmentations")
    return [
        {**{key: annotation[key] for key in keys}, "score": 1.0}
        for annotation in load_vis_json(path).get("annotations") or []
    ]


def best_of_videos(
    predictions: Iterable[dict], least: float, top: int, videos: Sequence[int] | None
) -> dict[int, list[dict]]:
    """Return the best predictions of each video, best first.

    Args:
        predictions: entries of a results.json.
        least: score from which on one is kept.
        top: how many are kept of a video.
        videos: ids of the videos that are wanted; None for all.
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
    """Write the frames of a video, and the film that they make.

    Args:
        record: the dataset dict of the video.
        predictions: what is drawn; their places in this list are their colours.
        names: category id -> name.
        painter: draws it.
        frames: folder of the frames, as PNG; the film is beside it, with ``.mp4`` at its name.
        fps: frames per second of the film.

    Raises:
        FileNotFoundError: a frame is missing.
        OSError: a frame can't be written.
        ValueError: a frame can't be decoded or has not the size of the predictions.
    """
    size = record["height"], record["width"]
    frames.mkdir(parents=True, exist_ok=True)
    with VideoWriter(frames.with_name(f"{frames.name}.mp4"), fps) as film:
        for t, file_name in enumerate(record["file_names"]):
            frame = read_frame(record, t)
            check_frame_size(record, t, frame.shape[:2], size)
            drawn = painter(frame, seen_objects(predictions, names, t))
            film.write(drawn, t / fps)
            path = frames / f"{Path(file_name).stem}.png"
            if not cv2.imwrite(str(path), drawn[:, :, ::-1]):
                raise OSError(f"{path} can't be written: is there room on the disk?")


def folder_names(records: Iterable[dict]) -> dict[int, str]:
    """Return the name of each video's folder of frames, with its id where others have the same."""
    names = {record["video_id"]: folder_name(record) for record in records}
    count = Counter(names.values())
    return {n: name if count[name] == 1 else f"{name}_video{n}" for n, name in names.items()}


def folder_name(record: dict) -> str:
    """Return the name of a video's folder of frames; where that is none, one made of its id."""
    name = Path(record["file_names"][0]).parent.name
    return f"video{record['video_id']}" if name in ("", ".", "..") else name


def seen_objects(predictions: Sequence[dict], names: dict[int, str], t: int) -> list[ObjectInFrame]:
    """Return the predictions of a video that are not empty in frame ``t``."""
    seen = []
    for row, prediction in enumerate(predictions):
        label, rle = prediction["category_id"], prediction["segmentations"][t]
        if rle and coco_mask.area(rle):
            seen.append(object_in_frame(row, label, names[label], prediction["score"], rle))
    return seen


if __name__ == "__main__":
    main()
