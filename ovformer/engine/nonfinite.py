"""Ends a training at a loss or gradient that is not finite, and writes a report.

The report is a small JSON file. It names the samples of the iteration and its losses and settings;
values that are not finite are the strings "nan", "inf" and "-inf". It holds no pixels: seed and
iteration are enough to load the same batch again, with the same augmentation.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from ovformer.d2 import comm
from ovformer.engine.checkpoint import Checkpointer
from ovformer.files import write_text

# Entries of a record that identify it.
_IDENTITY = ("image_id", "video_id", "file_name", "file_names")


def stop_at_nonfinite(
    iteration: int,
    reason: str,
    records: Sequence[Mapping],
    losses: Mapping[str, Tensor],
    checkpointer: Checkpointer,
    settings: Mapping[str, Any],
) -> NoReturn:
    """Write the report of an iteration and raise FloatingPointError. All processes call it.

    Args:
        iteration: the current one.
        reason: what is wrong in this process; empty if the error is in another process only.
        records: the samples that this process was training on.
        losses: the parts of its loss that were computed, scalars.
        checkpointer: of the training; its folder gets the report.
        settings: for the report: grad_norm, seed and others that JSON can hold.
    """
    # First, while all processes are alive: writing may fail in one of them.
    parts = comm.all_gather(_describe_process(reason, records, losses))
    report_hint = ""
    if checkpointer.save_dir:
        path = Path(checkpointer.save_dir, f"nonfinite_{iteration:07d}.json")
        report_hint = f"{path} has the samples of all processes. "
        last = checkpointer.get_checkpoint_file() if checkpointer.has_checkpoint() else None
        content = {"iteration": iteration, "processes": parts, **settings, "last_checkpoint": last}
        content["batch"] = (
            f"The stage's build_train_loader(cfg, {iteration}), of this run's config.yaml with "
            f"SEED {settings['seed']}, begins with this batch: in one process with the samples of "
            "all."
        )
        if comm.is_main_process():
            write_text(path, json.dumps(content, indent=1, allow_nan=False))
    # Every process raises, with its own samples; one without an error names a process with one.
    if not reason:
        other = next(part for part in parts if part["reason"])
        reason = f"in process {other['process']} {other['reason']}"
    names = ", ".join(
        str(record.get("file_name") or ", ".join(record.get("file_names", "?")))
        for record in records
    )
    raise FloatingPointError(
        f"Iteration {iteration}: {reason}. The weights were not changed by this iteration. "
        f"Images of this process: {names}. {report_hint}What may help: a smaller SOLVER.BASE_LR, "
        "SOLVER.AMP.PRECISION bfloat16, or correcting the annotations of these images. --resume "
        "continues from the last checkpoint."
    )


def to_json_number(number: float) -> float | str:
    """Return a finite number as it is, and another one as a string, because JSON has no NaN."""
    return number if math.isfinite(number) else str(number)


def _describe_process(
    reason: str, records: Sequence[Mapping], losses: Mapping[str, Tensor]
) -> dict[str, Any]:
    return {
        "process": comm.get_rank(),
        "reason": reason,
        "samples": [{key: r[key] for key in _IDENTITY if key in r} for r in records],
        "losses": {name: to_json_number(loss.item()) for name, loss in losses.items()},
    }
