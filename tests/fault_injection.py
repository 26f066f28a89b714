#!/usr/bin/env python
"""Kill trainings, damage their files, fill their disk, fail their reads; count what was lost.

    python tests/fault_injection.py --runs 50

prints the tables of docs/reliability.md. Trainings are those of the tests: seconds long, on drawn
images and videos, with checkpoints, evaluations and lines of metrics after each second iteration.
Each is compared with one that nothing happened to: weights, optimizer, curves, predictions and
scores have to be equal, to the bit.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import faulty_run
import tiny_shapes
import tiny_videos
import torch

from ovformer.engine.checkpoint import read_weights
from ovformer.engine.metrics import cut_metrics
from ovformer.engine.resume import DamagedCheckpointError, last_checkpoint
from ovformer.engine.stages import CLIP, VIDEO
from ovformer.evaluation.vis_results import VisResultsWriter, merge_results, read_results

OPTS = ["SOLVER.MAX_ITER", "6", "SOLVER.DETERMINISTIC", "True"]
# Values of metrics.json that differ from run to run.
TIMES = ("time", "data_time", "eta_seconds", "[metric]max_rss_mb")
# Processes start fast from one that has imported everything and never runs a model.
SERVER = multiprocessing.get_context("forkserver")
# Not modules of the tests: until Python 3.14 it does not look for them where this process does.
SERVER.set_forkserver_preload(["ovformer.engine.cli", "ovformer.engine.stages"])


@dataclass
class Recipe:
    """A command, and what comes of it when nothing happens.

    Attributes:
        argv: the script's name and its command line without OUTPUT_DIR.
        root: dataset root.
        folder: of the run that nothing happens to.
        seconds: processor time that it takes.
        events: things that it does with files.
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
        """Make what others are compared with."""
        if self.run(self.folder):
            sys.exit(self.folder.with_name(f"{self.folder.name} log").read_text())
        noted = dict(words for words in witnessed(self.folder) if words[0] in ("events", "seconds"))
        self.events, self.seconds = int(noted["events"]), float(noted["seconds"])


def recipes(folder: Path) -> dict[str, Recipe]:
    """Return the trainings and the evaluation, with the data that they need."""
    image = tiny_shapes.make_run(folder / "image")
    os.environ["DETECTRON2_DATASETS"] = str(folder / "clip" / "data sets")
    clip = tiny_videos.make_run(folder / "clip", CLIP)
    os.environ["DETECTRON2_DATASETS"] = str(folder / "video" / "data sets")
    video = tiny_videos.make_run(folder / "video", VIDEO)
    words = {
        "training on images": ["train_net.py", "--config-file", str(image.config)],
        "training on clips": ["train_net_lvvis.py", "--config-file", str(clip.config)],
        "evaluation on videos": [
            *("train_net_video.py", "--config-file", str(video.config), "--eval-only")
        ],
    }
    roots = (image.root, clip.data.root, video.data.root)
    made = {
        name: Recipe(argv, root, folder / name / "undisturbed")
        for (name, argv), root in zip(words.items(), roots, strict=True)
    }
    for recipe in made.values():
        recipe.run_undisturbed()
    return made


