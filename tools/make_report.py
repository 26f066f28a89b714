#!/usr/bin/env python
"""Write an HTML report about a training: scores, predictions, loss curves, commands.

    python tools/make_report.py --dataset shapes_val --run output/quickstart/train \
        --control output/quickstart/control --video-dataset shapes_video_val \
        --zero-shot output/quickstart/zero_shot --clips output/quickstart/clips \
        --film output/quickstart/named_film --film-others output/quickstart/named_film_all \
        --film-truth output/quickstart/film.json \
        --steps output/quickstart/steps.json --output output/quickstart/report.html

The report needs no other file; its figures are also written beside it: predictions.png, films.png,
losses.png and clip_losses.png. All numbers and predictions come from the files of the runs.
"""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from ovformer.arguments import exit_on_user_error
from ovformer.d2 import MetadataCatalog
from ovformer.data.files.json_file import read_json
from ovformer.data.files.untrusted_masks import find_fault
from ovformer.files import write_text
from ovformer_tools.reports.images import draw_losses, draw_predictions
from ovformer_tools.reports.output_video import read_base64, read_output_video
from ovformer_tools.reports.video_strips import draw_video_strips

# Titles of the two models on videos.
ZERO_SHOT, CLIPS = "zero-shot", "clip-trained"


def main(argv: Sequence[str] | None = None) -> None:
    """Read the runs, draw the figures, write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--dataset", required=True, help="registered data set that was evaluated")
    add("--run", type=Path, required=True, help="OUTPUT_DIR of the training")
    add("--control", type=Path, required=True, help="OUTPUT_DIR of the control")
    add("--video-dataset", required=True, help="registered data set of videos")
    add("--zero-shot", type=Path, required=True, help="OUTPUT_DIR of the image model on the videos")
    add("--clips", type=Path, required=True, help="OUTPUT_DIR of the clip model")
    add("--film", type=Path, required=True, help="output of tools/predict.py for a video")
    add("--film-others", type=Path, required=True, help="the same with other words")
    add("--film-truth", type=Path, required=True, help="annotations of that video")
    add("--steps", type=Path, required=True, help="commands and their seconds")
    add("--output", type=Path, required=True, help="the .html file")
    args = parser.parse_args(argv)
    with exit_on_user_error(parser):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Write the report and its figures, and print the scores."""
    results = args.run / "inference" / args.dataset
    scores = read_json(results / "scores.json")
    control = read_json(args.control / "inference" / args.dataset / "scores.json")
    folders = {ZERO_SHOT: args.zero_shot, CLIPS: args.clips}
    folders = {title: run / "inference" / args.video_dataset for title, run in folders.items()}
    groups = {t: read_json(folder / "scores.json")["groups"] for t, folder in folders.items()}
    tubes = {t: read_predictions(folder / "results.json") for t, folder in folders.items()}
    image_scores = list_image_scores(scores["segm"], control["segm"])
    video_scores = list_video_scores(groups)
    video = read_output_video(args.film, args.film_others, args.film_truth)
    steps = read_json(args.steps)

    figures = {
        "predictions": args.output.with_name("predictions.png"),
        "strips": args.output.with_name("films.png"),
        "losses": args.output.with_name("losses.png"),
        "clip_losses": args.output.with_name("clip_losses.png"),
    }
    predictions = read_predictions(results / "results.json")
    draw_predictions(args.dataset, predictions, figures["predictions"])
    draw_video_strips(args.video_dataset, tubes, figures["strips"])
    draw_losses(args.run / "metrics.json", figures["losses"])
    draw_losses(args.clips / "metrics.json", figures["clip_losses"])
    report = render_report(
        dataset=args.dataset,
        image_scores=image_scores,
        categories=scores["categories"],
        novel_names=find_novel_names(args.dataset),
        video_scores=video_scores,
        video=video,
        steps=[{**step, "command": shlex.join(step["command"])} for step in steps],
        **{name: read_base64(path) for name, path in figures.items()},
    )
    write_text(args.output, report)
    print(format_scores(image_scores))
    print(format_scores(video_scores))
    print(", ".join(map(str, (args.output, *figures.values()))))


def render_report(**content: Any) -> str:
    """Return the report as HTML; templates/report.html says which content it needs."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("ovformer_tools.reports"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return templates.get_template("report.html").render(content)


def read_predictions(path: Path) -> list[dict]:
    """Return the predictions of a results.json of images or of videos.

    Raises:
        ValueError: a mask is not valid.
    """
    predictions = read_json(path)
    tubes = (
        p["segmentations"] if "segmentations" in p else [p["segmentation"]] for p in predictions
    )
    if fault := find_fault(mask for tube in tubes for mask in tube if mask):
        raise ValueError(f"{path}: a mask is not valid: {fault.reason}.")
    return predictions


def find_novel_names(dataset_name: str) -> set[str]:
    """Return the names of the classes in the data set's group "novel"."""
    metadata = MetadataCatalog.get(dataset_name)
    return {metadata.thing_classes[index] for index in metadata.class_groups["novel"]}


def list_image_scores(scores: Mapping, control: Mapping) -> list[tuple[str, float, float]]:
    """Return title, AP and AP50, in percent, of the categories on images."""
    return [
        ("base categories", scores["AP_base"], scores["AP50_base"]),
        ("novel categories", scores["AP_novel"], scores["AP50_novel"]),
        ("control: novel, names swapped", control["AP_novel"], control["AP50_novel"]),
    ]


def list_video_scores(groups: Mapping[str, Mapping]) -> list[tuple[str, float, float]]:
    """Return title, AP and AP50, in percent, of the models on videos.

    Args:
        groups: title of a model -> group -> scores from 0 to 1, as in ``scores.json``.
    """
    return [
        (f"{title}, {group}", *(100 * (scores[group][name] or 0.0) for name in ("AP", "AP50")))
        for group in ("base", "novel")
        for title, scores in groups.items()
    ]


def format_scores(rows: Sequence[tuple[str, float, float]]) -> str:
    """Return scores as a table of text."""
    lines = [f"{'':32}{'AP':>6}{'AP50':>8}"]
    return "\n".join(lines + [f"{name:32}{ap:6.1f}{ap50:8.1f}" for name, ap, ap50 in rows])


if __name__ == "__main__":
    main()
