"""Checkpoints, runs and results of release 0.1.0 load, go on and score as they did there.

What 0.1.0 wrote is in reference/release_0_1_0, whose README.md says what each file is. Nothing here
depends on where a module is, but for what users import. Processors differ in the order in which
they add up, so what a network computes is compared with a tolerance. README.md has the differences
that were measured.
"""

import json
import re
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from pycocotools import mask as coco_mask

import ovformer.modeling  # noqa: F401  (registers)
from ovformer.config import get_ovformer_cfg
from ovformer.d2 import build_model

RELEASE = Path(__file__).parent / "reference" / "release_0_1_0"
record = SimpleNamespace(**runpy.run_path(str(RELEASE / "record.py")))
CONFIG = RELEASE / "run" / "config.yaml"
LEARNING_RATES = 4 * [0.003] + 4 * [0.0003]  # of the iterations after the checkpoint
# Biases that a norm or a softmax takes out again. Their gradient is 0 but for rounding, of which
# Adam makes steps of any size up to the learning rate.
WITHOUT_GRADIENT = re.compile(r"pixel_decoder\.input_proj\.\d\.0\.bias$|\.in_proj_bias$")


def read(name: str):
    return json.loads((RELEASE / name).read_text())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set and the CLIP model."""
    folder = tmp_path_factory.mktemp("prepared")
    record.prepare(folder)
    shutil.copy(RELEASE / "text_classifier.safetensors", folder / record.CLASSIFIER)
    shapes = folder / "datasets" / "shapes"
    for kind, name in (("image", "shapes_train_norare"), ("video", "shapes_video_val")):
        drawn = json.loads((shapes / f"{name}.json").read_text())
        assert drawn == read(f"{kind}/truth.json"), "tools/make_shapes.py draws other data"
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A folder with these, and with the run that was stopped."""
    (tmp_path / "datasets").symlink_to(prepared / "datasets")
    shutil.copytree(RELEASE / "run", tmp_path / "run")
    return tmp_path


def assert_contains(found, expected, key: str = "") -> None:
    """Each value that is expected is there; there may be new keys."""
    if isinstance(expected, dict):
        for name, value in expected.items():
            assert name in found, f"{key}{name} is missing"
            assert_contains(found[name], value, f"{key}{name}.")
    else:
        assert found == expected, key


def same_mask(a: dict, b: dict) -> bool:
    """Whether two masks are the same but for a few pixels at their border."""
    a, b = (coco_mask.decode(rle).astype(bool) for rle in (a, b))
    return a.shape == b.shape and np.sum(a != b) <= max(2, 0.03 * np.sum(a | b))


def assert_same_objects(found: list[dict], expected: list[dict], ids: tuple[str, ...]) -> None:
    """Each object is there once, whatever the order of those whose scores are almost the same.

    Args:
        found: with "score", and "segmentation" or "segmentations".
        expected: the same.
        ids: keys whose values have to be equal.
    """
    assert len(found) == len(expected)
    left = list(found)
    for item in expected:

        def fits(other: dict, item: dict = item) -> bool:
            masks = [x.get("segmentations") or [x["segmentation"]] for x in (item, other)]
            return (
                all(other[key] == item[key] for key in ids)
                and other["score"] == pytest.approx(item["score"], abs=1e-4)
                and len(masks[0]) == len(masks[1])
                and all(map(same_mask, *masks))
            )

        match = next((other for other in left if fits(other)), None)
        assert match is not None, f"not found: {item}"
        left.remove(match)


