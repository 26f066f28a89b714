"""tools/pretrain_backbone.py: from annotated objects to a file for MODEL.WEIGHTS."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import DatasetCatalog, build_backbone
from ovformer.engine.checkpoint import read_weights
from ovformer_tools.shape_scenes import CATEGORY_NAMES

CONFIG = str(Path(__file__).parents[2] / "configs" / "quickstart" / "ovformer_shapes.yaml")
BATCH = ["--batch-size", "8"]


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("pretrain_backbone")


@pytest.fixture(scope="module")
def shapes_root(load_tool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("datasets")
    options = ["--train-images", "12", "--val-images", "1"]
    options += ["--train-videos", "1", "--val-videos", "1"]
    load_tool("make_shapes").main([*options, "--output", str(root / "shapes")])
    return root


@pytest.fixture(autouse=True)
def dataset_root(shapes_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes_root))


def pretrain(tool, output: Path, iterations: int, *arguments: str) -> dict[str, torch.Tensor]:
    options = ["--config-file", CONFIG, "--iterations", str(iterations), *BATCH]
    tool.main([*options, "--output", str(output), *arguments])
    return torch.load(output, weights_only=True)


def test_the_backbone_of_the_model_takes_the_weights(tool, load_tool, tmp_path: Path) -> None:
    trained = pretrain(tool, tmp_path / "backbone.pth", 3)
    load_tool("convert-thirdparty-pretrained-model-to-d2").main(
        ["--path", str(tmp_path / "backbone.pth")]
    )
    backbone = build_backbone(get_ovformer_cfg(CONFIG))
    content = read_weights(tmp_path / "backbone.pkl")
    weights = {name: torch.as_tensor(value) for name, value in content["model"].items()}
    backbone.load_state_dict(weights)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value.float(), trained[name].float()), name


def test_the_seed_decides(tool, tmp_path: Path) -> None:
    first = pretrain(tool, tmp_path / "a.pth", 2)
    again = pretrain(tool, tmp_path / "b.pth", 2)
    other = pretrain(tool, tmp_path / "c.pth", 2, "--seed", "1")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["base.layer1.0.conv1.weight"], other["base.layer1.0.conv1.weight"])


def test_a_crop_shows_its_object_in_the_middle(tool) -> None:
    crops, labels = tool.cut_crops("shapes_train", 65)
    annotations = [a for r in DatasetCatalog.get("shapes_train") for a in r["annotations"]]
    assert labels.tolist() == [a["category_id"] for a in annotations]
    assert crops.shape == (len(annotations), 65, 65, 3) and crops.dtype == np.uint8
    colourful = []
    for crop, label in zip(crops, labels, strict=True):
        saturation = cv2.cvtColor(crop, cv2.COLOR_RGB2HSV)[..., 1]
        if not CATEGORY_NAMES[label].endswith("ring"):
            colourful.append(saturation[28:37, 28:37].mean() > 120)
    assert np.mean(colourful) > 0.8  # others may be covered there


def test_the_words_of_names(tool) -> None:
    # The words are "blue", "red" and "ring".
    targets = tool.word_targets(["red ring", "blue ring", "red"])
    assert targets.tolist() == [[0, 1, 1], [1, 0, 1], [0, 1, 0]]


def test_some_crops_are_grey(tool) -> None:
    crops = np.random.default_rng(0).integers(0, 256, (200, 4, 4, 3)).astype(np.uint8)
    images = tool.augment(np.random.default_rng(0), crops, 0.5)
    grey = (images == images[:, :1]).all(3).all(2).all(1)
    assert 70 < grey.sum() < 130
    expected = torch.from_numpy(crops).float().flatten(1, 2).sort(1).values
    got = images.permute(0, 2, 3, 1).flatten(1, 2).sort(1).values
    assert torch.equal(got[~grey], expected[~grey])
    means = torch.from_numpy(crops).float().mean(3).flatten(1).sort(1).values
    assert torch.allclose(got[grey][..., 0], means[grey])
