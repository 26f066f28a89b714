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

TOOL = "pretrain_backbone"
CONFIG = str(Path(__file__).parents[2] / "configs" / "quickstart" / "ovformer_shapes.yaml")


@pytest.fixture(scope="module")
def shapes_root(load_tool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("datasets")
    counts = {"train-images": 12, "val-images": 1, "train-videos": 1, "val-videos": 1}
    options = [f"--{name}={count}" for name, count in counts.items()]
    load_tool("make_shapes").main([*options, "--output", str(root / "shapes")])
    return root


@pytest.fixture(autouse=True)
def dataset_root(shapes_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes_root))


def test_the_backbone_takes_the_weights_and_the_seed_decides(tool, load_tool, tmp_path) -> None:
    def pretrain(name: str, *options: str) -> dict[str, torch.Tensor]:
        words = ["--config-file", CONFIG, "--iterations", "2", "--batch-size", "8", *options]
        tool.main([*words, "--output", str(tmp_path / name)])
        return torch.load(tmp_path / name, weights_only=True)

    first, again, other = pretrain("a.pth"), pretrain("b.pth"), pretrain("c.pth", "--seed", "1")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["base.layer1.0.conv1.weight"], other["base.layer1.0.conv1.weight"])

    convert = load_tool("convert-thirdparty-pretrained-model-to-d2")
    convert.main(["--path", str(tmp_path / "a.pth")])
    backbone = build_backbone(get_ovformer_cfg(CONFIG))
    content = read_weights(tmp_path / "a.pkl")
    backbone.load_state_dict({n: torch.as_tensor(value) for n, value in content["model"].items()})
    for name, value in backbone.state_dict().items():
        assert torch.equal(value.float(), first[name].float()), name


def test_a_crop_shows_its_object_in_the_middle(tool) -> None:
    crops, labels = tool.cut_crops("shapes_train", 65)
    annotations = [a for r in DatasetCatalog.get("shapes_train") for a in r["annotations"]]
    assert labels.tolist() == [a["category_id"] for a in annotations]
    assert crops.shape == (len(annotations), 65, 65, 3) and crops.dtype == np.uint8
    colourful = [
        cv2.cvtColor(crop, cv2.COLOR_RGB2HSV)[28:37, 28:37, 1].mean() > 120
        for crop, label in zip(crops, labels, strict=True)
        if not CATEGORY_NAMES[label].endswith("ring")
    ]
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
    # A turned or mirrored crop has the same pixels in another order.
    expected = torch.from_numpy(crops).permute(0, 3, 1, 2).float().flatten(2)
    got = images.flatten(2).sort(2).values
    assert torch.equal(got[~grey], expected.sort(2).values[~grey])
    assert torch.allclose(got[grey][:, 0], expected.mean(1).sort(1).values[grey])
