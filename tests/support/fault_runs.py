"""Small runs of the training scripts with faults, their comparison with whole runs, and losses."""

import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ovformer.engine.checkpoint import read_weights
from ovformer.engine.resume import DamagedCheckpointError, find_whole_checkpoint
from ovformer.engine.stages import CLIPS, FRAMES, IMAGE
from ovformer.evaluation.results_reader import read_results
from ovformer.evaluation.results_writer import ResultsWriter, merge_results
from support import faulty_run
from support.scripts import SERVER
from support.small_training import TIMES, read_curves
from support.tiny_runs import make_run

OPTS = ["SOLVER.MAX_ITER", "6", "SOLVER.DETERMINISTIC", "True"]


@dataclass
class Recipe:
    """A command, and the result of a run without faults.

    Attributes:
        argv: the script's name and its command line without OUTPUT_DIR.
        root: dataset root.
        folder: output of the run without faults.
        seconds: processor time of that run.
        events: number of its file events.
    """

    argv: list[str]
    root: Path
    folder: Path
    seconds: float = 0.0
    events: int = 0

    def run(self, output: Path, *options: str, **fault: Any) -> int:
        """Run it in a process of its own and return its exit status."""
        output.parent.mkdir(parents=True, exist_ok=True)
        argv = [*self.argv, *options, "OUTPUT_DIR", str(output), *OPTS]
        log = output.with_name(f"{output.name} log")
        process = SERVER.Process(target=faulty_run.run, args=(argv, output, self.root, log, fault))
        process.start()
        process.join()
        return process.exitcode

    def run_undisturbed(self) -> None:
        """Run it without a fault; other runs are compared with this one."""
        if self.run(self.folder):
            sys.exit(self.folder.with_name(f"{self.folder.name} log").read_text())
        noted = dict(
            words for words in read_witness(self.folder) if words[0] in ("events", "seconds")
        )
        self.events, self.seconds = int(noted["events"]), float(noted["seconds"])


def make_recipes(folder: Path) -> dict[str, Recipe]:
    """Write the data of two trainings and an evaluation, and run these without faults."""
    kinds = {
        "training on images": (IMAGE, []),
        "training on clips": (CLIPS, []),
        "evaluation on videos": (FRAMES, ["--eval-only"]),
    }
    made = {}
    for name, (stage, options) in kinds.items():
        run = make_run(folder / name, stage)
        argv = [stage.script, "--config-file", str(run.config), *options]
        made[name] = Recipe(argv, run.root, folder / name / "undisturbed")
    for recipe in made.values():
        recipe.run_undisturbed()
    return made


@dataclass
class Count:
    """Counts the outcomes of runs.

    Attributes:
        runs: number of runs.
        continued: runs that --resume finished.
        equal: runs with the same result as the run without faults.
        losses: finished work that was lost.
        others: more counts, by name.
    """

    runs: int = 0
    continued: int = 0
    equal: int = 0
    losses: list[str] = field(default_factory=list)
    others: Counter = field(default_factory=Counter)

    def row(self, name: str) -> dict[str, Any]:
        """Return a row of the table."""
        return {
            "fault": name,
            "runs": self.runs,
            "continued": self.continued,
            "equal to the bit": self.equal,
            "results lost": len(self.losses),
            "details": ", ".join(f"{n} {what}" for what, n in self.others.items()),
        }


def finish(recipe: Recipe, output: Path, count: Count, *options: str) -> None:
    """Resume a run, and count its outcome."""
    count.runs += 1
    if recipe.run(output, "--resume", *options):
        count.losses += [f"{output}: does not resume"]
        return
    count.continued += 1
    differences = find_differences(output, recipe.folder)
    count.equal += not differences
    count.losses += [f"{output}: {what}" for what in [*differences, *find_losses(output)]]


def read_witness(output: Path) -> list[list[str]]:
    """Return what a run recorded as finished."""
    path = output.with_name(f"{output.name} witness")
    return [line.split(" ", 1) for line in path.read_text().splitlines()] if path.exists() else []


def find_losses(output: Path) -> list[str]:
    """Return finished work of a run that is missing or damaged in its folder."""
    losses = []
    for path in output.rglob("*"):
        try:
            if path.suffix == ".pth":
                read_weights(path)
            elif path.suffix == ".json" and path.name != "metrics.json":
                json.loads(path.read_text())
        except ValueError as error:
            losses.append(str(error))
    noted = read_witness(output)
    saved = [int(words.split()[1]) for kind, words in noted if kind == "checkpoint"]
    if saved:
        try:
            path = find_whole_checkpoint(output)
            found = read_weights(path)["iteration"] if path else -1
            if found < max(saved):
                losses.append(f"{found} instead of {max(saved)} is the last checkpoint")
        except DamagedCheckpointError as error:
            losses.append(str(error))
    done = max(saved, default=-1)
    lines = {int(words) for kind, words in noted if kind == "line" and int(words) <= done}
    if missing := lines - {line["iteration"] for line in read_curves(output)}:
        losses.append(f"lines of iterations {sorted(missing)}")
    # A training evaluates anew when it is resumed.
    videos = {int(words) for kind, words in noted if kind == "video" and not saved}
    if videos and (missing := videos - {entry["video_id"] for entry in predictions(output)}):
        losses.append(f"predictions of videos {sorted(missing)}")
    return losses


def predictions(output: Path) -> Iterator[dict]:
    """Yield the predictions for videos that are in a folder, whether it is finished or not."""
    for results in {p.with_name("results.json") for p in output.glob("inference/*/results.json*")}:
        if results.is_file():
            yield from json.loads(results.read_text())
        with tempfile.TemporaryDirectory() as name:
            copy = Path(shutil.copytree(results.parent, Path(name, "copy")), "results.json")
            ResultsWriter(copy, resume=True).close()
            merge_results(copy)
            yield from read_results(copy)


def find_differences(output: Path, expected: Path) -> list[str]:
    """Return the differences between the results of two runs."""
    differences = []
    files = sorted(path.relative_to(expected) for path in expected.rglob("*"))
    for name in files:
        one, other = output / name, expected / name
        if name.parts[0] == "runs":
            continue  # each start has a record of its own
        if not one.exists():
            if not name.name.startswith("events."):
                differences.append(f"{name} is missing")
            continue
        equal = True
        if name.suffix == ".pth":
            equal = are_equal(read_weights(one), read_weights(other))
        elif name.name == "metrics.json":
            equal = read_curves(output) == read_curves(expected)
        elif "inference" in name.parts and one.is_file():
            # Files of results name their own folder.
            texts = [(f / name).read_text().replace(str(f), "") for f in (output, expected)]
            equal = texts[0] == texts[1]
        if not equal:
            differences.append(f"{name} differs")
    return differences


def are_equal(one: Any, other: Any) -> bool:
    """Tell whether contents of checkpoints are equal, except for times and the folder's name."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        names = one.keys() - {"config", *TIMES}
        return one.keys() == other.keys() and all(are_equal(one[n], other[n]) for n in names)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(are_equal, one, other))
    return one == other
