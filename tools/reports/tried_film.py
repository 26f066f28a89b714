"""A film that a model was tried on: the film itself, and how each of its objects was named."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from ovformer.data.json_file import read_json
from ovformer.evaluation.tube_iou import tube_iou

# An object that no prediction overlaps by this tube IoU was not found.
MIN_IOU = 0.5


def film_section(folder: Path, truth: Path, novel: set[str]) -> str:
    """Return the film with what was found, and a table of what is there, as HTML.

    Args:
        folder: output of tools/predict.py.
        truth: annotations of the film in the format of YouTube-VIS, with the same categories.
        novel: names of the novel categories.
    """
    rows = named_objects(read_json(truth), read_json(folder / "annotations.json"))
    lines = []
    for name, found, score, iou in rows:
        star, kind = (" ★" if name in novel else ""), "right" if found == name else "wrong"
        cells = (f"{escape(found)} {score:.2f}", f"{iou:.2f}") if found else ("not found", "")
        lines.append(f"<tr><td>{escape(name)}{star}<td class={kind}>{cells[0]}<td>{cells[1]}")
    (film,) = folder.glob("*_objects.mp4")
    data = base64.b64encode(film.read_bytes()).decode("ascii")
    return (
        f"<video controls loop muted src='data:video/mp4;base64,{data}'></video>"
        f"<p>{count_line(rows, novel)}</p>"
        "<table><tr><th>in the film<th>was named<th>tube IoU" + "".join(lines) + "</table>"
    )


def count_line(rows: Sequence[tuple[str, str, float, float]], novel: set[str]) -> str:
    """Return a sentence that counts the objects of both groups that got their name."""
    parts = []
    for title, chosen in (
        ("novel", [row for row in rows if row[0] in novel]),
        ("base", [row for row in rows if row[0] not in novel]),
    ):
        found = sum(bool(row[1]) for row in chosen)
        named = sum(row[0] == row[1] for row in chosen)
        parts.append(f"of {len(chosen)} {title} objects {found} found and {named} named right")
    return f"In the film, {'; '.join(parts)}."


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