@dataclass
class Count:
    """What became of runs.

    Attributes:
        runs: how many there were.
        continued: of them, those that came to their end with --resume.
        equal: of those, those that ended as the one that nothing happened to.
        losses: what had been finished and was not there any more.
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


def kill_runs(made: dict[str, Recipe], folder: Path, runs: int, seed: int) -> dict[str, Count]:
    """Kill runs, some of them several times, and go on with them.

    Half of the moments are random in processor time, half are random among what is done to files.
    """
    counts = {name: Count() for name in made}
    generator = random.Random(seed)
    # Of ten runs, five train on images, three on clips, two evaluate.
    order = [name for name, share in zip(made, (5, 3, 2), strict=True) for _ in range(share)]
    for number in range(runs):
        name = order[number % len(order)]
        recipe, count = made[name], counts[name]
        output = folder / f"killed {number}" / "output"
        for _ in range(generator.choice((1, 1, 2, 3))):
            if generator.random() < 0.5:
                moment = {"seconds": generator.uniform(0, recipe.seconds)}
            else:
                moment = {"event": generator.randint(1, recipe.events), "seed": number}
            status = recipe.run(output, "--resume", **moment)
            count.others[f"kills by {next(iter(moment))}"] += status == -9
            count.losses += [f"{output}: {what}" for what in lost(output)]
            if status == 0:
                count.others["ended before the last kill"] += 1
                break
        finish(recipe, output, count)
        progress("kills", number + 1, runs, counts.values())
    return counts


def finish(recipe: Recipe, output: Path, count: Count, *options: str) -> None:
    """Go on with a run, and count what becomes of it."""
    count.runs += 1
    if recipe.run(output, "--resume", *options):
        count.losses += [f"{output}: does not go on"]
        return
    count.continued += 1
    differences = different(output, recipe.folder)
    count.equal += not differences
    count.losses += [f"{output}: {what}" for what in [*differences, *lost(output)]]


def witnessed(output: Path) -> list[list[str]]:
    """Return what a run noted as finished."""
    path = output.with_name(f"{output.name} witness")
    return [line.split(" ", 1) for line in path.read_text().splitlines()] if path.exists() else []


def lost(output: Path) -> list[str]:
    """Return what a run had finished and is not whole in its folder."""
    losses = []
    for path in output.rglob("*"):
        try:
            if path.suffix == ".pth":
                read_weights(path)
            elif path.suffix == ".json" and path.name != "metrics.json":
                json.loads(path.read_text())
        except ValueError as error:
            losses.append(str(error))
    noted = witnessed(output)
    saved = [int(words.split()[1]) for kind, words in noted if kind == "checkpoint"]
    if saved:
        content = read_weights(last_checkpoint(output))
        if content["iteration"] < max(saved):
            losses.append(f"{content['iteration']} instead of {max(saved)} is the last checkpoint")
    done = max(saved, default=-1)
    lines = {int(words) for kind, words in noted if kind == "line" and int(words) <= done}
    if missing := lines - {line["iteration"] for line in curves(output)}:
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
            VisResultsWriter(copy, resume=True).close()
            merge_results(copy)
            yield from read_results(copy)


def curves(output: Path) -> list[dict]:
    """Return the whole lines of metrics.json without what differs from run to run."""
    path = output / "metrics.json"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in found]


def different(output: Path, expected: Path) -> list[str]:
    """Return in what the results of a run differ from those of another one."""
    differences = []
    files = sorted(path.relative_to(expected) for path in expected.rglob("*"))
    for name in files:
        one, other = output / name, expected / name
        if name.parts[0] == "runs":
            continue  # each start has a record of its own
        if not one.exists():
            differences += [f"{name} is missing"] * (not name.name.startswith("events."))
        elif name.suffix == ".pth":
            differences += [f"{name} differs"] * (not same(read_weights(one), read_weights(other)))
        elif name.name == "metrics.json":
            differences += [f"{name} differs"] * (curves(output) != curves(expected))
        elif "inference" in name.parts and name.is_file():
            # They name their own folder.
            texts = [(f / name).read_text().replace(str(f), "") for f in (output, expected)]
            differences += [f"{name} differs"] * (texts[0] != texts[1])
    return differences


def same(one: Any, other: Any) -> bool:
    """Tell whether contents of checkpoints are equal, but for times and the folder's name."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        names = one.keys() - {"config", *TIMES}
        return one.keys() == other.keys() and all(same(one[n], other[n]) for n in names)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def progress(what: str, number: int, total: int, counts: Any = ()) -> None:
    """Print how far it is."""
    losses = [loss for count in counts for loss in count.losses]
    print(f"{what}: {number} of {total}, lost: {losses or 'nothing'}", file=sys.stderr, flush=True)


def cut(content: bytes, generator: random.Random) -> bytes:
    """Cut off what is behind a random place."""
    return content[: generator.randrange(len(content))]


def change_bit(content: bytes, generator: random.Random) -> bytes:
    """Change one bit."""
    changed = bytearray(content)
    changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def zero_block(content: bytes, generator: random.Random) -> bytes:
    """Put zeros in the place of one block of a disk."""
    start = generator.randrange(0, len(content), 4096)
    return content[:start] + bytes(len(content[start : start + 4096])) + content[start + 4096 :]


DAMAGES = {"cut off": cut, "one bit changed": change_bit, "one block zero": zero_block}


