"""Score a results.json of a video data set against its ground truth.

python mAP.py --dt output --et lvvis_val
python mAP.py --dt output/inference/burst_val/results.json --et burst_val --protocol hota
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ovformer.arguments import exit_on_user_error, unit_float
from ovformer.config import get_ovformer_cfg
from ovformer.d2 import MetadataCatalog
from ovformer.data.catalog.custom import register_custom
from ovformer.data.catalog.dataset_spec import check_dataset_name, load_categories
from ovformer.data.files.json_file import name_file_in_errors
from ovformer.data.files.vis_json import group_categories, load_vis_json
from ovformer.evaluation.duplicates import merge_predictions
from ovformer.evaluation.results_reader import PredictionCounter, find_results, read_results
from ovformer.evaluation.video_metric import VideoMetric, get_protocol


def main(argv: Sequence[str] | None = None) -> None:
    """Score the results that the command line names."""
    parser = make_parser()
    args = parser.parse_args(argv)
    with exit_on_user_error(parser):
        score(args)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description="Average precision, or HOTA, of video instance segmentation."
    )
    parser.add_argument(
        "--dt",
        type=Path,
        default=Path("output"),
        metavar="DIR|FILE",
        help="folder of a run, or a results.json (default: output)",
    )
    parser.add_argument(
        "--et",
        default="lvvis_val",
        metavar="NAME",
        # The published default is the text of a tuple, ("lvvis_val",).
        type=lambda name: name.strip("()[]\"', "),
        help="data set, for example burst_val or ytvis_2019_train (default: lvvis_val)",
    )
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        help="config whose DATASETS.CUSTOM describes a data set of your own",
    )
    parser.add_argument(
        "--gt", type=Path, metavar="FILE", help="ground truth (default: the data set's own)"
    )
    parser.add_argument(
        "--protocol",
        choices=["standard", "published", "hota"],
        default="standard",
        help="standard: AP; published: as the published code scores, which for BURST lets many "
        "predictions match one ground truth; hota: HOTA and identity switches, for BURST its "
        "official HOTA and track AP",
    )
    parser.add_argument(
        "--merge-tracks",
        action="store_true",
        help="score what predict.py shows: each object once, with its best name and one identity",
    )
    parser.add_argument(
        "--score-threshold",
        type=unit_float,
        default=0.0,
        metavar="S",
        help="with --merge-tracks: leave out predictions with a lower score (default: 0)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (default: next to the results)"
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="processes for BURST's hota (default: 1)"
    )
    return parser


def score(args: argparse.Namespace) -> None:
    """Score results, print the table, and write it as JSON and CSV."""
    register_custom(get_ovformer_cfg(args.config_file).DATASETS.CUSTOM)
    check_dataset_name(args.et, "--et")
    # A data set that other code registered has no spec: nothing says how to score it.
    spec = MetadataCatalog.get(args.et).get("spec")
    if spec is None or spec.evaluator not in ("vis", "burst"):
        raise ValueError(f"--et: {args.et} is not a video data set; train_net.py scores images.")
    results = find_results(args.dt, args.et)
    truth = args.gt or spec.annotation_file()
    print(f"{args.et}: {results} against {truth}, protocol {args.protocol}")
    ground_truth = load_vis_json(truth)
    groups = group_categories(
        ground_truth["categories"], spec.groups, load_categories(spec.categories)
    )
    # Predictions stream from the file through the counter into the metric: results of BURST or
    # LV-VIS may not fit into memory as a whole.
    counter = PredictionCounter(ground_truth)
    predictions = counter.count(read_results(results))
    if args.merge_tracks:
        predictions = merge_predictions(ground_truth, predictions, args.score_threshold)
    predictions = tqdm(predictions, desc=args.et, unit=" predictions")
    name = "scores" if args.protocol == "standard" else f"scores_{args.protocol}"
    name += "_merged" if args.merge_tracks else ""
    out = (args.out or results.parent) / name
    about = {"dataset": args.et, "results": str(results), "ground_truth": str(truth)}
    if args.protocol == "hota":
        # Imported here: only this protocol needs a package of the extra [eval].
        from ovformer.evaluation.burst_hota import score_burst_hota
        from ovformer.evaluation.hota import format_hota, score_hota, write_hota

        with name_file_in_errors(results):
            if spec.evaluator == "burst":
                hota = score_burst_hota(ground_truth, predictions, groups, args.workers)
            else:
                hota = score_hota(ground_truth, predictions, groups)
        print(format_hota(hota))
        write_hota(hota, out, **about)
    else:
        metric = VideoMetric(ground_truth, groups, get_protocol(args.protocol, spec.evaluator))
        with name_file_in_errors(results):
            metric.update(predictions)
        scores = metric.compute()
        if scores.note:
            print(f"Note: {scores.note}.")
        print(scores.table())
        scores.write(out, **about)
    # Only now: the counter is complete when all predictions have passed it.
    for note in counter.warnings():
        print(f"Note: {note}")
    print(f"Written to {out}.json and {out}.csv")


if __name__ == "__main__":
    main()