def assert_same_scores(found, expected, tolerance: float) -> None:
    """All numbers of a scores.json are the same; paths may differ."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            if key not in ("results", "ground_truth"):
                assert_same_scores(found[key], value, tolerance)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_same_scores(*pair, tolerance)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=tolerance)
    else:
        assert found == expected


def test_its_config_means_the_same() -> None:
    expected = yaml.safe_load(CONFIG.read_text())
    for file in (RELEASE / "image.yaml", CONFIG):
        assert_contains(yaml.safe_load(get_ovformer_cfg(str(file), []).dump()), expected)


def test_the_names_and_shapes_of_its_weights_are_those_of_the_model() -> None:
    opts = ["MODEL.MASK_FORMER.CLIP_TEXT_PATH", str(RELEASE / "text_classifier.safetensors")]
    model = build_model(get_ovformer_cfg(str(CONFIG), [*opts, "DATASETS.TRAIN", "()"]))
    content = torch.load(RELEASE / "run" / record.LAST, weights_only=True)
    weights = content["model"]
    own = model.state_dict()
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in weights.items()}
    # The text embeddings, which come from the file of the classifier.
    (key,) = (key for key in own if key.endswith("zs_weight"))
    torch.testing.assert_close(own[key], weights[key])


def test_its_results_get_the_same_scores(tmp_path: Path) -> None:
    words = ["mAP.py", "--et", "shapes_video_val", "--dt", str(RELEASE / "video/results.json")]
    words += ["--gt", str(RELEASE / "video/truth.json"), "--out", "map"]
    printed = record.run(tmp_path, words)
    assert (RELEASE / "video" / "table.txt").read_text() in printed
    found = json.loads((tmp_path / "map" / "scores.json").read_text())
    assert found["groups"]["all"]["AP50"] > 0.3
    assert_same_scores(found, read("video/scores.json"), 1e-9)


@pytest.mark.slow
def test_its_training_goes_on(folder: Path) -> None:
    before = (folder / "run" / "metrics.json").read_text()
    record.run(folder, record.RESUME)
    final = folder / "run" / "model_final.pth"
    assert (folder / "run" / "last_checkpoint").read_text() == final.name
    assert torch.load(final, weights_only=True)["iteration"] == 607
    expected = read("resumed.json")
    assert (folder / "run" / "metrics.json").read_text().startswith(before)
    lines = record.after_checkpoint(folder / "run" / "metrics.json")
    assert len(lines) == len(expected["metrics"])
    for line, old in zip(lines, expected["metrics"], strict=True):
        assert {k: line.get(k) for k in old} == pytest.approx(old, rel=1e-4)
    weights = record.describe_weights(final)
    assert weights.keys() == expected["weights"].keys()
    for name, values in expected["weights"].items():
        tolerance = 1e-4 * max(values[0], 1e-3)
        if WITHOUT_GRADIENT.search(name):
            tolerance = 2 * sum(LEARNING_RATES)
        assert weights[name] == pytest.approx(values, abs=tolerance), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "video"])
def test_its_checkpoint_predicts_the_same_in_evaluation(folder: Path, kind: str) -> None:
    record.run(folder, record.EVALUATE[kind])
    output = folder / kind / "inference" / record.DATASETS[kind]
    found = json.loads((output / "results.json").read_text())
    expected = read(f"{kind}/results.json")
    ids = ("image_id" if kind == "image" else "video_id", "category_id")
    assert_same_objects(found, expected, ids)
    masks = [[x.get("segmentations", x.get("segmentation")) for x in y] for y in (found, expected)]
    # A pixel at a border may decide whether a mask counts as right.
    tolerance = 1e-6 if masks[0] == masks[1] else {"image": 5, "video": 0.05}[kind]
    scores = json.loads((output / "scores.json").read_text())
    assert_same_scores(scores, read(f"{kind}/scores.json"), tolerance)


@pytest.mark.slow
def test_its_checkpoint_predicts_the_same_for_a_user(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DETECTRON2_DATASETS", "datasets")
    found, expected = record.find_objects(), read("objects.json")
    assert found["names"] == expected["names"]
    for vocabulary in ("checkpoint", "words"):
        objects = found[vocabulary]
        assert_same_objects(objects, expected[vocabulary], ("label", "name"))
