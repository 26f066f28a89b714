"""Tiny data sets and a tiny model, to run the training scripts as a user does within seconds."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ovformer import run as training_script
from ovformer.config import get_ovformer_cfg
from ovformer.d2 import build_model
from ovformer.data.catalog.dataset_spec import load_categories, load_dataset
from ovformer.data.files.image_embeddings import ImageEmbeddingWriter
from ovformer.engine.stages import CLIPS, FRAMES, IMAGE, Stage
from ovformer.modeling.language.text_classifier import save_text_classifier
from support.masks import compressed_rle, rectangle
from support.mini_videos import SPLITS, MiniVideos, make_videos
from support.scripts import restore_loggers
from support.video_models import PARTS, TINY

ROOT = Path(__file__).parents[2]
SIDE = 64
CLIP_DIM = 16
FILES = {"train": "shapes_train_norare.json", "val": "shapes_val.json"}
DETECTIONS = 5
# What all runs have in common; the stage and the data set add the rest.
SETTINGS = {
    **PARTS,
    **TINY,
    # Without weights, blocks that start as the identity would get no gradient.
    "MODEL.TIMM.KWARGS": TINY["MODEL.TIMM.KWARGS"][:-1] + ", zero_init_last: false}",
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 32,
    "MODEL.CLIP.EMBED_DIM": CLIP_DIM,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.MAX_ITER": 4,
    "SOLVER.STEPS": [3],
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "SOLVER.AMP.ENABLED": False,
    "TEST.EVAL_PERIOD": 2,
    "TEST.DETECTIONS_PER_IMAGE": DETECTIONS,
    "DATALOADER.NUM_WORKERS": 0,
    "SEED": 3,
}
FILE_KEYS = ("CLIP_TEXT_PATH", "CLIP_IMAGE_PATH", "CLIP_IMAGE_PATH_TRAIN")
# By the script: the config that the tiny one changes, and the data set.
CONFIGS = {
    IMAGE.script: ("base_image.yaml", "shapes"),
    FRAMES.script: ("base_video.yaml", "ytvis_2019"),
    CLIPS.script: ("lvvis/video_ovformer_R50_bs8.yaml", "lvvis"),
}


@dataclass
class TinyRun:
    """A data set, a config file and an output folder.

    Attributes:
        root: the dataset root.
        config: the config file, in the working directory of the scripts.
        output: OUTPUT_DIR.
        stage: whose script is run.
        data: the data set, where it is of videos.
    """

    root: Path
    config: Path
    output: Path
    stage: Stage = IMAGE
    data: MiniVideos | None = None

    @property
    def untrained(self) -> Path:
        """The weights of an untrained model; only runs on videos have them."""
        return self.config.with_name("untrained.pth")

    def command(self, *words: str) -> list[str]:
        """The script's words: options, then KEY VALUE pairs."""
        options = [word for word in words if word.startswith("--")]
        opts = [word for word in words if not word.startswith("--")]
        return ["--config-file", str(self.config), *options, "OUTPUT_DIR", str(self.output), *opts]

    def script(self, *words: str, processes: int = 1) -> subprocess.CompletedProcess:
        """Run the script, under torchrun for several processes."""
        command = [str(ROOT / self.stage.script), *self.command(*words)]
        if processes > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
            command = [*launcher, str(processes), *command]
        return self.python(*command)

    def python(self, *command: str, **environment: str) -> subprocess.CompletedProcess:
        """Run Python on a script of the repository, whose data sets are these."""
        own = {"DETECTRON2_DATASETS": str(self.root), "PYTHONWARNINGS": "ignore"}
        return subprocess.run(
            [sys.executable, *command],
            env={**os.environ, **own, **environment},
            capture_output=True,
            text=True,
            timeout=300,
            cwd=self.config.parent,
        )

    def here(self, *words: str, stage: Stage | None = None) -> None:
        """Run the script's code in this process, which saves the seconds that imports take."""
        with restore_loggers():
            training_script.main(stage or self.stage, self.command(*words))

    def results(self, name: str = "") -> list[dict]:
        """The predictions for a data set, by default the validation set."""
        return json.loads((self._folder(name) / "results.json").read_text())

    def scores(self, name: str = "") -> dict:
        """The scores of a data set, by default the validation set."""
        return json.loads((self._folder(name) / "scores.json").read_text())

    def metrics(self) -> list[dict]:
        """The lines of metrics.json."""
        return list(map(json.loads, (self.output / "metrics.json").read_text().splitlines()))

    def _folder(self, name: str) -> Path:
        return self.output / "inference" / (name or f"{CONFIGS[self.stage.script][1]}_val")


