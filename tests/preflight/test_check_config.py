"""The entry of the checks: each error is found, alone, and names key, value and next step."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import DatasetCatalog, MetadataCatalog, build_model
from ovformer.data.catalog.dataset_spec import load_categories
from ovformer.engine.stages import CLIPS, FRAMES, IMAGE, STAGES, Stage
from ovformer.modeling.language.text_classifier import load_text_classifier, save_text_classifier
from support.tiny_clip import make_clip
from support.tiny_runs import CLIP_DIM, TinyRun

FORMER = "MODEL.MASK_FORMER."
Find = Callable[..., list[str]]


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (
            ["DATASETS.TRAIN", "('shapes_tran',)"],
            ["DATASETS.TRAIN: ", "'shapes_tran'", "'shapes_train'", "lvis_v1_val"],
        ),
        (
            ["DATASETS.TEST", "('shapes_val', 'nowhere_val')"],
            ["DATASETS.TEST: ", "'nowhere_val'", "shapes_val"],
        ),
        (["DATASETS.TEST", "('lvis_v1_val',)"], ["DATASETS.TEST", "'lvis_v1_val'", "1203"]),
        (["DATASETS.TRAIN", "()"], ["DATASETS.TRAIN is empty"]),
        (
            ["MODEL.BACKBONE.NAME", "build_tim_backbone"],
            ["MODEL.BACKBONE.NAME: ", "'build_tim_backbone'", "D2SwinTransformer"],
        ),
        (["MODEL.META_ARCHITECTURE", "OVFormerr"], ["MODEL.META_ARCHITECTURE: ", "'OVFormerr'"]),
        (
            ["MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "FPN"],
            ["PIXEL_DECODER_NAME: ", "'FPN'", "MSDeformAttnPixelDecoder"],
        ),
        (
            [f"{FORMER}TRANSFORMER_DECODER_NAME", "DETR"],
            ["TRANSFORMER_DECODER_NAME: ", "'DETR'", "MultiScaleMaskedTransformerDecoder"],
        ),
        (
            [f"{FORMER}CLIP_IMAGE_PATH", "", "MODEL.CLIP.NAME", "ViT-B-23"],
            ["MODEL.CLIP.NAME: ", "'ViT-B-23'", "ViT-B-32"],
        ),
        ([f"{FORMER}CLIP_IMAGE_PATH_TRAIN", "", "MODEL.CLIP.NAME", "local-dir:/none"], ["/none"]),
        (
            [f"{FORMER}CLIP_IMAGE_PATH", "datasets/none.safetensors"],
            [f"{FORMER}CLIP_IMAGE_PATH: ", "none.safetensors not found"],
        ),
        (
            [f"{FORMER}CLIP_IMAGE_PATH", "datasets/shapes/clip_train.safetensors"],
            ["4 images have no CLIP features"],
        ),
        (
            [f"{FORMER}CLIP_TEXT_PATH", "datasets/none.npy"],
            [f"{FORMER}CLIP_TEXT_PATH: ", "none.npy", "tools/build_text_classifier.py"],
        ),
        (
            [f"{FORMER}CLIP_TEXT_PATH", ""],
            [f"{FORMER}CLIP_TEXT_PATH is empty", "tools/build_text_classifier.py"],
        ),
        (
            [f"{FORMER}CAT_INFO_PATH", "datasets/none.json"],
            [f"{FORMER}CAT_INFO_PATH: ", "none.json", "tools/get_lvis_cat_info.py"],
        ),
        (["MODEL.WEIGHTS", "none.pth"], ["MODEL.WEIGHTS: none.pth not found", 'WEIGHTS ""']),
        (["MODEL.WEIGHTS", "~no-such-user/a.pth"], ["MODEL.WEIGHTS: ~no-such-user/a.pth"]),
        (["SOLVER.REFERENCE_WORLD_SIZE", "3"], ["SOLVER.REFERENCE_WORLD_SIZE is 3", "multiple"]),
        (["SOLVER.BASELR", "1"], ["'SOLVER.BASELR'", "SOLVER.BASE_LR"]),
        (["MODEL.DEVICE", "gpu"], ["MODEL.DEVICE: ", "cuda, cpu", "'gpu'"]),
        # Messages of constructors.
        (["MODEL.CHANNELS_LAST", "yes"], ["MODEL.CHANNELS_LAST: ", "'always'", "'yes'"]),
        ([f"{FORMER}HIDDEN_DIM", "30"], ["width 30", "8 heads", f"{FORMER}NHEADS"]),
        ([f"{FORMER}DROPOUT", "2.0"], ["MODEL: OVFormer can't be built", "dropout", "got 2.0"]),
    ],
    ids=lambda value: " ".join(value[:2]) if value[0].isupper() and "." in value[0] else "",
)
def test_one_error(find_errors: Find, opts: list[str], words: list[str]) -> None:
    (error,) = find_errors(*opts)
    for word in words:
        assert word in error


def test_class_count(find_errors: Find) -> None:
    errors = find_errors("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "35")
    assert len(errors) == 3  # training set, test set and text classifier
    assert all("MODEL.SEM_SEG_HEAD.NUM_CLASSES is 35" in error for error in errors)
    assert all("36" in error for error in errors)


def test_widths_of_another_clip_model(find_errors: Find, tmp_path: Path) -> None:
    errors = find_errors("MODEL.CLIP.EMBED_DIM", "8")
    assert len(errors) == 3  # text classifier, and two files of image features
    assert all("MODEL.CLIP.EMBED_DIM is 8" in error and "width 16" in error for error in errors)
    name = make_clip(tmp_path / "clip", width=8)
    width, size = find_errors(f"{FORMER}CLIP_IMAGE_PATH", "", "MODEL.CLIP.NAME", name)
    assert (
        "MODEL.CLIP.EMBED_DIM is 16" in width and f"{name} (MODEL.CLIP.NAME) has width 8" in width
    )
    assert "MODEL.CLIP.IMAGE_SIZE is 224" in size and "32 pixels" in size


@pytest.mark.parametrize(
    ("key", "value", "is_valid"),
    [
        ("MEMORY_MOMENTUM", 0.0, False),
        ("MEMORY_MOMENTUM", 1.0, True),
        ("FRAME_SCORE_RATIO", 1.5, True),
        ("FRAME_SCORE_RATIO", -0.5, False),
    ],
)
def test_the_constructor_decides(find_errors: Find, key: str, value: float, is_valid: bool) -> None:
    """A range check of its own once judged 0 and 1.5 differently."""
    model = ["MODEL.META_ARCHITECTURE", "OVFormerVideo", "DATASETS.TEST", "('ovis_val',)"]
    errors = find_errors(*model, f"{FORMER}TEST.{key}", str(value), stage=FRAMES, eval_only=True)
    errors = [error for error in errors if "TEST." in error and "DATASETS" not in error]
    assert bool(errors) != is_valid
    assert all(f"{FORMER}TEST.{key}: " in error and f"got {value}" in error for error in errors)
    assert len(errors) <= 1


@pytest.mark.parametrize(("stage", "name"), [(IMAGE, "OVFormerVideo"), (CLIPS, "OVFormer")])
def test_a_model_of_another_script(find_errors: Find, stage: Stage, name: str) -> None:
    errors = find_errors("MODEL.META_ARCHITECTURE", name, stage=stage)
    (error,) = (error for error in errors if error.startswith("MODEL.META_ARCHITECTURE: "))
    right = next(other for other in STAGES if other.meta_architecture == name)
    assert f"{right.script} runs {name}; {stage.script} runs" in error


def test_nothing_to_evaluate(find_errors: Find) -> None:
    (error,) = find_errors("DATASETS.TEST", "()", eval_only=True)
    assert "DATASETS.TEST is empty" in error and "--eval-only" in error


@pytest.mark.parametrize("key", ["SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD"])
def test_scaled_to_zero(find_errors: Find, key: str) -> None:
    opts = ["SOLVER.REFERENCE_WORLD_SIZE", "1", "SOLVER.MAX_ITER", "100", "MODEL.DEVICE", "cpu"]
    errors = find_errors("SOLVER.CHECKPOINT_PERIOD", "9", *opts, key, "1", num_gpus=4)
    assert any(e.startswith(f"{key}: 1 ") and "REFERENCE_WORLD_SIZE 1 to 4" in e for e in errors)


# Processes, devices and the output folder.


@pytest.mark.parametrize("device_count", [0, 2])
def test_more_gpus_than_exist(find_errors: Find, monkeypatch, device_count: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: device_count)
    opts = ["MODEL.DEVICE", "cuda", "SOLVER.IMS_PER_BATCH", "4"]
    (error,) = find_errors(*opts, num_gpus=4)
    assert f"--num-gpus 4, but {device_count} found" in error and "MODEL.DEVICE cpu" in error


def test_no_gpu(find_errors: Find, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (error,) = find_errors("MODEL.DEVICE", "cuda")
    assert error.startswith("MODEL.DEVICE: cuda") and "MODEL.DEVICE cpu" in error


def test_num_gpus_under_torchrun(find_errors: Find, monkeypatch) -> None:
    for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 2), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    (error,) = find_errors(num_gpus=4)
    assert error.startswith("--num-gpus 4: ") and "--nproc-per-node 4" in error


def test_numbers_of_processes_and_machines(find_errors: Find) -> None:
    (error,) = find_errors(num_gpus=0)
    assert error.startswith("--num-gpus 0 --num-machines 1: ")
    rank, url = find_errors(num_machines=2, machine_rank=2)
    assert rank.startswith("--machine-rank: ") and "got 2" in rank
    assert url.startswith("--dist-url auto: ") and "tcp://HOST:PORT" in url


def test_a_full_disk(find_errors: Find, tiny_run: TinyRun, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100_000))
    (error,) = find_errors()
    assert (
        error.startswith("OUTPUT_DIR: ")
        and f"100.0 kB are free in {tiny_run.output.parent}" in error
    )


def test_a_folder_that_cannot_be_made(find_errors: Find, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = str(tmp_path / "file" / "output")
    (error,) = find_errors("OUTPUT_DIR", output)
    assert error.startswith("OUTPUT_DIR: ") and repr(output) in error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(find_errors: Find, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir(mode=0o500)
    (error,) = find_errors("OUTPUT_DIR", str(tmp_path / "folder"))
    assert error.startswith("OUTPUT_DIR: ")


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


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_elsewhere(find_errors: Find, tiny_run: TinyRun, split: str) -> None:
    """The quick check looks for the first image of the annotations."""
    folder = tiny_run.root / "shapes" / split
    folder.rename(folder.with_name("other"))
    (error,) = find_errors()
    assert f"'shapes_{split}'" in error and str(folder / "001.png") in error


def test_missing_test_image(find_errors: Find, tiny_run: TinyRun) -> None:
    path = tiny_run.root / "shapes" / "val" / "002.png"
    path.unlink()
    (error,) = find_errors()
    assert "shapes_val: 1 of 4 images" in error and str(path) in error


@pytest.mark.parametrize(
    ("shape", "key"), [((35, CLIP_DIM), "NUM_CLASSES"), ((36, 7), "EMBED_DIM")]
)
def test_another_classifier(find_errors: Find, tiny_run: TinyRun, shape: tuple, key: str) -> None:
    path = tiny_run.root / "shapes" / "classifier.safetensors"
    save_text_classifier(path, torch.ones(shape), None, {})
    (error,) = find_errors()
    assert key in error and path.name in error


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
    cfg = get_ovformer_cfg(str(tiny_run.config))
    path = tiny_run.root / "other.pth"
    weights = ["MODEL.WEIGHTS", str(path)]
    torch.save({"model": build_model(cfg).state_dict()}, path)
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
    name = "shapes_scored_otherwise"
    path = str(tiny_run.root / "shapes" / "shapes_val.json")
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(
        thing_classes=["thing"] * 36, json_file=path, evaluator_type="sem_seg"
    )
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