def damage_files(made: dict[str, Recipe], folder: Path, runs: int, seed: int) -> list[dict]:
    """Damage each kind of file ``runs`` times in each way; nothing is run.

    Returns:
        A row per kind and way: how often it was noticed, had no effect, or had one unnoticed.
    """
    training, evaluation = made["training on images"].folder, made["evaluation on videos"].folder
    kinds: dict[str, tuple[Path, Callable[[Path, bytes], str]]] = {
        "checkpoint": (training / "model_0000005.pth", _read_checkpoint),
        "last_checkpoint": (training / "last_checkpoint", _read_name),
        "metrics.json": (training / "metrics.json", _read_metrics),
        "results.json.part0": (_part_file(evaluation, folder), _read_part),
        "results.json": (evaluation / "inference/ytvis_2019_val/results.json", _read_results),
    }
    rows = []
    for kind, (path, read) in kinds.items():
        content = path.read_bytes()
        for way, damage in DAMAGES.items():
            generator, outcomes = random.Random(seed), Counter()
            for _ in range(runs):
                damaged = damage(content, generator)
                copy = folder / "damaged"
                shutil.rmtree(copy, ignore_errors=True)
                copy.mkdir(parents=True)
                for other in path.parent.glob("model_000000[13].pth"):
                    os.link(other, copy / other.name)
                (copy / path.name).write_bytes(damaged)
                outcomes[read(copy / path.name, content)] += 1
            rows.append({"file": kind, "damage": way, "times": runs, **outcomes})
    return [{key: row.get(key, 0) for key in {k: 0 for r in rows for k in r}} for row in rows]


def _read_checkpoint(path: Path, content: bytes) -> str:
    (path.parent / "last_checkpoint").write_text(path.name)
    try:
        last_checkpoint(path.parent)
    except DamagedCheckpointError as error:
        taken = last_checkpoint(path.parent, allow_older=True)
        assert str(path) in str(error) and taken.name == "model_0000003.pth"
        return "noticed"
    original = path.with_name("original")
    original.write_bytes(content)
    return "no effect" if same(read_weights(path), read_weights(original)) else "unnoticed"


def _read_name(path: Path, content: bytes) -> str:
    shutil.copy(path.with_name("model_0000003.pth"), path.with_name(content.decode()))
    try:
        found = last_checkpoint(path.parent)
    except DamagedCheckpointError:
        last_checkpoint(path.parent, allow_older=True)
        return "noticed"
    return "no effect" if found.name == content.decode() else "unnoticed"


def _read_metrics(path: Path, content: bytes) -> str:
    before = [json.loads(line) for line in content.splitlines()]
    cut_metrics(path, 6)
    after = [json.loads(line) for line in path.read_text().splitlines()]
    if after == before:
        return "no effect"
    return "noticed" if all(line in before for line in after) else "unnoticed"


def _part_file(evaluation: Path, folder: Path) -> Path:
    """Make a part file of an evaluation that is finished."""
    results = evaluation / "inference/ytvis_2019_val/results.json"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json.part0"
    writer = VisResultsWriter(path.with_name("results.json"))
    entries = json.loads(results.read_text())
    for video_id in {entry["video_id"]: 0 for entry in entries}:
        writer.add(video_id, [entry for entry in entries if entry["video_id"] == video_id])
    writer.close()
    return path


def _read_part(path: Path, content: bytes) -> str:
    results = path.with_name("results.json")
    writer = VisResultsWriter(results, resume=True)
    writer.close()
    merge_results(results)
    after, videos = json.loads(results.read_text()), writer.finished
    path.write_bytes(content)
    merge_results(results)
    before = json.loads(results.read_text())
    if after == before:
        return "no effect"
    kept = [entry for entry in before if entry["video_id"] in videos]
    return "noticed" if after == kept else "unnoticed"


def _read_results(path: Path, content: bytes) -> str:
    try:
        after = list(read_results(path))
    except ValueError:
        return "noticed"
    return "no effect" if after == json.loads(content) else "unnoticed"


