"""A film that a model was tried on: the film itself, and how each of its objects was named."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from ovformer.data.files.json_file import read_json
from ovformer.evaluation.tube_iou import tube_iou

# An object that no prediction overlaps by this tube IoU was not found.
MIN_IOU = 0.5


def film_section(folder: Path, others: Path, truth: Path) -> str:
    """Return the film with what was found, and a table of what is there, as HTML.

    Args:
        folder: output of tools/predict.py for the film, which is shown.
        others: the same with other words, of which the table tells.
        truth: annotations of the film in the format of YouTube-VIS.

    Raises:
        FileNotFoundError: the folder has no picture to show first.
        ValueError: it has no film, or several.
    """
    there = read_json(truth)
    found = [read_json(path / "annotations.json") for path in (folder, others)]
    columns = [named_objects(there, one) for one in found]
    title = [f"<th>of {len(one['categories'])} names" for one in found]
    counts = [f"<td>{count(rows)}" for rows in columns]
    lines = [
        f"<tr><td>{escape(rows[0][0])}{''.join(map(cell, rows))}"
        for rows in zip(*columns, strict=True)
    ]
    films = sorted(folder.glob("*_objects.mp4"))
    if len(films) != 1:
        raise ValueError(f"{folder}: expected the film of one prediction, found {len(films)}.")
    film, poster = (
        base64.b64encode(path.read_bytes()).decode("ascii")
        for path in (films[0], folder / "poster.jpg")
    )
    return (
        f"<video controls loop muted poster='data:image/jpeg;base64,{poster}' "
        f"src='data:video/mp4;base64,{film}'></video>"
        f"<table><tr><th>in the film{''.join(title)}{''.join(lines)}"
        f"<tr><td>right / found / there{''.join(counts)}</table>"
    )


def count(rows: Sequence[tuple[str, str, float, float]]) -> str:
    """Return how many objects were named right, were found, and are there."""
    right = sum(name == other for name, other, *_ in rows)
    return f"{right} / {sum(bool(other) for _, other, *_ in rows)} / {len(rows)}"


def cell(row: tuple[str, str, float, float]) -> str:
    """Return how an object was named, as HTML."""
    name, other, score, _ = row
    kind = "right" if name == other else "wrong"
    return f"<td class={kind}>" + (f"{escape(other)} {score:.2f}" if other else "not found")


def named_objects(truth: Mapping, found: Mapping) -> list[tuple[str, str, float, float]]:
    """Return for each object that is there how it was named.

    Args:
        truth: annotations of one video.
        found: annotations that were predicted for it, with a score each.

    Returns:
        Its name, and of the prediction that overlaps it most the name, the score and the tube IoU;
        an empty name where none overlaps it by :data:`MIN_IOU`.
    """
    names, others = (
        {category["id"]: category["name"] for category in content["categories"]}
        for content in (truth, found)
    )
    tubes, predicted = (
        [item["segmentations"] for item in content["annotations"]] for content in (truth, found)
    )
    overlaps = tube_iou(tubes, predicted) if predicted else np.zeros((len(tubes), 1))
    rows = []
    for item, overlap in zip(truth["annotations"], overlaps, strict=True):
        best, row = int(overlap.argmax()), ("", 0.0, 0.0)
        if overlap[best] >= MIN_IOU:
            other = found["annotations"][best]
            row = (others[other["category_id"]], other["score"], float(overlap[best]))
        rows.append((names[item["category_id"]], *row))
    return rows
