#!/usr/bin/env python
"""Write a page about a training: scores, pictures of what it finds, loss curves, commands.

    python tools/make_report.py --dataset shapes_val --run output/quickstart/train \
        --control output/quickstart/control --video-dataset shapes_video_val \
        --zero-shot output/quickstart/zero_shot --clips output/quickstart/clips \
        --film output/quickstart/named_film --film-others output/quickstart/named_film_all \
        --film-truth output/quickstart/film.json \
        --steps output/quickstart/steps.json --output output/quickstart/report.html

The page needs no other file; its pictures are also written beside it: predictions.png, films.png,
losses.png and clip_losses.png. All numbers and predictions are read from the files of the runs.
"""

import argparse
import base64
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from ovformer.d2 import MetadataCatalog
from ovformer.data.files.json_file import read_json
from ovformer.data.files.untrusted_masks import find_fault
from ovformer.files import write_text
from ovformer_tools.reports.films import draw_films
from ovformer_tools.reports.images import draw_losses, draw_predictions
from ovformer_tools.reports.tried_film import film_section

# Titles of the two models on videos.
ZERO_SHOT, CLIPS = "zero-shot", "clip-trained"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img, video { max-width: 100%; }
td.right { color: #187a4a; } td.wrong { color: #b22; }
pre { background: #f4f4f4; padding: .6rem; overflow-x: auto; font-size: 13px;
      margin: .2rem 0 1rem; }
.bars { columns: 3; font-size: 14px; }
.bar { display: flex; gap: .5rem; break-inside: avoid; }
.bar span { width: 9rem; } .bar i { background: #4878d0; height: .8rem; margin-top: .3rem; }
.bar .novel { background: #d65f9e; }
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the runs, draw the pictures, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, help="registered data set that was evaluated")
    parser.add_argument("--run", type=Path, required=True, help="OUTPUT_DIR of the training")
    parser.add_argument("--control", type=Path, required=True, help="OUTPUT_DIR of the control")
    parser.add_argument("--video-dataset", required=True, help="registered data set of videos")
    parser.add_argument(
        "--zero-shot", type=Path, required=True, help="OUTPUT_DIR of the image model on the videos"
    )
    parser.add_argument("--clips", type=Path, required=True, help="OUTPUT_DIR of the clip model")
    parser.add_argument(
        "--film", type=Path, required=True, help="output of tools/predict.py for a film"
    )
    parser.add_argument("--film-others", type=Path, required=True, help="the same with other words")
    parser.add_argument("--film-truth", type=Path, required=True, help="what is in that film")
    parser.add_argument("--steps", type=Path, required=True, help="commands and their seconds")
    parser.add_argument("--output", type=Path, required=True, help="the .html file")
    args = parser.parse_args(argv)

    results = args.run / "inference" / args.dataset
    scores = read_json(results / "scores.json")
    control = read_json(args.control / "inference" / args.dataset / "scores.json")
    pictures = args.output.parent / "predictions.png"
    curves = args.output.parent / "losses.png"
    clip_curves = args.output.parent / "clip_losses.png"
    strips = args.output.parent / "films.png"
    draw_predictions(args.dataset, read_predictions(results / "results.json"), pictures)
    folders = {ZERO_SHOT: args.zero_shot, CLIPS: args.clips}
    folders = {title: run / "inference" / args.video_dataset for title, run in folders.items()}
    groups = {t: read_json(folder / "scores.json")["groups"] for t, folder in folders.items()}
    tubes = {t: read_predictions(folder / "results.json") for t, folder in folders.items()}
    draw_films(args.video_dataset, tubes, strips)
    draw_losses(args.run / "metrics.json", curves)
    draw_losses(args.clips / "metrics.json", clip_curves)
    novel = novel_names(args.dataset)
    page = "\n".join(
        [
            "<!doctype html><html lang=en><meta charset=utf-8><title>OVFormer: report</title>",
            f"<style>{STYLE}</style>",
            f"<h1>OVFormer on {escape(args.dataset)}</h1>",
            score_table(scores["segm"], control["segm"]),
            "<h2>What it finds</h2>",
            "<p>The first images that have a novel object and one more. Left what is there, right "
            "what was predicted: a name on green is right, a name on red is not. "
            "A star marks novel names: no such object was annotated or shown in training.</p>",
            inline_image(pictures, "predictions next to the ground truth"),
            "<h2>AP50 of each category</h2>",
            category_bars(scores["categories"], novel),
            "<h2>Videos</h2>",
            video_table(groups),
            "<p>An object's outline has the colour that stands before its name, in all frames of "
            "all rows of a video. A name in green is right, a name in red is not.</p>",
            inline_image(strips, "frames of videos with what both models find"),
            "<h2>A film</h2>",
            "<p>It was drawn apart from the benchmark: larger, oblong, longer, on another "
            "background, and compressed. It shows a novel object of each colour. The image model "
            "followed them, zero-shot, and named them from the names of the novel categories; "
            "the last column has what it chose from all names, where those of base categories, "
            "which were trained, compete.</p>",
            film_section(args.film, args.film_others, args.film_truth),
            "<h2>Training on images</h2>",
            inline_image(curves, "loss curves"),
            "<h2>Training on clips</h2>",
            inline_image(clip_curves, "loss curves"),
            "<h2>How this was made</h2>",
            command_list(read_json(args.steps)),
            "</html>",
        ]
    )
    write_text(args.output, page)
    print(score_lines(score_rows(scores["segm"], control["segm"])))
    print(score_lines(video_rows(groups)))
    print(f"{args.output}, {pictures}, {strips}, {curves}, {clip_curves}")


def read_predictions(path: Path) -> list[dict]:
    """Return the predictions of a results.json of images or of videos, after a look at its masks.

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


def novel_names(dataset_name: str) -> set[str]:
    """Return the names of the classes in the data set's group "novel"."""
    metadata = MetadataCatalog.get(dataset_name)
    return {metadata.thing_classes[index] for index in metadata.class_groups["novel"]}


def score_rows(scores: Mapping, control: Mapping) -> list[tuple[str, float, float]]:
    """Return rows of what was measured, AP and AP50."""
    return [
        ("base categories", scores["AP_base"], scores["AP50_base"]),
        ("novel categories", scores["AP_novel"], scores["AP50_novel"]),
        ("control: novel, names swapped", control["AP_novel"], control["AP50_novel"]),
    ]


def video_rows(groups: Mapping[str, Mapping]) -> list[tuple[str, float, float]]:
    """Return rows of what was measured on videos, AP and AP50 in percent.

    Args:
        groups: title of a model -> group -> scores from 0 to 1, as in ``scores.json``.
    """
    return [
        (f"{title}, {group}", *(100 * (scores[group][name] or 0.0) for name in ("AP", "AP50")))
        for group in ("base", "novel")
        for title, scores in groups.items()
    ]


def score_lines(rows: Sequence[tuple[str, float, float]]) -> str:
    """Return scores as text."""
    lines = [f"{'':32}{'AP':>6}{'AP50':>8}"]
    return "\n".join(lines + [f"{name:32}{ap:6.1f}{ap50:8.1f}" for name, ap, ap50 in rows])


def html_table(corner: str, rows: Sequence[tuple[str, float, float]]) -> str:
    """Return scores as an HTML table."""
    lines = "".join(f"<tr><td>{name}<td>{ap:.1f}<td>{ap50:.1f}" for name, ap, ap50 in rows)
    return f"<table><tr><th>{corner}<th>AP<th>AP50{lines}</table>"


def score_table(scores: Mapping, control: Mapping) -> str:
    """Return the scores on images as HTML, with what they mean."""
    return (
        "<p>Mask AP in percent. Novel categories are combinations of colour and shape that the "
        "segmenter was never shown; it knows them by their text embeddings alone. In the control "
        "each category gets the embedding of another shape of its colour: what is left of the AP "
        "does not come from reading the name.</p>" + html_table("mask", score_rows(scores, control))
    )


def video_table(groups: Mapping[str, Mapping]) -> str:
    """Return the scores on videos as HTML, with what they mean."""
    return (
        "<p>AP of tubes (masks over time) in percent. Zero-shot: the image model above, frame by "
        "frame, its queries assigned to each other over time; it saw no video in training. "
        "Clip-trained: the model that goes on from its weights on clips of videos with base "
        "categories.</p>" + html_table("tube", video_rows(groups))
    )


def category_bars(categories: Sequence[Mapping], novel: set[str]) -> str:
    """Return the AP50 of each category as bars, those of novel ones in another colour."""
    bars = []
    for category in categories:
        name, value = category["name"], category["AP50"] or 0.0
        star, kind = (" ★", "class=novel") if name in novel else ("", "")
        bars.append(
            f"<div class=bar><span>{escape(name)}{star}</span>"
            f"<i {kind} style='width:{value * 0.08:.2f}rem'></i>{value:.0f}</div>"
        )
    return f"<div class=bars>{''.join(bars)}</div>"


def command_list(steps: Sequence[Mapping]) -> str:
    """Return the commands with their durations as HTML."""
    total = sum(step["seconds"] for step in steps)
    parts = [f"<p>{total / 60:.1f} minutes in all, apart from this page.</p>"]
    for number, step in enumerate(steps, 1):
        parts.append(
            f"{number}. {escape(step['title'])} ({step['seconds']:.0f} s)"
            f"<pre>python {escape(shlex.join(step['command']))}</pre>"
        )
    return "".join(parts)


def inline_image(path: Path, alt: str) -> str:
    """Return an image as HTML with the image inside."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{alt}" src="data:image/png;base64,{data}">'


if __name__ == "__main__":
    main()
