"""The entry of the checks: each error is found, alone, and names key, value and next step."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import DatasetCatalog, MetadataCatalog, build_model
from ovformer.data.catalog.dataset_spec import load_categories
from ovformer.engine.stages import FRAMES, STAGES
from ovformer.modeling.language.text_classifier import load_text_classifier, save_text_classifier
from support.tiny_clip import make_clip
from support.tiny_runs import TinyRun

FORMER = "MODEL.MASK_FORMER."
Find = Callable[..., list[str]]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("DATASETS.TRAIN", "('shapes_tran',)", ["'shapes_tran'", "'shapes_train'", "lvis_v1_val"]),
        ("DATASETS.TRAIN", "()", ["is empty"]),
        ("DATASETS.TEST", "('shapes_val', 'nowhere_val')", ["'nowhere_val'", "shapes_val"]),
        ("DATASETS.TEST", "('lvis_v1_val',)", ["'lvis_v1_val'", "1203"]),
        ("MODEL.BACKBONE.NAME", "build_tim_backbone", ["'build_tim_b", "D2SwinTransformer"]),
        ("MODEL.META_ARCHITECTURE", "OVFormerr", ["'OVFormerr'", "OVFormerVideo"]),
        ("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "FPN", ["'FPN'", "MSDeformAttnPixelDecoder"]),
        (f"{FORMER}TRANSFORMER_DECODER_NAME", "DETR", ["'DETR'", "MultiScaleMaskedTransformerD"]),
        (f"{FORMER}CLIP_IMAGE_PATH", "none.safetensors", ["none.safetensors not found"]),
        (f"{FORMER}CLIP_TEXT_PATH", "none.npy", ["none.npy", "tools/build_text_classifier.py"]),
        (f"{FORMER}CLIP_TEXT_PATH", "", ["is empty", "tools/build_text_classifier.py"]),
        (f"{FORMER}CAT_INFO_PATH", "none.json", ["none.json", "tools/get_lvis_cat_info.py"]),
        ("MODEL.WEIGHTS", "none.pth", ["none.pth not found", 'WEIGHTS ""']),
        ("MODEL.WEIGHTS", "~no-such-user/a.pth", ["~no-such-user/a.pth"]),
        ("SOLVER.REFERENCE_WORLD_SIZE", "3", ["is 3", "multiple"]),
        ("MODEL.DEVICE", "gpu", ["cuda, cpu", "'gpu'"]),
    ],
)
def test_one_error(find_errors: Find, key: str, value: str, words: list[str]) -> None:
    (error,) = find_errors(key, value)
    assert key in error and all(word in error for word in words)


def test_messages_of_constructors(find_errors: Find) -> None:
    """PyTorch's own messages name no key."""
    (error,) = find_errors(f"{FORMER}HIDDEN_DIM", "30")
    assert all(word in error for word in ("width 30", "8 heads", f"{FORMER}NHEADS"))
    (error,) = find_errors(f"{FORMER}DROPOUT", "2.0")
    assert all(word in error for word in ("MODEL: OVFormer can't be built", "dropout", "got 2.0"))


