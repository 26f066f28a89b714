"""A tiny data set and model, to run the training script as a user does within seconds."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

from ovformer import run as training_script
from ovformer.data.catalog.dataset_spec import load_categories
from ovformer.data.files.image_embeddings import ImageEmbeddingWriter
from ovformer.engine.stages import IMAGE, Stage
from ovformer.modeling.language.text_classifier import save_text_classifier
from support.loggers import own_loggers

ROOT = Path(__file__).parents[2]
SIDE = 64
CLIP_DIM = 16
FILES = {"train": "shapes_train_norare.json", "val": "shapes_val.json"}
MODEL = {
    "_BASE_": str(ROOT / "configs" / "base_image.yaml"),
    "MODEL": {
        "DEVICE": "cpu",
        "BACKBONE": {"NAME": "build_timm_backbone"},
        "TIMM": {
            "BASE_NAME": "resnet18",
            # Without weights, blocks that start as the identity would get no gradient.
            "KWARGS": "{layers: [1, 1, 1, 1], channels: [8, 8, 16, 16], stem_width: 8, "
            "zero_init_last: false}",
        },
        "SEM_SEG_HEAD": {
            "NUM_CLASSES": 36,
            "IN_FEATURES": ["layer2", "layer3", "layer4", "layer5"],
            "DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["layer3", "layer4", "layer5"],
            "DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD": 32,
            "TRANSFORMER_ENC_LAYERS": 1,
            "CONVS_DIM": 32,
            "MASK_DIM": 16,
        },
        "MASK_FORMER": {
            "HIDDEN_DIM": 32,
            "NUM_OBJECT_QUERIES": 6,
            "DIM_FEEDFORWARD": 32,
            "DEC_LAYERS": 3,
            "TRAIN_NUM_POINTS": 32,
            "CLIP_TEXT_PATH": "datasets/shapes/classifier.safetensors",
            "CLIP_IMAGE_PATH": "datasets/shapes/clip_val.safetensors",
            "CLIP_IMAGE_PATH_TRAIN": "datasets/shapes/clip_train.safetensors",
        },
        "CLIP": {"EMBED_DIM": CLIP_DIM},
    },
    "DATASETS": {"TRAIN": ("shapes_train",), "TEST": ("shapes_val",)},
    "SOLVER": {
        "IMS_PER_BATCH": 2,
        "BASE_LR": 0.001,
        "MAX_ITER": 4,
        "STEPS": (3,),
        "CHECKPOINT_PERIOD": 2,
        "AMP": {"ENABLED": False},
    },
    "INPUT": {"IMAGE_SIZE": SIDE, "MIN_SIZE_TEST": SIDE, "MAX_SIZE_TEST": SIDE},
    "TEST": {"EVAL_PERIOD": 2, "DETECTIONS_PER_IMAGE": 5},
    "DATALOADER": {"NUM_WORKERS": 0},
    "SEED": 3,
}


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
        images.append(
            {
                "id": image_id,
                "file_name": name,
                "height": SIDE,
                "width": SIDE,
                "neg_category_ids": allowed,
                "not_exhaustive_category_ids": [],
            }
        )
        # Different numbers of instances; in training also none.
        for number in range(image_id % 4 if split == "train" else image_id % 3 + 1):
            x, y, w, h = (int(v) for v in rng.integers(4, 30, 4))
            mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
            mask[y : y + h, x : x + w] = 1
            pixels[mask > 0] = rng.integers(0, 255, 3)
            rle = coco_mask.encode(mask)
            annotations.append(
                {
                    "id": 10 * image_id + number,
                    "image_id": image_id,
                    "category_id": int(rng.choice(allowed)),
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "segmentation": {"size": [SIDE, SIDE], "counts": rle["counts"].decode()},
                }
            )
        Image.fromarray(pixels).save(root / "shapes" / name)
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "shapes" / FILES[split]).write_text(json.dumps(content))
    with ImageEmbeddingWriter(root / "shapes" / f"clip_{split}.safetensors", {}) as writer:
        keys = [f"shapes/{image['file_name']}" for image in images]
        generator = torch.Generator().manual_seed(len(split))
        writer.add(keys, torch.randn(len(keys), CLIP_DIM, generator=generator))


@dataclass
class TinyRun:
    """The data set, a config file, and an output folder.

    Attributes:
        root: the dataset root.
        config: the config file.
        output: OUTPUT_DIR.
        env: environment variables to add.
    """

    root: Path
    config: Path
    output: Path
    env: dict[str, str] = field(default_factory=dict)

    def command(self, *words: str) -> list[str]:
        """The script's words: options, then KEY VALUE pairs."""
        options = [word for word in words if word.startswith("--")]
        opts = [word for word in words if not word.startswith("--")]
        config = ["--config-file", str(self.config)]
        return [*config, *options, "OUTPUT_DIR", str(self.output), *opts]

    def environment(self) -> dict[str, str]:
        """Environment variables of the script."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **self.env}

    def __call__(self, *words: str, processes: int = 1) -> subprocess.CompletedProcess:
        """Run ``train_net.py``, under torchrun for several processes."""
        script = [str(ROOT / "train_net.py"), *self.command(*words)]
        if processes > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
            script = [*launcher, str(processes), *script]
        return subprocess.run(
            [sys.executable, *script],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )


def run_here(run: TinyRun, *words: str, stage: Stage = IMAGE) -> None:
    """Run a script in this process, which saves the seconds that imports take."""
    with own_loggers():
        training_script.main(stage, run.command(*words))


def make_run(folder: Path) -> TinyRun:
    """Write everything that a run needs."""
    root = folder / "data sets"
    draw_split(root, "train", 8)
    draw_split(root, "val", 4)
    names = [category["name"] for category in load_categories("shapes")]
    weights = torch.randn(len(names), CLIP_DIM, generator=torch.Generator().manual_seed(0))
    save_text_classifier(root / "shapes" / "classifier.safetensors", weights, names, {})
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump(json.loads(json.dumps(MODEL))))
    env = {"DETECTRON2_DATASETS": str(root), "PYTHONWARNINGS": "ignore"}
    return TinyRun(root, config, folder / "output", env)


@pytest.fixture(name="tiny_run")
def tiny_run_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyRun:
    """A fresh data set and output folder, also for code in this process."""
    run = make_run(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(run.root))
    return run


@pytest.fixture(name="refused")
def refused_fixture(tiny_run: TinyRun, monkeypatch, capsys) -> Callable[..., str]:
    """A function that runs a script, which must stop before a process is started, with a message.

    Its arguments are words of the command line and the stage; it returns the message.
    """

    def refuse(*words: str, stage: Stage = IMAGE) -> str:
        monkeypatch.setattr(
            training_script, "launch", lambda *args, **kwargs: pytest.fail("it went on")
        )
        with pytest.raises(SystemExit) as stop:
            run_here(tiny_run, *words, stage=stage)
        assert stop.value.code == 2
        return capsys.readouterr().err

    return refuse
