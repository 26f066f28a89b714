"""Damages files of runs in each way, and reads them: is the damage noticed?"""

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ovformer.engine.checkpoint import read_weights
from ovformer.engine.metrics import cut_metrics
from ovformer.engine.resume import DamagedCheckpointError, find_whole_checkpoint
from ovformer.evaluation.results_reader import read_results
from ovformer.evaluation.results_writer import ResultsWriter, merge_results
from support.fault_runs import Recipe, are_equal


def cut(content: bytes, generator: random.Random) -> bytes:
    """Cut off all bytes after a random place."""
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
        find_whole_checkpoint(path.parent)
    except DamagedCheckpointError as error:
        taken = find_whole_checkpoint(path.parent, allow_older=True)
        assert str(path) in str(error) and taken.name == "model_0000003.pth"
        return "noticed"
    original = path.with_name("original")
    original.write_bytes(content)
    return "no effect" if are_equal(read_weights(path), read_weights(original)) else "unnoticed"


def _read_name(path: Path, content: bytes) -> str:
    shutil.copy(path.with_name("model_0000003.pth"), path.with_name(content.decode()))
    try:
        found = find_whole_checkpoint(path.parent)
    except DamagedCheckpointError:
        find_whole_checkpoint(path.parent, allow_older=True)
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
    writer = ResultsWriter(path.with_name("results.json"))
    entries = json.loads(results.read_text())
    for video_id in {entry["video_id"]: 0 for entry in entries}:
        writer.add(video_id, [entry for entry in entries if entry["video_id"] == video_id])
    writer.close()
    return path


def _read_part(path: Path, content: bytes) -> str:
    results = path.with_name("results.json")
    writer = ResultsWriter(results, resume=True)
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
