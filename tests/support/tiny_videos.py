"""A tiny data set of videos and model, to run the scripts of videos as a user does."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import build_model
from ovformer.data.catalog.dataset_spec import load_categories, load_dataset
from ovformer.data.files.image_embeddings import ImageEmbeddingWriter
from ovformer.engine.stages import CLIPS, FRAMES, Stage
from ovformer.modeling.language.text_classifier import save_text_classifier
from ovformer.run import main
from support.loggers import own_loggers
from support.mini_videos import SPLITS, MiniVideos, make_videos
from support.tiny_shapes import CLIP_DIM, MODEL, ROOT

DETECTIONS = 5
# By the script: the config that the tiny one changes, and the data set.
CONFIGS = {
    FRAMES.script: ("base_video.yaml", "ytvis_2019"),
    CLIPS.script: ("lvvis/video_ovformer_R50_bs8.yaml", "lvvis"),
}


@dataclass
class VideoRun:
    """A data set, a config file and an output folder.

    Attributes:
        data: the data set.
        config: the config file.
        output: OUTPUT_DIR.
        stage: tells the script.
    """

    data: MiniVideos
    config: Path
    output: Path
    stage: Stage = FRAMES

    @property
    def untrained(self) -> Path:
        """The weights of an untrained model."""
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

    def python(self, *command: str) -> subprocess.CompletedProcess:
        """Run Python on a script of the repository, whose data sets are these."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        env = {
            **os.environ,
            "DETECTRON2_DATASETS": str(self.data.root),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": path,
            "PYTHONWARNINGS": "ignore",
        }
        return subprocess.run(
            [sys.executable, *command],
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
            cwd=self.config.parent,
        )

    def here(self, *words: str) -> None:
        """Run the script's code in this process."""
        with own_loggers():
            main(self.stage, self.command(*words))

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
        return self.output / "inference" / (name or f"{self.data.family}_val")


def make_run(folder: Path, stage: Stage = FRAMES) -> VideoRun:
    """Write everything that a run needs, with the weights of an untrained model.

    Args:
        folder: where to; its "data sets" is the dataset root that ``$DETECTRON2_DATASETS`` names.
        stage: whose script it is for.
    """
    base, family = CONFIGS[stage.script]
    data = make_videos(folder / "data sets", family)
    metadata = data.root / "metadata"
    names = [category["name"] for category in load_categories(family)]
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(len(names), CLIP_DIM, generator=generator)
    save_text_classifier(metadata / "classes.safetensors", weights, names, {})
    with ImageEmbeddingWriter(metadata / "frames.safetensors", {}) as writer:
        for split in SPLITS:
            for record in load_dataset(f"{family}_{split}"):
                features = torch.randn(record["length"], CLIP_DIM, generator=generator)
                writer.add(record["clip_keys"], features)
    counts = [
        {**c, "image_count": 5, "frequency": "n" if data.is_novel(c) else "b"}
        for c in load_categories(family)
    ]
    (metadata / f"{family}_train_cat_info.json").write_text(json.dumps(counts))
    settings = copy.deepcopy(MODEL)
    settings["_BASE_"] = str(ROOT / "configs" / base)
    settings["MODEL"]["WEIGHTS"] = str(folder / "untrained.pth")
    settings["MODEL"]["SEM_SEG_HEAD"]["NUM_CLASSES"] = len(names)
    settings["MODEL"]["MASK_FORMER"] |= {
        "CLIP_TEXT_PATH": "datasets/metadata/classes.safetensors",
        "CLIP_IMAGE_PATH": "datasets/metadata/frames.safetensors",
        "CLIP_IMAGE_PATH_TRAIN": "datasets/metadata/frames.safetensors",
    }
    del settings["DATASETS"]
    if stage is FRAMES:
        settings["DATASETS"] = {"TRAIN": [], "TEST": [f"{family}_val"]}
    settings["INPUT"] = {"MIN_SIZE_TEST": 64, "MIN_SIZE_TRAIN": [64]}
    settings["INPUT"]["PSEUDO"] = {"MIN_SIZE_TRAIN": [64]}
    settings["TEST"]["DETECTIONS_PER_IMAGE"] = DETECTIONS
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump(json.loads(json.dumps(settings))))
    torch.manual_seed(1)
    model = build_model(get_ovformer_cfg(str(config)))
    torch.save({"model": model.state_dict()}, folder / "untrained.pth")
    return VideoRun(data, config, folder / "output", stage)
