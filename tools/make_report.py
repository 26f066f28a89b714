#!/usr/bin/env python
"""Write a page about a training: scores, pictures of what it finds, loss curves, commands.

    python tools/make_report.py --dataset shapes_val --run output/quickstart/train \
        --control output/quickstart/control --steps output/quickstart/steps.json \
        --output output/quickstart/report.html

The page needs no other file; its pictures are also written beside it, as predictions.png and
losses.png. All numbers and predictions are read from the files of the runs.
"""

import argparse
import base64
import json
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import matplotlib
import numpy as np
from pycocotools import mask as coco_mask

matplotlib.use("Agg")
from matplotlib import patheffects
from matplotlib import pyplot as plt

from ovformer.d2 import MetadataCatalog
from ovformer.data.dataset_spec import load_dataset
from ovformer.data.image_mapper import read_rgb
from ovformer.data.json_file import read_json

NUM_IMAGES = 8
# Predictions below this score are not drawn, nor those that overlap a better one by this IoU.
MIN_SCORE = 0.3
MAX_IOU = 0.5
CURVES = ("total_loss", "loss_ce", "loss_object_ce", "loss_mask", "loss_dice")
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }
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
    parser.add_argument("--steps", type=Path, required=True, help="commands and their seconds")
    parser.add_argument("--output", type=Path, required=True, help="the .html file")
    args = parser.parse_args(argv)

    results = args.run / "inference" / args.dataset
    scores = read_json(results / "scores.json")
    control = read_json(args.control / "inference" / args.dataset / "scores.json")
    pictures = args.output.parent / "predictions.png"
    curves = args.output.parent / "losses.png"
    draw_predictions(args.dataset, read_json(results / "results.json"), pictures)
    draw_losses(args.run / "metrics.json", curves)
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
            "<h2>Training</h2>",
            inline_image(curves, "loss curves"),
            "<h2>How this was made</h2>",
            command_list(read_json(args.steps)),
            "</html>",
        ]
    )
    args.output.write_text(page, encoding="utf-8")
    print(score_lines(scores["segm"], control["segm"]))
    print(f"{args.output}, {pictures}, {curves}")


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


def score_lines(scores: Mapping, control: Mapping) -> str:
    """Return the scores as text."""
    lines = [f"{'':32}{'AP':>6}{'AP50':>8}"]
    return "\n".join(
        lines + [f"{name:32}{ap:6.1f}{ap50:8.1f}" for name, ap, ap50 in score_rows(scores, control)]
    )


def score_table(scores: Mapping, control: Mapping) -> str:
    """Return the scores as HTML, with what they mean."""
    rows = "".join(
        f"<tr><td>{name}<td>{ap:.1f}<td>{ap50:.1f}"
        for name, ap, ap50 in score_rows(scores, control)
    )
    return (
        "<p>Mask AP in percent. Novel categories are combinations of colour and shape that the "
        "segmenter was never shown; it knows them by their text embeddings alone. In the control "
        "each category gets the embedding of another shape of its colour: what is left of the AP "
        "does not come from reading the name.</p>"
        f"<table><tr><th>mask<th>AP<th>AP50{rows}</table>"
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


def draw_losses(metrics: Path, path: Path) -> None:
    """Draw the losses in detectron2's ``metrics.json``.

    Args:
        metrics: a JSON object a line; those with a loss are used.
        path: the PNG file to write.
    """
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    figure, axes = plt.subplots(1, len(CURVES), figsize=(15, 2.8), layout="constrained")
    for axis, name in zip(axes, CURVES, strict=True):
        points = [(line["iteration"], line[name]) for line in lines if name in line]
        axis.plot(*zip(*points, strict=True), marker="." if len(points) < 5 else "")
        axis.set(title=name, xlabel="iteration", ylim=(0, None))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_predictions(dataset_name: str, predictions: Sequence[Mapping], path: Path) -> None:
    """Draw the ground truth and the predictions of some images, side by side.

    Args:
        dataset_name: a registered data set.
        predictions: content of ``results.json``.
        path: the PNG file to write.
    """
    metadata = MetadataCatalog.get(dataset_name)
    novel = set(metadata.class_groups["novel"])
    contiguous_ids = metadata.thing_dataset_id_to_contiguous_id
    names = [f"{name} ★" if i in novel else name for i, name in enumerate(metadata.thing_classes)]
    records = [
        record
        for record in load_dataset(dataset_name)
        if len(record["annotations"]) > 1
        and any(annotation["category_id"] in novel for annotation in record["annotations"])
    ][:NUM_IMAGES]
    figure, axes = plt.subplots(
        -(-len(records) // 2), 4, figsize=(15, 3.8 * -(-len(records) // 2)), layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for record, (truth_axis, axis) in zip(records, axes.reshape(-1, 2), strict=False):
        image = read_rgb(record["file_name"])
        truth = [(a["category_id"], a["segmentation"]) for a in record["annotations"]]
        draw_image(truth_axis, image, [(rle, names[label], "#333") for label, rle in truth])
        found = [
            (contiguous_ids[p["category_id"]], p["segmentation"], p["score"])
            for p in select_predictions(predictions, record["image_id"])
        ]
        labelled = [
            (rle, f"{names[label]} {score:.2f}", "#2a7" if is_right(label, rle, truth) else "#c33")
            for label, rle, score in found
        ]
        draw_image(axis, image, labelled)
        truth_axis.set_title("ground truth", fontsize=9)
        axis.set_title("prediction", fontsize=9)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def select_predictions(predictions: Sequence[Mapping], image_id: int) -> list[Mapping]:
    """Return the predictions of an image worth drawing: the best one of each object."""
    kept: list[Mapping] = []
    candidates = [p for p in predictions if p["image_id"] == image_id and p["score"] >= MIN_SCORE]
    for prediction in sorted(candidates, key=lambda p: -p["score"]):
        others = [other["segmentation"] for other in kept]
        if not others or iou(prediction["segmentation"], others).max() < MAX_IOU:
            kept.append(prediction)
    return kept


def is_right(label: int, rle: Mapping, truth: Sequence[tuple[int, Mapping]]) -> bool:
    """Return whether an object of that class is there, with an IoU of at least one half."""
    same = [other for other_label, other in truth if other_label == label]
    return bool(same) and iou(rle, same).max() >= 0.5


def iou(rle: Mapping, others: Sequence[Mapping]) -> np.ndarray:
    """Return the IoU of a mask with each of several ones."""
    return coco_mask.iou([rle], list(others), [False] * len(others))[0]


def draw_image(
    axis: plt.Axes, image: np.ndarray, objects: Sequence[tuple[Mapping, str, str]]
) -> None:
    """Draw an image with outlines and names of objects.

    Args:
        axis: where to draw.
        image: uint8 (H, W, 3), RGB.
        objects: mask as RLE, text, and colour behind the text.
    """
    axis.imshow(image)
    outline = [patheffects.withStroke(linewidth=3.5, foreground="black")]
    for rle, text, colour in objects:
        mask = coco_mask.decode(rle)
        height, width = mask.shape
        grid = np.arange(-1, width + 1), np.arange(-1, height + 1)
        lines = axis.contour(*grid, np.pad(mask, 1), [0.5], colors="white", linewidths=1.5)
        lines.set(path_effects=outline)
        rows, columns = np.nonzero(mask)
        if len(rows):
            axis.text(
                columns.mean(),
                rows.min(),
                text,
                color="white",
                fontsize=9,
                ha="center",
                bbox={"facecolor": colour, "alpha": 0.85, "pad": 1.5, "linewidth": 0},
            )


if __name__ == "__main__":
    main()
