#!/usr/bin/env python
"""Pack results for the servers of YouTube-VIS, OVIS and LV-VIS, after checking them.

    python tools/ytvis_json.py --dataset ytvis_2019_val \
        --results output/inference/ytvis_2019_val/results.json

writes all.zip, base.zip and novel.zip next to the results. YouTube-VIS 2019 has 33 base and 7 novel
classes, so AP = (33 * base + 7 * novel) / 40; YouTube-VIS 2021 has 34 and 6. OVIS has no novel
classes: only all.zip is written. LV-VIS gets all three (--dataset lvvis_test).
"""

import argparse
import contextlib
import json
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from ovformer.arguments import exit_on_user_error, positive_int
from ovformer.config import get_ovformer_cfg
from ovformer.d2 import MetadataCatalog
from ovformer.data.catalog.custom import register_custom
from ovformer.data.catalog.dataset_spec import check_dataset_name
from ovformer.data.files.vis_json import group_categories, load_vis_json
from ovformer.evaluation.results_reader import FIELDS, PredictionCounter, find_results, read_checked
from ovformer.files import replacing


def main(argv: Sequence[str] | None = None) -> None:
    """Pack the results that the command line names."""
    parser = make_parser()
    args = parser.parse_args(argv)
    with exit_on_user_error(parser):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Check the results, write one .zip for each group of categories, and print the counts."""
    register_custom(get_ovformer_cfg(args.config_file).DATASETS.CUSTOM)
    check_dataset_name(args.dataset, "--dataset")
    metadata = MetadataCatalog.get(args.dataset)
    if metadata.evaluator_type not in ("vis", "burst"):
        raise ValueError(f"--dataset: {args.dataset} is not a data set of videos.")
    videos = load_vis_json(args.ann or Path(metadata.json_file))
    groups = {"all": {category["id"] for category in videos["categories"]}}
    groups |= group_categories(videos["categories"], metadata.spec.groups, metadata.category_info)
    results = find_results(args.results, args.dataset)
    counts = pack(results, videos, groups, args.out or results.parent, args.max_per_video)
    for path, count in counts.items():
        print(f"{path}: {count} predictions")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("output"),
        help="a results.json, or the folder of a run (default: %(default)s)",
    )
    parser.add_argument(
        "--dataset", required=True, metavar="NAME", help="for example ytvis_2019_val or ovis_val"
    )
    parser.add_argument(
        "--ann", type=Path, help="its list of videos and categories (default: the data set's own)"
    )
    parser.add_argument(
        "--config-file", help="config whose DATASETS.CUSTOM describes a data set of your own"
    )
    parser.add_argument(
        "--out", type=Path, help="folder of the .zip files (default: that of the results)"
    )
    parser.add_argument(
        "--max-per-video",
        type=positive_int,
        default=100,
        help="predictions of a video that the server takes (default: %(default)s)",
    )
    return parser


def pack(
    results: Path,
    videos: Mapping,
    groups: Mapping[str, Collection[int]],
    folder: Path,
    max_per_video: int,
) -> dict[Path, int]:
    """Write one .zip with a results.json for each group of categories.

    Args:
        results: the results file.
        videos: from :func:`ovformer.data.files.vis_json.load_vis_json`.
        groups: name of a .zip -> its category ids.
        folder: where the files are written. They replace older ones only if all results are valid.
        max_per_video: most predictions of a video.

    Returns:
        Path -> number of predictions in the file.

    Raises:
        ValueError: the results break a rule.
    """
    paths = {name: folder / f"{name}.zip" for name in groups}
    counts = dict.fromkeys(groups, 0)
    with contextlib.ExitStack() as stack:
        temporary = {name: stack.enter_context(replacing(path)) for name, path in paths.items()}
        writers = {name: stack.enter_context(_JsonZip(path)) for name, path in temporary.items()}
        for entry in check(results, videos, max_per_video):
            for name, members in groups.items():
                if entry["category_id"] in members:
                    writers[name].add({key: entry[key] for key in FIELDS})
                    counts[name] += 1
    return {path: counts[name] for name, path in paths.items()}


def check(results: Path, videos: Mapping, max_per_video: int) -> Iterator[dict]:
    """Yield the predictions of a results file after checking the rules of the server.

    Raises:
        ValueError: a prediction has an unknown video or category, the wrong number of masks, masks
            of another size or a score that is not a number; or a video has too many predictions.
    """
    per_video, counter = Counter(), PredictionCounter(videos)
    for video_id, entries in tqdm(read_checked(results, videos), unit=" videos"):
        per_video[video_id] += len(entries)
        if per_video[video_id] > max_per_video:
            raise ValueError(
                f"{results}: more than {max_per_video} predictions for video {video_id}. Evaluate "
                "again with a smaller TEST.DETECTIONS_PER_IMAGE, or set --max-per-video."
            )
        yield from counter.count(entries)
    for note in counter.warnings():
        print(f"Note: {note}")


class _JsonZip:
    """A .zip file whose results.json is a list of predictions, written one by one."""

    def __init__(self, path: Path):
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
        self._file = self._zip.open("results.json", "w", force_zip64=True)
        self._separator = "["

    def __enter__(self) -> "_JsonZip":
        return self

    def add(self, entry: dict) -> None:
        """Append a prediction."""
        self._file.write((self._separator + json.dumps(entry)).encode())
        self._separator = ",\n"

    def __exit__(self, *_: object) -> None:
        self._file.write(b"]" if self._separator != "[" else b"[]")
        self._file.close()
        self._zip.close()


if __name__ == "__main__":
    main()
