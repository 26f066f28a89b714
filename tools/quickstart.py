#!/usr/bin/env python
"""Train and evaluate OVFormer from nothing on two CPU cores, with nothing to download.

    python tools/quickstart.py --output output/quickstart

Prints and runs the commands of the real workflow on a drawn data set, then writes report.html. Run
the same command again after an interruption: finished steps are skipped, and the training resumes
from its last checkpoint. With --fast every step runs on a few images, to check that it works.
"""

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ovformer.arguments import exit_on_user_error
from ovformer.data.catalog.dataset_spec import load_categories
from ovformer.data.files.json_file import read_json
from ovformer.files import write_text

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/quickstart/ovformer_shapes.yaml"
ZERO_SHOT_CONFIG = "configs/quickstart/ovformer_shapes_video.yaml"
CLIP_CONFIG = "configs/quickstart/video_ovformer_shapes.yaml"
# Paths below the dataset root, as the config has them.
SHAPES = "datasets/shapes"
CLIP = f"local-dir:{SHAPES}/clip"
PROMPTS = ("{}", "a {}", "a picture of a {}", "there is a {}")
# Packages of extras: name to import -> the extra that installs it.
NEEDED = {"faster_coco_eval": "eval", "matplotlib": "demo", "av": "demo"}
# More threads make a model of this size slower.
MAX_THREADS = 4


@dataclass
class Step:
    """One command of the workflow.

    Attributes:
        title: what the step does; printed, and in the report.
        command: arguments of the Python interpreter.
        output: the file or folder that the step writes.
    """

    title: str
    command: list[str]
    output: Path


def main(argv: Sequence[str] | None = None) -> None:
    """Run the steps that are not finished."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/quickstart"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fast", action="store_true", help="a few images and iterations only")
    args = parser.parse_args(argv)
    with exit_on_user_error(parser):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Print the settings and run the steps that are not finished.

    Raises:
        ImportError: a package that a step needs is missing.
    """
    missing = {extra for name, extra in NEEDED.items() if importlib.util.find_spec(name) is None}
    if missing:
        raise ImportError(f"run this first: pip install -e '.[{','.join(sorted(missing))}]'")

    # Commands run in the repository's root, as a reader would run them.
    output = args.output if Path.cwd() == ROOT else args.output.absolute()
    settings = {
        "DETECTRON2_DATASETS": str(output / "datasets"),
        "OMP_NUM_THREADS": str(min(MAX_THREADS, torch.get_num_threads())),
        # Threads that wait soon sleep. OpenMP's default is to spin: then one other busy process on
        # two cores makes an iteration ten times slower instead of three times.
        "GOMP_SPINCOUNT": "10000",
        # Raised inside timm and open_clip: nothing that a reader could change.
        "PYTHONWARNINGS": "ignore:`torch.jit.script` is deprecated:FutureWarning",
    }
    for name, value in settings.items():
        print(f"export {name}={shlex.quote(value)}")
    output.mkdir(parents=True, exist_ok=True)
    run_steps(make_steps(output, args.seed, args.fast), output / "steps.json", settings)
    print(f"\nOpen {output / 'report.html'}")


