"""Score results.json of a video data set: time and memory, against a plain scorer.

Generates a ground truth and results of the size of LV-VIS's and scores them with mAP.py's metric
and with ``plain_scorer`` (the published way, which merges each pair of tubes frame by frame), each
in its own process. Fails if the twelve numbers differ. Memory is read from Linux's /proc: the peak
while scoring minus the memory after the imports.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from ovformer.arguments import positive_int
from ovformer.data.files.vis_json import load_vis_json
from ovformer.evaluation.results_reader import read_results
from ovformer.evaluation.video_metric import VideoMetric
from ovformer_tools.benchmarks import plain_scorer

HEIGHT, WIDTH = 360, 640
OBJECTS = 4  # true tubes in a video
HITS = 4  # predictions of each true tube with the right class
# More predicted tubes. All other predictions have one of these tubes or of the hits, and another
# class.
STRAYS = 4
TEMPLATES = 24  # objects; each has a true tube, and one with other edges for each hit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--videos", type=positive_int, default=400, help="(default: %(default)s)")
    parser.add_argument(
        "--predictions", type=positive_int, default=50, help="of each video (default: %(default)s)"
    )
    parser.add_argument("--frames", type=positive_int, default=20, help="(default: %(default)s)")
    parser.add_argument("--classes", type=positive_int, default=1196, help="(default: %(default)s)")
    parser.add_argument(
        "--repeats",
        type=positive_int,
        default=3,
        help="of each scorer, the best counts (default: 3)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the data (default: 0)")


def run(args: argparse.Namespace) -> dict[str, float | int]:
    """Generate the data and measure both scorers in turn.

    Raises:
        RuntimeError: they do not agree.
    """
    with tempfile.TemporaryDirectory() as folder:
        truth, results = Path(folder) / "truth.json", Path(folder) / "results.json"
        _generate(args, truth, results)
        megabytes = results.stat().st_size / 1e6
        runs: dict[str, list[dict]] = {"ours": [], "plain": []}
        for _ in range(args.repeats):
            for name, done in runs.items():
                done.append(_measure_in_process(name, truth, results))
                print(f"{name}: {done[-1]['seconds']:.2f} s", flush=True)
    ours, plain = (done[0]["scores"] for done in runs.values())
    if not np.allclose(ours, plain, rtol=0, atol=1e-9):
        raise RuntimeError(f"The scorers do not agree: {ours} and {plain}.")
    best, processor = (
        {name: min(one[key] for one in done) for name, done in runs.items()}
        for key in ("seconds", "processor_seconds")
    )
    growth, peak = (
        {name: max(one[key] for one in done) for name, done in runs.items()}
        for key in ("growth_mb", "peak_mb")
    )
    return {
        "videos": args.videos,
        "predictions per video": args.predictions,
        "frames": args.frames,
        "classes": args.classes,
        "results.json, MB": megabytes,
        "AP of both": ours[0],
        "ours, s": best["ours"],
        "plain, s": best["plain"],
        "times faster": best["plain"] / best["ours"],
        "ours, s of processor": processor["ours"],
        "plain, s of processor": processor["plain"],
        "times less processor": processor["plain"] / processor["ours"],
        "ours, MB": growth["ours"],
        "plain, MB": growth["plain"],
        "share of memory": growth["ours"] / growth["plain"],
        "ours, MB with imports": peak["ours"],
        "plain, MB with imports": peak["plain"],
    }


def score_with_ours(truth: Path, results: Path) -> list[float]:
    """Return COCO's twelve numbers from the metric of mAP.py."""
    metric = VideoMetric(load_vis_json(truth))
    metric.update(read_results(results))
    return metric.compute().group().tolist()


def _measure_in_process(name: str, truth: Path, results: Path) -> dict:
    """Run :func:`measure` in a new process, so that peaks of memory do not mix."""
    call = f"video_scoring.measure({name!r}, {str(truth)!r}, {str(results)!r})"
    paths = [str(Path(__file__).parents[2]), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    output = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            f"from ovformer_tools.benchmarks import video_scoring; {call}",
        ],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return json.loads(output.splitlines()[-1])


