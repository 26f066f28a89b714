"""The scores of video instance segmentation: for groups, per class, as text, JSON and CSV.

N predictions of one class in all videos, A area ranges, I IoU thresholds, K classes
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ovformer.data.files.json_file import write_json
from ovformer.files import write_csv

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0, 1, 101)
# Area ranges in pixels, both ends included: YouTube-VIS's own limits.
AREAS = {
    "all": (0, 1e10),
    "small": (0, 128**2),
    "medium": (128**2, 256**2),
    "large": (256**2, 1e10),
}


class Row(NamedTuple):
    """One of COCO's twelve numbers."""

    name: str
    metric: str  # AP or AR
    iou: float | None  # None: mean over 0.50:0.95
    area: str
    max_predictions: int  # of one class in one video


ROWS = (
    Row("AP", "AP", None, "all", 100),
    Row("AP50", "AP", 0.5, "all", 100),
    Row("AP75", "AP", 0.75, "all", 100),
    Row("APs", "AP", None, "small", 100),
    Row("APm", "AP", None, "medium", 100),
    Row("APl", "AP", None, "large", 100),
    Row("AR1", "AR", None, "all", 1),
    Row("AR10", "AR", None, "all", 10),
    Row("AR100", "AR", None, "all", 100),
    Row("ARs", "AR", None, "small", 100),
    Row("ARm", "AR", None, "medium", 100),
    Row("ARl", "AR", None, "large", 100),
)
_TITLES = {"AP": "Average Precision", "AR": "Average Recall"}
_SUFFIXES = {"all": "", "base": "b", "novel": "n", "common": "c", "uncommon": "u"}


@dataclass
class VideoScores:
    """Scores of all classes.

    Attributes:
        categories: the K categories, each with "id" and "name".
        groups: name of a group -> its category ids.
        values: float64 (12, K), the rows of :data:`ROWS` from 0 to 1; NaN where no target counts.
        protocol: name of the protocol that computed them.
        note: for readers of the scores; may be empty.
    """

    categories: list[dict]
    groups: Mapping[str, Sequence[int]]
    values: np.ndarray
    protocol: str = "standard"
    note: str = ""

    def group(self, name: str = "all") -> np.ndarray:
        """Return the mean over the classes of a group that have targets.

        Args:
            name: "all" or one of ``groups``.

        Returns:
            float64 (12,); -1 where none of them has targets, as COCO writes it.
        """
        values = self.values
        if name != "all":
            members = set(self.groups[name])
            values = values[:, [category["id"] in members for category in self.categories]]
        # nanmean would warn, and give NaN, where no class of the group has targets.
        valid = ~np.isnan(values)
        count = valid.sum(axis=1)
        total = np.where(valid, values, 0).sum(axis=1)
        return np.where(count > 0, total / np.maximum(count, 1), -1.0)

    def table(self) -> str:
        """Return the table that published code prints: per row, a line for all and per group."""
        lines = []
        for number, row in enumerate(ROWS):
            iou = "0.50:0.95" if row.iou is None else f"{row.iou:.2f}"
            for group in ("all", *self.groups):
                name = row.metric + _SUFFIXES.get(group, f"-{group}")
                lines.append(
                    f" {_TITLES[row.metric]:<18} {name} @[ IoU={iou:<9} | area={row.area:>6} | "
                    f"maxDets={row.max_predictions:>3} ] = {self.group(group)[number]:0.3f}"
                )
        return "\n".join(lines)

    def write(self, path: Path, **about: str) -> None:
        """Write the scores as JSON and CSV.

        Args:
            path: without suffix; ``.json`` and ``.csv`` are added.
            about: where the scores come from; written to the JSON file.
        """
        names = [row.name for row in ROWS]
        groups = [(name, self.group(name)) for name in ("all", *self.groups)]
        classes = list(zip(self.categories, self.values.T, strict=True))
        write_json(
            path.with_name(path.name + ".json"),
            {
                **about,
                "protocol": self.protocol,
                "note": self.note,
                "groups": {name: _json_values(names, values) for name, values in groups},
                "per_class": [
                    {"id": c["id"], "name": c["name"], **_json_values(names, values)}
                    for c, values in classes
                ],
            },
        )
        rows = [("group", "", name, values) for name, values in groups]
        rows += [("class", c["id"], c["name"], values) for c, values in classes]
        write_csv(
            path.with_name(path.name + ".csv"),
            [
                ["protocol", "kind", "id", "name", *names],
                *([self.protocol, *labels, *_csv_values(values)] for *labels, values in rows),
            ],
        )


def score_class(
    matched: np.ndarray, ignored: np.ndarray, ranks: np.ndarray, num_targets: np.ndarray
) -> np.ndarray:
    """Compute the values of :data:`ROWS` for one class.

    Args:
        matched: bool (A, I, N), best prediction of all videos first.
        ignored: bool (A, I, N).
        ranks: (N,) rank of a prediction among those of the class in its video, from 0.
        num_targets: (A,) targets that count.

    Returns:
        float64, one value per row; NaN where no target counts.
    """
    right = matched & ~ignored
    precision = _average_precision(right, ~matched & ~ignored, num_targets)
    values = np.full(len(ROWS), np.nan)
    for number, row in enumerate(ROWS):
        a = list(AREAS).index(row.area)
        if not num_targets[a]:
            continue
        if row.metric == "AR":
            found = np.count_nonzero(right[a][:, ranks < row.max_predictions], axis=1)
            values[number] = (found / num_targets[a]).mean()
        elif row.iou is None:
            values[number] = precision[a].mean()
        else:
            values[number] = precision[a, np.flatnonzero(IOU_THRESHOLDS == row.iou)[0]]
    return values


def _average_precision(right: np.ndarray, wrong: np.ndarray, num_targets: np.ndarray) -> np.ndarray:
    """Average the interpolated precision over :data:`RECALL_THRESHOLDS`.

    Args:
        right: bool (A, I, N), true positives, best first.
        wrong: bool (A, I, N), false positives.
        num_targets: (A,).

    Returns:
        float64 (A, I); 0 where there is no target.
    """
    num_areas, num_ious, length = right.shape
    true, false = right.cumsum(axis=2), wrong.cumsum(axis=2)
    precision = np.zeros((num_areas, num_ious, length + 1))  # 0 for a recall that is not reached
    precision[..., :-1] = true / (true + false + np.spacing(1))
    # From the right: the best precision at this recall or a higher one, as in PASCAL VOC and COCO.
    precision = np.maximum.accumulate(precision[..., ::-1], axis=2)[..., ::-1]
    average = np.zeros((num_areas, num_ious))
    rows = np.arange(num_ious)[:, None]
    for a in num_targets.nonzero()[0]:
        # How many targets have to be found for each recall, and after which prediction they are
        # found. One search over all thresholds: an offset gives each its own range of numbers.
        recalls = np.arange(num_targets[a] + 1) / num_targets[a]
        needed = np.minimum(np.searchsorted(recalls, RECALL_THRESHOLDS), length + 1)
        places = np.searchsorted(
            (true[a] + rows * (length + 2)).ravel(), needed + rows * (length + 2)
        )
        average[a] = precision[a][rows, places - rows * length].mean(axis=1)
    return average


def _is_defined(value: float) -> bool:
    return value >= 0  # neither NaN nor COCO's -1


def _json_values(names: list[str], values: np.ndarray) -> dict[str, float | None]:
    pairs = zip(names, values, strict=True)
    return {name: float(value) if _is_defined(value) else None for name, value in pairs}


def _csv_values(values: np.ndarray) -> list[str]:
    return [f"{value:.6f}" if _is_defined(value) else "" for value in values]