def test_files_of_another_data_set_or_model(find_errors: Find) -> None:
    (error,) = find_errors(f"{FORMER}CLIP_IMAGE_PATH", "datasets/shapes/clip_train.safetensors")
    assert "4 images have no CLIP features" in error
    errors = find_errors("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "35")
    assert len(errors) == 3  # training set, test set and text classifier
    assert all("NUM_CLASSES is 35" in error and "36" in error for error in errors)
    errors = find_errors("MODEL.CLIP.EMBED_DIM", "8")
    assert len(errors) == 3  # text classifier, and two files of image features
    assert all("MODEL.CLIP.EMBED_DIM is 8" in error and "width 16" in error for error in errors)


def test_clip_models(find_errors: Find, tmp_path: Path) -> None:
    computed = (f"{FORMER}CLIP_IMAGE_PATH", "", "MODEL.CLIP.NAME")
    (error,) = find_errors(*computed, "ViT-B-23")
    assert error.startswith("MODEL.CLIP.NAME: ") and "'ViT-B-23'" in error and "ViT-B-32" in error
    (error,) = find_errors(*computed, "local-dir:/none")
    assert "/none" in error
    name = make_clip(tmp_path / "clip", width=8)
    width, size = find_errors(*computed, name)
    assert "MODEL.CLIP.EMBED_DIM is 16" in width and f"{name} (MODEL.CLIP.NAME) has wi" in width
    assert "MODEL.CLIP.IMAGE_SIZE is 224" in size and "32 pixels" in size


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.script)
def test_a_model_of_another_script(find_errors: Find, stage) -> None:
    right = FRAMES if stage is not FRAMES else STAGES[0]
    name = right.meta_architecture
    errors = find_errors("MODEL.META_ARCHITECTURE", name, stage=stage)
    (error,) = (error for error in errors if error.startswith("MODEL.META_ARCHITECTURE: "))
    assert f"{right.script} runs {name}; {stage.script} runs" in error


def test_options_of_the_command_line(find_errors: Find) -> None:
    (error,) = find_errors("DATASETS.TEST", "()", eval_only=True)
    assert "DATASETS.TEST is empty" in error and "--eval-only" in error
    (error,) = find_errors(num_gpus=0)
    assert error.startswith("--num-gpus 0 --num-machines 1: ")
    opts = ["SOLVER.REFERENCE_WORLD_SIZE", "1", "SOLVER.MAX_ITER", "100", "MODEL.DEVICE", "cpu"]
    opts += ["SOLVER.CHECKPOINT_PERIOD", "9"]
    for key in ("SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD"):
        errors = find_errors(*opts, key, "1", num_gpus=4)
        assert any(e.startswith(f"{key}: 1 ") and "WORLD_SIZE 1 to 4" in e for e in errors)


# The output folder.


def test_output_folder(find_errors: Find, tiny_run: TinyRun, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    output = str(tmp_path / "file" / "output")
    (error,) = find_errors("OUTPUT_DIR", output)
    assert error.startswith("OUTPUT_DIR: ") and repr(output) in error
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100_000))
    (error,) = find_errors()
    assert error.startswith("OUTPUT_DIR: ")
    assert f"100.0 kB are free in {tiny_run.output.parent}" in error


def test_warnings(find_errors: Find, tiny_run: TinyRun, monkeypatch, caplog) -> None:
    """Room for some checkpoints only, another training's files, a schedule that is cut off."""
    tiny_run.output.mkdir()
    (tiny_run.output / "last_checkpoint").write_text("model_final.pth")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    assert not find_errors("SOLVER.MAX_ITER", "100", "SOLVER.STEPS", "(50, 100)")
    for words in ("51 checkpoints of", "5.0 MB are free", "--resume", "SOLVER.STEPS: "):
        assert words in caplog.text
    caplog.clear()
    assert not find_errors(eval_only=True)
    assert not caplog.text


# Files that are missing, damaged, or do not fit the config.


@pytest.mark.parametrize("split", ["train_norare", "val"])
def test_annotations(find_errors: Find, tiny_run: TinyRun, split: str) -> None:
    path = tiny_run.root / "shapes" / f"shapes_{split}.json"
    path.write_text(path.read_text()[:-100])
    (error,) = find_errors()
    assert f"{path}: not valid JSON" in error and "truncated" in error
    path.unlink()
    (error,) = find_errors()
    assert f"annotations {path}" in error


def test_missing_images(find_errors: Find, tiny_run: TinyRun) -> None:
    """The quick check looks for the first image of the annotations, the slow one for all."""
    folder = tiny_run.root / "shapes" / "val"
    (folder / "002.png").rename(folder / "other.png")
    (error,) = find_errors()
    assert "shapes_val: 1 of 4 images" in error and str(folder / "002.png") in error
    for split in ("train", "val"):
        folder.with_name(split).rename(folder.with_name(f"other {split}"))
    for error, split in zip(find_errors(), ("train", "val"), strict=True):
        assert f"'shapes_{split}'" in error and str(folder.with_name(split) / "001.png") in error


