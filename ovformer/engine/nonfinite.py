"""The report of an iteration that was stopped because a loss or a gradient is not finite.

It is a small JSON file that says what the iteration trained on, and with which numbers; what is not
finite stands in it as "nan", "inf" or "-inf". No pixels are in it: the seed and the iteration are
enough to load the same batch, with its augmentation, again.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ovformer.files import write_text

_IDENTITY = ("image_id", "video_id", "file_name", "file_names")


def part_of_process(
    rank: int, reason: str, records: Sequence[Mapping], losses: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return what the report says of one process.

    Args:
        rank: of the process.
        reason: what is wrong there; empty if it only stops with the others.
        records: the samples that it was at.
        losses: parts of its loss, scalars, as far as they were computed.
    """
    return {
        "process": rank,
        "reason": reason,
        "samples": [{key: r[key] for key in _IDENTITY if key in r} for r in records],
        "losses": {name: plain(loss.item()) for name, loss in losses.items()},
    }


def plain(number: float) -> float | str:
    """Return a number as JSON can hold it: one that is not finite as a string."""
    return number if math.isfinite(number) else str(number)


def report_path(folder: str | Path, iteration: int) -> Path:
    """Return the path of the report of an iteration in an output folder."""
    return Path(folder, f"nonfinite_{iteration:07d}.json")


def write_report(folder: str | Path, iteration: int, content: Mapping[str, Any]) -> None:
    """Write a report.

    Args:
        folder: OUTPUT_DIR.
        iteration: the one that was stopped.
        content: all that JSON can hold.
    """
    text = json.dumps({"iteration": iteration, **content}, indent=1, allow_nan=False)
    write_text(report_path(folder, iteration), text)