def measure(name: str, truth: str, results: str) -> None:
    """Score once and print seconds, megabytes and scores as JSON; called in a new process."""
    scorer = {"ours": score_with_ours, "plain": plain_scorer.score}[name]
    # Resets the peak of this process; getrusage would count the parent's memory.
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory_mb("VmRSS")
    start, processor_start = time.perf_counter(), time.process_time()
    scores = scorer(Path(truth), Path(results))
    seconds, processor_seconds = time.perf_counter() - start, time.process_time() - processor_start
    peak = _memory_mb("VmHWM")
    figures = {
        "seconds": seconds,
        "processor_seconds": processor_seconds,
        "growth_mb": peak - before,
        "peak_mb": peak,
        "scores": scores,
    }
    print(json.dumps(figures))


def _memory_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def _generate(args: argparse.Namespace, truth: Path, results: Path) -> None:
    rng = np.random.default_rng(args.seed)
    templates = [_draw_object(rng, args.frames) for _ in range(TEMPLATES)]
    content = {"videos": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": k + 1, "name": f"class {k}"} for k in range(args.classes)]
    predictions = []
    for video_id in range(1, args.videos + 1):
        names = [f"{video_id:05d}/{t:05d}.jpg" for t in range(args.frames)]
        content["videos"].append(
            {"id": video_id, "height": HEIGHT, "width": WIDTH, "file_names": names}
        )
        # Two objects of one class, the others of classes of their own.
        labels = rng.integers(1, args.classes + 1, OBJECTS)
        labels[1] = labels[0]
        objects = rng.choice(TEMPLATES, OBJECTS, replace=False)
        tubes = []
        for label, number in zip(labels, objects, strict=True):
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "video_id": video_id,
                    "category_id": int(label),
                    "iscrowd": 0,
                    "segmentations": templates[number][0],
                    "areas": [int(area) for area in coco_mask.area(templates[number][0])],
                }
            )
            tubes += [(label, templates[number][1 + hit]) for hit in range(HITS)]
        # As in real results, a query occurs again with other classes.
        queries = [tube for _, tube in tubes]
        queries += [templates[number][1] for number in rng.integers(TEMPLATES, size=STRAYS)]
        while len(tubes) < args.predictions:
            tubes.append((rng.integers(1, args.classes + 1), queries[rng.integers(len(queries))]))
        predictions += [
            {
                "video_id": video_id,
                "score": float(rng.random()),
                "category_id": int(label),
                "segmentations": tube,
            }
            for label, tube in tubes[: args.predictions]
        ]
    truth.write_text(json.dumps(content))
    results.write_text(json.dumps(predictions))


def _draw_object(rng: np.random.Generator, frames: int) -> list[list[dict]]:
    """Draw a moving blob: the true tube, and variants that are shifted and have other edges."""
    centre = rng.uniform([0.2, 0.2], [0.8, 0.8]) * (WIDTH, HEIGHT)
    radius = rng.uniform(0.06, 0.3) * HEIGHT * rng.uniform(0.7, 1.4, 2)
    speed = rng.normal(0, 3, 2)
    tubes = []
    for variant in range(1 + HITS):
        shift = rng.normal(0, 0.05, 2) * radius * variant
        tubes.append(
            [_draw_blob(rng, centre + shift + t * speed, radius, 0.15) for t in range(frames)]
        )
    return tubes


def _draw_blob(
    rng: np.random.Generator, centre: np.ndarray, radius: np.ndarray, roughness: float
) -> dict:
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    distance = ((x - centre[0]) / radius[0]) ** 2 + ((y - centre[1]) / radius[1]) ** 2
    noise = rng.normal(0, roughness, (24, 40)).astype(np.float32)
    edge = cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    rle = coco_mask.encode(np.asfortranarray(distance + edge < 1, dtype=np.uint8))
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}