def make_steps(output: Path, seed: int, fast: bool) -> list[Step]:
    """Return the steps of the workflow, in order.

    Args:
        output: folder of all files.
        seed: seed of all random numbers.
        fast: use a few images and iterations only.
    """
    data = output / "datasets" / "shapes"
    train, control = output / "train", output / "control"
    zero_shot, clips = output / "zero_shot", output / "clips"
    film, named, named_of_all = (
        output / name for name in ("film.mp4", "named_film", "named_film_all")
    )
    random = ["--seed", str(seed)]
    small = {
        "data": ["--train-images", "40", "--val-images", "8"]
        + ["--train-videos", "6", "--val-videos", "6", "--frames", "4"],
        "clip": ["--steps", "6", "--crops-per-name", "2"],
        "backbone": ["--iterations", "6", "--batch-size", "16"],
        "train": ["SOLVER.MAX_ITER", "6", "SOLVER.WARMUP_ITERS", "2"],
        "clips": ["SOLVER.MAX_ITER", "4", "SOLVER.WARMUP_ITERS", "2"],
    }
    limits = small if fast else dict.fromkeys(small, [])
    classifier = ["tools/build_text_classifier.py", "--clip", CLIP, "--pretrained", ""]
    classifier += ["--templates", *PROMPTS]
    net = ["train_net.py", "--config-file", CONFIG]
    predict = ["tools/predict.py", str(film), "--resize", "128"]
    predict += ["--weights", str(train / "model_final.pth")]
    text, swapped_text = data / "text_classifier.safetensors", data / "swapped.safetensors"
    swapped_embeddings = data / "swapped_embeddings.safetensors"
    swapped_names = write_swapped_names(output / "swapped_names.txt")
    report = output / "report.html"
    steps = [
        Step(
            "Draw the shapes, images and videos. Novel combinations are only in the val sets",
            ["tools/make_shapes.py", *random, *limits["data"]],
            data,
        ),
        Step(
            "Train a tiny CLIP model, in place of one from the internet",
            ["tools/train_tiny_clip.py", *random, *limits["clip"]],
            data / "clip",
        ),
        Step(
            "Text classifier: CLIP's embeddings of the class names",
            [*classifier, "--vocabulary", str(data / "shapes_val.json")],
            text,
        ),
        Step(
            "The same with the names of shapes swapped inside each colour, as a control",
            [*classifier, "--vocabulary", str(swapped_names)],
            swapped_embeddings,
        ),
        Step(
            "These embeddings under the right names; names in a wrong order would be an error",
            [classifier[0], "--vocabulary", str(data / "shapes_val.json")]
            + ["--from-npy", str(swapped_embeddings)],
            swapped_text,
        ),
        Step(
            "CLIP's image features, which the model would compute in each iteration otherwise",
            ["tools/save_clip_features.py", "--clip", CLIP, "--pretrained", ""]
            + ["--dataset", "shapes_train", "shapes_val", "shapes_video_train", "shapes_video_val"]
            + ["--num-workers", "1"],
            data / "clip_features.safetensors",
        ),
        Step(
            "Pre-train the backbone on crops of the training images, in place of ImageNet",
            ["tools/pretrain_backbone.py", "--config-file", CONFIG, *random, *limits["backbone"]],
            data / "backbone.pth",
        ),
        Step(
            "Convert it as one converts a backbone from timm",
            ["tools/convert-thirdparty-pretrained-model-to-d2.py"]
            + ["--path", str(data / "backbone.pth")],
            data / "backbone.pkl",
        ),
    ]
    # All steps so far name their output in the same way.
    for step in steps:
        step.command += ["--output", str(step.output)]
    steps += [
        Step(
            "Train OVFormer, and evaluate it on base and novel classes",
            [*net, "--resume", "OUTPUT_DIR", str(train), "SEED", str(seed), *limits["train"]],
            train,
        ),
        Step(
            "Control: evaluate it with the swapped names",
            [*net, "--eval-only", "OUTPUT_DIR", str(control), "MODEL.WEIGHTS"]
            + [str(train / "model_final.pth"), "MODEL.MASK_FORMER.CLIP_TEXT_PATH"]
            + [str(swapped_text)],
            control,
        ),
        Step(
            "Evaluate it on videos, zero-shot: frame by frame, without training on videos",
            ["train_net_video.py", "--config-file", ZERO_SHOT_CONFIG, "--eval-only"]
            + ["OUTPUT_DIR", str(zero_shot), "MODEL.WEIGHTS", str(train / "model_final.pth")],
            zero_shot,
        ),
        Step(
            "Train the clip model on videos from these weights, and evaluate it",
            ["train_net_lvvis.py", "--config-file", CLIP_CONFIG, "--resume"]
            + ["OUTPUT_DIR", str(clips), "MODEL.WEIGHTS", str(train / "model_final.pth")]
            + ["SEED", str(seed), *limits["clips"]],
            clips,
        ),
        Step(
            "Draw a film that is unlike these videos, with a novel object of each colour",
            ["tools/make_film.py", *random, "--output", str(film)],
            film,
        ),
        Step(
            "Find, follow and name them, from the names of the novel categories",
            [*predict, "--vocabulary", str(film.with_suffix(".txt")), "--output", str(named)],
            named,
        ),
        Step(
            "The same from all names",
            [*predict, "--vocabulary", "shapes", "--output", str(named_of_all)],
            named_of_all,
        ),
        Step(
            "Write the report",
            ["tools/make_report.py", "--dataset", "shapes_val", "--run", str(train)]
            + ["--control", str(control), "--video-dataset", "shapes_video_val"]
            + ["--zero-shot", str(zero_shot), "--clips", str(clips), "--film", str(named)]
            + ["--film-others", str(named_of_all)]
            + ["--film-truth", str(film.with_suffix(".json"))]
            + ["--steps", str(output / "steps.json"), "--output", str(report)],
            report,
        ),
    ]
    return steps