def make_run(folder: Path, stage: Stage = IMAGE) -> TinyRun:
    """Write everything that a run needs; for videos also the weights of an untrained model.

    Args:
        folder: where to; its "data sets" is the dataset root.
        stage: whose script it is for.
    """
    base, family = CONFIGS[stage.script]
    root = folder / "data sets"
    run = TinyRun(root, folder / "tiny.yaml", folder / "output", stage)
    names = [category["name"] for category in load_categories(family)]
    settings = {**SETTINGS, "_BASE_": str(ROOT / "configs" / base)}
    settings["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] = len(names)
    generator = torch.Generator().manual_seed(0)
    classifier = torch.randn(len(names), CLIP_DIM, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        if stage is IMAGE:
            draw_split(root, "train", 8)
            draw_split(root, "val", 4)
            files = ("shapes/classifier", "shapes/clip_val", "shapes/clip_train")
            settings |= {"DATASETS.TRAIN": ["shapes_train"], "DATASETS.TEST": ["shapes_val"]}
            keys = ("INPUT.IMAGE_SIZE", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST")
            settings |= dict.fromkeys(keys, SIDE)
        else:
            run.data = make_videos(root, family)
            write_metadata(run.data, generator)
            files = ("metadata/classes", "metadata/frames", "metadata/frames")
            if stage is FRAMES:
                settings |= {"DATASETS.TRAIN": [], "DATASETS.TEST": [f"{family}_val"]}
            settings |= {"INPUT.MIN_SIZE_TEST": SIDE, "INPUT.MIN_SIZE_TRAIN": [SIDE]}
            settings["INPUT.PSEUDO.MIN_SIZE_TRAIN"] = [SIDE]
            settings["MODEL.WEIGHTS"] = str(run.untrained)
        for key, file in zip(FILE_KEYS, files, strict=True):
            settings[f"MODEL.MASK_FORMER.{key}"] = f"datasets/{file}.safetensors"
        save_text_classifier(root / f"{files[0]}.safetensors", classifier, names, {})
        run.config.write_text(yaml.safe_dump(nest(settings)))
        if stage is not IMAGE:
            torch.manual_seed(1)
            model = build_model(get_ovformer_cfg(str(run.config)))
            torch.save({"model": model.state_dict()}, run.untrained)
    return run


def nest(settings: dict[str, Any]) -> dict[str, Any]:
    """ "A.B": value -> {"A": {"B": value}}, as in a config file."""
    result = {}
    for key, value in settings.items():
        *parents, name = key.split(".")
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return result


def draw_split(root: Path, split: str, num_images: int) -> None:
    """Write images of random rectangles, their annotations and their CLIP features."""
    rng = np.random.default_rng(len(split))
    categories = load_categories("shapes")
    # The training set shows no category of frequency "r".
    allowed = [c["id"] for c in categories if split == "val" or c["frequency"] != "r"]
    (root / "shapes" / split).mkdir(parents=True)
    images, annotations = [], []
    for image_id in range(1, num_images + 1):
        pixels = rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8)
        name = f"{split}/{image_id:03d}.png"
        image = {"id": image_id, "file_name": name, "height": SIDE, "width": SIDE}
        image |= {"neg_category_ids": allowed, "not_exhaustive_category_ids": []}
        images.append(image)
        # Different numbers of instances; in training also none.
        for number in range(image_id % 4 if split == "train" else image_id % 3 + 1):
            x, y, w, h = (int(v) for v in rng.integers(4, 30, 4))
            mask = rectangle((SIDE, SIDE), x, y, x + w, y + h)
            pixels[mask] = rng.integers(0, 255, 3)
            annotation = {"id": 10 * image_id + number, "image_id": image_id}
            annotation |= {"category_id": int(rng.choice(allowed)), "bbox": [x, y, w, h]}
            annotation |= {"area": w * h, "segmentation": compressed_rle(mask)}
            annotations.append(annotation)
        Image.fromarray(pixels).save(root / "shapes" / name)
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "shapes" / FILES[split]).write_text(json.dumps(content))
    with ImageEmbeddingWriter(root / "shapes" / f"clip_{split}.safetensors", {}) as writer:
        keys = [f"shapes/{image['file_name']}" for image in images]
        generator = torch.Generator().manual_seed(len(split))
        writer.add(keys, torch.randn(len(keys), CLIP_DIM, generator=generator))


def write_metadata(data: MiniVideos, generator: torch.Generator) -> None:
    """Write CLIP features of the frames, and how often training images show each category."""
    metadata = data.root / "metadata"
    with ImageEmbeddingWriter(metadata / "frames.safetensors", {}) as writer:
        for split in SPLITS:
            for record in load_dataset(f"{data.family}_{split}"):
                features = torch.randn(record["length"], CLIP_DIM, generator=generator)
                writer.add(record["clip_keys"], features)
    counts = [
        {**c, "image_count": 5, "frequency": "n" if data.is_novel(c) else "b"}
        for c in load_categories(data.family)
    ]
    (metadata / f"{data.family}_train_cat_info.json").write_text(json.dumps(counts))


@pytest.fixture
def tiny_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyRun:
    """A run on images, also for code in this process."""
    run = make_run(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(run.root))
    return run


@pytest.fixture
def refused(tiny_run: TinyRun, monkeypatch, capsys) -> Callable[..., str]:
    """A function that runs a script, which must stop before a process is started, with a message.

    Its arguments are words of the command line and the stage; it returns the message.
    """

    def refuse(*words: str, stage: Stage = IMAGE) -> str:
        monkeypatch.setattr(
            training_script, "launch", lambda *args, **kwargs: pytest.fail("a process was started")
        )
        with pytest.raises(SystemExit) as stop:
            tiny_run.here(*words, stage=stage)
        assert stop.value.code == 2
        return capsys.readouterr().err

    return refuse
