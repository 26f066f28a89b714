#!/usr/bin/env python
"""Kill trainings, damage their files, fill their disk, fail their reads; count what was lost.

    python tests/fault_injection.py --runs 50

prints the tables of docs/reliability.md. Trainings are those of the tests: seconds long, on drawn
images and videos, with checkpoints, evaluations and lines of metrics after each second iteration.
Each is compared with a run without faults: weights, optimizer, curves, predictions and scores have
to be equal to the bit.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from support.damaged_files import DAMAGES, damage_files
from support.fault_runs import Count, Recipe, find_losses, finish, make_recipes, read_witness


def kill_runs(made: dict[str, Recipe], folder: Path, runs: int, seed: int) -> dict[str, Count]:
    """Kill runs, some of them several times, and resume them.

    Half of the moments are random in processor time, half are random among the file events.
    """
    counts = {name: Count() for name in made}
    generator = random.Random(seed)
    # Of ten runs, five train on images, three on clips, two evaluate.
    order = [name for name, share in zip(made, (5, 3, 2), strict=True) for _ in range(share)]
    for number in range(runs):
        name = order[number % len(order)]
        recipe, count = made[name], counts[name]
        output = folder / f"killed {number}" / "output"
        planned = generator.choice((1, 1, 2, 3))
        done = 0
        while done < planned:
            if generator.random() < 0.5:
                moment = {"seconds": generator.uniform(0, recipe.seconds)}
            else:
                moment = {"event": generator.randint(1, recipe.events), "seed": number}
            status = recipe.run(output, "--resume", **moment)
            count.losses += [f"{output}: {what}" for what in find_losses(output)]
            if status == -9:
                done += 1
                count.others[f"kills by {next(iter(moment))}"] += 1
            elif done:  # it had come further than the moment
                break
            else:
                shutil.rmtree(output.parent)
        finish(recipe, output, count)
        progress("kills", number + 1, runs, counts.values())
    return counts


def resume_older(
    recipe: Recipe, count: Count, folder: Path, generator: random.Random, number: int
) -> None:
    """Damage the last checkpoint of a killed training; resume from the one before."""
    output = folder / "output"
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


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Mount a file system of ``size`` bytes in memory at a folder.

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


def fill_disk(
    recipe: Recipe, count: Count, folder: Path, generator: random.Random, number: int
) -> None:
    """Run on a disk that becomes full at a random moment; resume after enlarging it."""
    need = sum(path.stat().st_size for path in recipe.folder.rglob("*") if path.is_file())
    with small_disk(folder, int(need * generator.uniform(0.05, 1.0))):
        output = folder / "folder" / "output"
        status = recipe.run(output, "--resume")
        # The log is on the disk, too: what does not fit is not in it.
        outcomes = {1: "ended with an error", 0: "had room enough"}
        if status in outcomes:
            count.others[outcomes[status]] += 1
        else:
            count.losses.append(f"{output}: exit status {status}")
        count.losses += [f"{output}: {what}" for what in find_losses(output)]
        subprocess.run(["mount", "-o", f"remount,size={need * 4}", str(folder)], check=True)
        finish(recipe, output, count)


def fail_reads(
    recipe: Recipe, count: Count, folder: Path, generator: random.Random, number: int
) -> None:
    """Make the disk fail at a random image, or at the checkpoint to resume from."""
    output = folder / "output"
    fault = {"read": generator.randint(1, 9)}
    if "--eval-only" not in recipe.argv and number % 2:
        recipe.run(output, event=recipe.events // 2)
        # The record of the run reads it first, for its digest.
        fault = {"checkpoint": generator.randint(2, 4)}
    status = recipe.run(output, "--resume", **fault)
    unreadable = [words for kind, words in read_witness(output) if kind == "unreadable"]
    text = output.with_name("output log").read_text()
    if status == 0 or not unreadable or unreadable[0] not in text:
        count.losses.append(f"{output}: the failure was not named")
    else:
        count.others[f"{Path(unreadable[0]).suffix} named"] += 1
    count.losses += [f"{output}: {what}" for what in find_losses(output)]
    finish(recipe, output, count)


# Part -> what the tables call it, how many of the recipes it is for, and what does it to one run.
FAULTS = {
    "older": ("--allow-older", 2, resume_older),
    "disk": ("full disk", 3, fill_disk),
    "reads": ("failing reads", 3, fail_reads),
}
PARTS = ("kills", *FAULTS, "files")


def inject(
    part: str, made: dict[str, Recipe], folder: Path, runs: int, seed: int
) -> dict[str, Count]:
    """Inject one of :data:`FAULTS` into runs; the recipes take turns."""
    what, number_of_recipes, fault = FAULTS[part]
    generator, counts = random.Random(seed), {}
    for number in range(runs):
        name = list(made)[number % number_of_recipes]
        count = counts.setdefault(f"{name}, {what}", Count())
        fault(made[name], count, folder / str(number), generator, number)
        progress(what, number + 1, runs, counts.values())
    return counts


def progress(what: str, number: int, total: int, counts: Any = ()) -> None:
    """Print the progress."""
    losses = [loss for count in counts for loss in count.losses]
    print(f"{what}: {number} of {total}, lost: {losses or 'nothing'}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Inject faults and print tables.

    Returns:
        The rows: "runs" and "files".
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50, help="runs that are killed")
    parser.add_argument("--others", type=int, default=12, help="runs with each other fault")
    parser.add_argument("--damages", type=int, default=50, help="of each kind of file, in each way")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep all files there (default: keep none)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or Path(name)
        made = make_recipes(folder)
        counts: dict[str, Count] = {}
        if "kills" in args.only:
            counts |= kill_runs(made, folder / "kills", args.runs, args.seed)
        for part in (part for part in FAULTS if part in args.only):
            counts |= inject(part, made, folder / part, args.others, args.seed)
        rows = [count.row(what) for what, count in counts.items()]
        losses = [loss for count in counts.values() for loss in count.losses]
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