def write_swapped_names(path: Path) -> Path:
    """Write the class names in an order that gives each class another shape of its own colour."""
    names = [category["name"] for category in load_categories("shapes")]
    by_colour: dict[str, list[str]] = {}
    for name in names:
        by_colour.setdefault(name.split()[0], []).append(name)
    swapped = {
        name: group[(index + 1) % len(group)]
        for group in by_colour.values()
        for index, name in enumerate(group)
    }
    write_text(path, "".join(f"{swapped[name]}\n" for name in names))
    return path


def run_steps(steps: Sequence[Step], record: Path, settings: dict[str, str]) -> None:
    """Run the steps, from the first one that is not finished.

    Args:
        steps: the workflow.
        record: JSON file of the finished steps: title, command and seconds of each.
        settings: environment variables for the commands.

    Raises:
        SystemExit: a step failed.
    """
    finished = read_json(record) if record.is_file() else []
    for number, step in enumerate(steps):
        print(f"\n[{number + 1}/{len(steps)}] {step.title}\n$ python {shlex.join(step.command)}")
        if number < len(finished) and finished[number]["command"] == step.command:
            print(f"finished already, in {finished[number]['seconds']:.0f} s")
            continue
        if number < len(finished):
            # The command changed, and all later outputs were made from its output.
            for later in steps[number:]:
                remove(later.output)
            del finished[number:]
        sys.stdout.flush()
        start = time.time()
        if run_command([sys.executable, *step.command], {**os.environ, **settings}):
            sys.exit(
                f"Step {number + 1} of {len(steps)} failed. To go on from here once its cause is "
                "mended, run the same command again."
            )
        seconds = time.time() - start
        finished.append({"title": step.title, "command": step.command, "seconds": seconds})
        write_text(record, json.dumps(finished, indent=1))


def run_command(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run a command and return its exit status; at a signal to stop it has time to save its work.

    The terminal sends Ctrl-C to the command as well; SIGTERM has to be passed on.
    """
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        previous = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            while process.returncode is None:
                with suppress(KeyboardInterrupt):
                    process.wait()
        finally:
            signal.signal(signal.SIGTERM, previous)
    return process.returncode


def remove(path: Path) -> None:
    """Remove a file or folder, and the files that an interrupted tool left beside it.

    Their names are ``<name>.tmp`` or ``<name>.parts``; "<name>_other" stays.
    """
    for found in [*path.parent.glob(path.name), *path.parent.glob(f"{path.name}.*")]:
        if found.is_dir():
            shutil.rmtree(found)
        else:
            found.unlink()


if __name__ == "__main__":
    main()