def test_class_names(find_errors: Find, tiny_run: TinyRun, caplog) -> None:
    """Names in another order are an error, other names a warning."""
    path = tiny_run.root / "shapes" / "classifier.safetensors"
    classifier = load_text_classifier(path)
    names = [name.replace(" ", "_").title() for name in classifier.names]
    names[4], names[7] = names[7], names[4]
    save_text_classifier(path, classifier.weights, names, {})
    for error, name in zip(find_errors(), ("shapes_train", "shapes_val"), strict=True):
        assert f"'{name}'" in error and "tools/build_text_classifier.py" in error
        assert f"class 4 is {names[4]!r} instead of {classifier.names[4]!r}" in error
    meta = {"clip": "RN50", "pretrained": "openai"}
    save_text_classifier(path, classifier.weights, ["disc", *classifier.names[1:]], meta)
    assert not find_errors(eval_only=True)
    assert "1 of 36 classes of 'shapes_val'" in caplog.text and "class 0" in caplog.text
    assert "RN50 / openai" in caplog.text and "ViT-B-32" in caplog.text


def test_a_checkpoint_of_another_model(find_errors: Find, tiny_run: TinyRun) -> None:
    """Of other sizes; of something else altogether; and no checkpoint."""
    path = tiny_run.root / "other.pth"
    weights = ["MODEL.WEIGHTS", str(path)]
    torch.save({"model": build_model(get_ovformer_cfg(str(tiny_run.config))).state_dict()}, path)
    (error,) = find_errors(*weights, f"{FORMER}NUM_OBJECT_QUERIES", "7", eval_only=True)
    assert f"MODEL.WEIGHTS: {path} " in error
    assert "query_feat.weight (6, 32), in the model (7, 32)" in error
    torch.save({"model": {"roi_heads.weight": torch.ones(1)}}, path)
    (error,) = find_errors(*weights, eval_only=True)
    assert f"MODEL.WEIGHTS: {path} " in error
    path.write_text("<html>Not found</html>")
    (error,) = find_errors(*weights)
    assert f"MODEL.WEIGHTS: {path} can't be read" in error


def test_resuming_from_a_missing_checkpoint(find_errors: Find, tiny_run: TinyRun) -> None:
    tiny_run.output.mkdir()
    (tiny_run.output / "last_checkpoint").write_text("model_0000001.pth")
    (tiny_run.output / "model_0000000.pth").touch()
    (error,) = find_errors(resume=True)
    assert "model_0000001.pth is missing" in error and "another OUTPUT_DIR" in error
    assert not find_errors(resume=True, allow_older=True)


def test_a_metric_that_the_script_lacks(find_errors: Find, tiny_run: TinyRun) -> None:
    name, path = "shapes_scored_otherwise", str(tiny_run.root / "shapes" / "shapes_val.json")
    DatasetCatalog.register(name, list)
    values = {"thing_classes": ["thing"] * 36, "json_file": path, "evaluator_type": "sem_seg"}
    MetadataCatalog.get(name).set(**values)
    try:
        (error,) = find_errors("DATASETS.TEST", f"('{name}',)")
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert repr(name) in error and "'sem_seg'" in error and "lvis" in error


def test_counts_of_other_categories(find_errors: Find, tiny_run: TinyRun) -> None:
    path = tiny_run.root / "counts.json"
    counts = [{**category, "image_count": 0} for category in load_categories("shapes")]
    counts[2]["name"], counts[5]["name"] = counts[5]["name"], counts[2]["name"]
    path.write_text(json.dumps(counts))
    names, zero = find_errors(f"{FORMER}CAT_INFO_PATH", str(path))
    assert f"{path} has other categories than 'shapes_train': class 2 is" in names
    assert str(path) in zero and "image_count" in zero