def resume_older(made: dict[str, Recipe], folder: Path, runs: int, seed: int) -> dict[str, Count]:
    """Damage the last checkpoint of trainings that were killed, and go on from the one before."""
    generator, counts = random.Random(seed), {}
    for number in range(runs):
        name = list(made)[number % 2]
        recipe, count = made[name], counts.setdefault(f"{name}, --allow-older", Count())
        output = folder / f"damaged {number}" / "output"
        shutil.copytree(recipe.folder, output)
        for later in ("model_0000005.pth", "model_final.pth"):
            (output / later).unlink()
        newest = output / "model_0000003.pth"
        (output / "last_checkpoint").write_text(newest.name)
        damage = generator.choice(list(DAMAGES.values()))
        newest.write_bytes(damage(newest.read_bytes(), generator))
        log = output.with_name("output log")
        if recipe.run(output, "--resume") == 0:
            count.others["went on with a change that has no effect"] += 1
        elif f"{newest} can't be read" in log.read_text():
            count.others["named the file"] += 1
        else:
            count.losses.append(f"{output}: the damage was not named")
        finish(recipe, output, count, "--allow-older")
        progress("--allow-older", number + 1, runs, counts.values())
    return counts


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Mount a file system of so many bytes there, in memory.

    Raises:
        OSError: only root can, on Linux.
    """
    folder.mkdir(parents=True)
    options = f"size={size}"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)])
    if done.returncode:
        raise OSError(f"mount: exit status {done.returncode}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill_disk(made: dict[str, Recipe], folder: Path, runs: int, seed: int) -> dict[str, Count]:
    """Run on a disk that becomes full at a random moment; go on when it has got larger."""
    generator, counts = random.Random(seed), {}
    for number in range(runs):
        name = list(made)[number % 3]
        recipe, count = made[name], counts.setdefault(f"{name}, full disk", Count())
        need = sum(path.stat().st_size for path in recipe.folder.rglob("*") if path.is_file())
        disk = folder / f"disk {number}"
        with small_disk(disk, int(need * generator.uniform(0.05, 1.0))):
            output = disk / "folder" / "output"
            status = recipe.run(output, "--resume")
            # The log is on the disk, too: what does not fit is not in it.
            count.others["ended with an error"] += status == 1
            count.others["had room enough"] += status == 0
            if status not in (0, 1):
                count.losses.append(f"{output}: exit status {status}")
            count.losses += [f"{output}: {what}" for what in lost(output)]
            subprocess.run(["mount", "-o", f"remount,size={need * 4}", str(disk)], check=True)
            finish(recipe, output, count)
        progress("full disk", number + 1, runs, counts.values())
    return counts


def fail_reads(made: dict[str, Recipe], folder: Path, runs: int, seed: int) -> dict[str, Count]:
    """Have the disk fail at a random picture, or at the checkpoint to go on from."""
    generator, counts = random.Random(seed), {}
    for number in range(runs):
        name = list(made)[number % 3]
        recipe, count = made[name], counts.setdefault(f"{name}, failing reads", Count())
        output = folder / f"unreadable {number}" / "output"
        fault = {"read": generator.randint(1, 9)}
        if name != "evaluation on videos" and number % 2:
            recipe.run(output, event=recipe.events // 2)
            # The record of the run reads it first, for its digest.
            fault = {"checkpoint": generator.randint(2, 4)}
        status = recipe.run(output, "--resume", **fault)
        unreadable = [words for kind, words in witnessed(output) if kind == "unreadable"]
        text = output.with_name("output log").read_text()
        if status == 0 or not unreadable or unreadable[0] not in text:
            count.losses.append(f"{output}: the failure was not named")
        count.others[f"{Path(unreadable[0]).suffix} named"] += 1
        count.losses += [f"{output}: {what}" for what in lost(output)]
        finish(recipe, output, count)
        progress("failing reads", number + 1, runs, counts.values())
    return counts


PARTS = {
    "kills": kill_runs,
    "older": resume_older,
    "disk": fill_disk,
    "reads": fail_reads,
}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Inject faults and print tables.

    Returns:
        The rows: "runs" and "files".
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50, help="runs that are killed")
    parser.add_argument("--others", type=int, default=12, help="runs with each other fault")
    parser.add_argument("--damages", type=int, default=50, help="of each kind of file, in each way")
    parser.add_argument("--only", nargs="*", choices=[*PARTS, "files"], default=[*PARTS, "files"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep all files there (default: keep none)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or Path(name)
        made = recipes(folder)
        rows, losses = [], []
        for part in (part for part in PARTS if part in args.only):
            number = args.runs if part == "kills" else args.others
            for what, count in PARTS[part](made, folder / part, number, args.seed).items():
                rows.append(count.row(what))
                losses += count.losses
        files = []
        if "files" in args.only:
            files = damage_files(made, folder / "files", args.damages, args.seed)
    for table in (rows, files):
        print_table(table)
    print("\n".join(losses))
    return {"runs": rows, "files": files, "losses": losses}


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print rows with the same keys in Markdown."""
    if rows:
        print("", "| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|", sep="\n")
        for row in rows:
            print("| " + " | ".join(map(str, row.values())) + " |")


if __name__ == "__main__":
    main()
