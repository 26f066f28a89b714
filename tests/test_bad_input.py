"""What a user may get wrong: each ends with a message that says what, before any long work."""

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from tiny_clip import make_clip
from tiny_shapes import CLIP_DIM, TinyRun, run_here, tiny_run_fixture  # noqa: F401

from ovformer.d2 import DatasetCatalog, MetadataCatalog
from ovformer.engine import cli
from ovformer.engine.stages import CLIP, IMAGE, STAGES, Stage
from ovformer.modeling.text_classifier import save_text_classifier


@pytest.fixture
def refused(tiny_run: TinyRun, monkeypatch, capsys):
    """A function that runs the script, which must stop before a process is started."""

    def refuse(*words: str, stage: Stage = IMAGE) -> str:
        monkeypatch.setattr(cli, "launch", lambda *args, **kwargs: pytest.fail("it went on"))
        with pytest.raises(SystemExit) as stop:
            run_here(tiny_run, *words, stage=stage)
        assert stop.value.code == 2
        return capsys.readouterr().err

    return refuse


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (
            ["DATASETS.TRAIN", "('shapes_tran',)"],
            ["DATASETS.TRAIN: unknown dataset 'shapes_tran'", "'shapes_train'", "lvis_v1_val"],
        ),
        (
            ["DATASETS.TEST", "('shapes_val', 'nowhere_val')"],
            ["DATASETS.TEST: unknown dataset 'nowhere_val'", "shapes_val"],
        ),
        (["DATASETS.TRAIN", "()"], ["DATASETS.TRAIN is empty"]),
        (
            ["MODEL.BACKBONE.NAME", "build_tim_backbone"],
            ["MODEL.BACKBONE.NAME: unknown 'build_tim_backbone'", "D2SwinTransformer"],
        ),
        (
            ["MODEL.TIMM.BASE_NAME", "resnet5O"],
            ["MODEL.TIMM.BASE_NAME: unknown model 'resnet5O'", "resnet50"],
        ),
        (
            ["MODEL.TIMM.KWARGS", "{depth: 3}"],
            ["MODEL.TIMM: timm cannot build 'resnet18'", "depth"],
        ),
        (
            ["MODEL.SEM_SEG_HEAD.IN_FEATURES", "('res2', 'layer3')"],
            ["MODEL.SEM_SEG_HEAD.IN_FEATURES: res2 not among", "layer2, layer3, layer4, layer5"],
        ),
        (
            ["MODEL.META_ARCHITECTURE", "OVFormerr"],
            ["MODEL.META_ARCHITECTURE: unknown 'OVFormerr'", "OVFormer"],
        ),
        (
            ["MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "FPN"],
            ["PIXEL_DECODER_NAME: unknown 'FPN'", "MSDeformAttnPixelDecoder"],
        ),
        (
            ["MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "DETR"],
            ["TRANSFORMER_DECODER_NAME: unknown 'DETR'", "MultiScaleMaskedTransformerDecoder"],
        ),
        (
            ["MODEL.MASK_FORMER.CLIP_IMAGE_PATH", "", "MODEL.CLIP.NAME", "ViT-B-23"],
            ["MODEL.CLIP.NAME: unknown open_clip model 'ViT-B-23'", "ViT-B-32"],
        ),
        (
            ["MODEL.MASK_FORMER.CLIP_IMAGE_PATH_TRAIN", "", "MODEL.CLIP.NAME", "local-dir:/none"],
            ["/none"],
        ),
        (
            ["MODEL.MASK_FORMER.CLIP_IMAGE_PATH", "datasets/none.safetensors"],
            ["MODEL.MASK_FORMER.CLIP_IMAGE_PATH: CLIP features", "none.safetensors not found"],
        ),
        (
            ["MODEL.MASK_FORMER.CLIP_TEXT_PATH", "datasets/none.npy"],
            ["MODEL.MASK_FORMER.CLIP_TEXT_PATH: no text classifier", "none.npy", "tools/build"],
        ),
        (
            ["MODEL.MASK_FORMER.CLIP_TEXT_PATH", ""],
            ["MODEL.MASK_FORMER.CLIP_TEXT_PATH is empty", "tools/build_text_classifier.py"],
        ),
        (["MODEL.MASK_FORMER.PRE_NORM", "True"], ["PRE_NORM: got True, only False is implemented"]),
        (["MODEL.WEIGHTS", "none.pth"], ["MODEL.WEIGHTS: none.pth not found"]),
        (["SOLVER.AMP.PRECISION", "fp16"], ["PRECISION: unknown 'fp16'. Known: float16, bfloat16"]),
        (["SOLVER.OPTIMIZER", "ADAM"], ["SOLVER.OPTIMIZER: unknown 'ADAM'. Known: ADAMW, SGD"]),
        (["SOLVER.LR_SCHEDULER_NAME", "Cosine"], ["unknown 'Cosine'", "WarmupCosineLR"]),
        (["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "all"], ["unknown 'all'. Known: full_model, norm"]),
        (["INPUT.DATASET_MAPPER_NAME", "lsj"], ["unknown 'lsj'", "coco_instance_lsj"]),
        (["DATALOADER.SAMPLER_TRAIN", "Random"], ["unknown 'Random'", "TrainingSampler"]),
        (["INPUT.SAMPLING_FRAME_NUM", "0"], ["SAMPLING_FRAME_NUM: expected at least 1, got 0"]),
        (["INPUT.SAMPLING_FRAME_RANGE", "-1"], ["FRAME_RANGE: expected at least 0, got -1"]),
        (
            ["MODEL.CHANNELS_LAST", "yes"],
            ["MODEL.CHANNELS_LAST: expected one of", "'always'", "'yes'"],
        ),
        (["TEST.PRECISION", "fp16"], ["TEST.PRECISION: expected one of", "'float16'", "'fp16'"]),
        (["SOLVER.MAX_ITER", "0"], ["SOLVER.MAX_ITER: expected at least 1, got 0"]),
        (
            ["SOLVER.ACCUMULATION_STEPS", "4"],
            ["SOLVER.IMS_PER_BATCH: 2 images", "1 process(es) x 4", "multiple of 4"],
        ),
        (
            ["SOLVER.REFERENCE_WORLD_SIZE", "3"],
            ["SOLVER.REFERENCE_WORLD_SIZE is 3", "has to be a multiple"],
        ),
        (["SOLVER.BASELR", "1"], ["unknown config key 'SOLVER.BASELR'", "SOLVER.BASE_LR"]),
        (["SOLVER.BASE_LR", "fast"], ["SOLVER.BASE_LR"]),
    ],
    ids=lambda value: " ".join(value[:2]) if value[0].isupper() and "." in value[0] else "",
)
def test_config(refused, opts: list[str], words: list[str]) -> None:
    message = refused(*opts)
    for word in words:
        assert word in message
    assert "thing(s)" not in message or "1 thing(s) to mend" in message


def test_clip_model_of_other_sizes(refused, tmp_path: Path) -> None:
    """Which would compute the features of the test images."""
    name = make_clip(tmp_path / "clip", width=8)
    message = refused("MODEL.MASK_FORMER.CLIP_IMAGE_PATH", "", "MODEL.CLIP.NAME", name)
    assert f"MODEL.CLIP.EMBED_DIM is 16, but {name} (MODEL.CLIP.NAME) has width 8" in message
    assert f"MODEL.CLIP.IMAGE_SIZE is 224, but {name} takes images of 32 pixels" in message


def test_everything_at_once(refused) -> None:
    message = refused(
        "MODEL.WEIGHTS", "none.pth", "SOLVER.OPTIMIZER", "ADAM", "DATASETS.TEST", "('none',)"
    )
    assert "3 thing(s) to mend" in message
    for word in ("none.pth", "'ADAM'", "unknown dataset 'none'"):
        assert word in message


@pytest.mark.parametrize("split", ["train_norare", "val"])
def test_missing_annotations(refused, tiny_run: TinyRun, split: str) -> None:
    path = tiny_run.root / "shapes" / f"shapes_{split}.json"
    path.unlink()
    assert f"annotations {path}" in refused()


def test_truncated_annotations_of_a_test_set(refused, tiny_run: TinyRun) -> None:
    path = tiny_run.root / "shapes" / "shapes_val.json"
    path.write_text(path.read_text()[:-100])
    message = refused()
    assert f"{path}: not valid JSON" in message
    assert "truncated" in message


def test_truncated_annotations_of_the_training_set(tiny_run: TinyRun) -> None:
    path = tiny_run.root / "shapes" / "shapes_train_norare.json"
    path.write_text(path.read_text()[:-100])
    with pytest.raises(ValueError, match=r"shapes_train_norare\.json: not valid JSON"):
        run_here(tiny_run)


def test_missing_test_image(refused, tiny_run: TinyRun) -> None:
    path = tiny_run.root / "shapes" / "val" / "002.png"
    path.unlink()
    assert f"shapes_val: 1 of 4 images not found, the first is {path}" in refused()


def test_missing_training_image(tiny_run: TinyRun) -> None:
    path = tiny_run.root / "shapes" / "train" / "002.png"
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"shapes_train: 1 of 8 images not found.*002\.png"):
        run_here(tiny_run)


@pytest.mark.parametrize(("split", "option"), [("train", []), ("val", ["--eval-only"])])
def test_an_image_that_cannot_be_decoded(
    tiny_run: TinyRun,
    split: str,
    option: list[str],
) -> None:
    for path in (tiny_run.root / "shapes" / split).glob("*.png"):
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(Exception, match=rf"{split}.00\d\.png"):
        run_here(tiny_run, *option)


def test_class_count_of_the_config(refused) -> None:
    message = refused("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "35")
    assert "MODEL.SEM_SEG_HEAD.NUM_CLASSES is 35, but 'shapes_train' (DATASETS.TRAIN) has 36" in (
        message
    )
    assert "classifier.safetensors has 36 classes, but" in message


def test_class_count_of_the_data(refused) -> None:
    assert "'lvis_v1_val' (DATASETS.TEST) has 1203" in refused("DATASETS.TEST", "('lvis_v1_val',)")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((35, CLIP_DIM), "has 35 classes, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is 36"),
        ((36, 7), "has 7 numbers per class, but MODEL.CLIP.EMBED_DIM is 16"),
    ],
)
def test_another_classifier(refused, tiny_run: TinyRun, shape, words: str) -> None:
    path = tiny_run.root / "shapes" / "classifier.safetensors"
    save_text_classifier(path, torch.ones(shape), None, {})
    message = refused()
    assert words in message
    assert "1 thing(s)" in message


def test_features_of_another_clip_model(refused) -> None:
    message = refused("MODEL.CLIP.EMBED_DIM", "8")
    assert "EMBED_DIM is 8, but datasets/shapes/clip_train.safetensors" in message
    assert "has width 16" in message


def test_features_of_other_images(refused, tiny_run: TinyRun) -> None:
    opts = ["MODEL.MASK_FORMER.CLIP_IMAGE_PATH", "datasets/shapes/clip_train.safetensors"]
    assert "4 images have no CLIP features" in refused(*opts)


def test_a_checkpoint_of_another_model(tiny_run: TinyRun) -> None:
    """Of the same kind, but with other sizes; and of something else altogether."""
    run_here(tiny_run, "SOLVER.MAX_ITER", "1")
    weights = str(tiny_run.output / "model_final.pth")
    opts = ["MODEL.WEIGHTS", weights, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "7"]
    with pytest.raises(ValueError, match=r"does not fit the model.*query_feat.*\(6, 32\)"):
        run_here(tiny_run, "--eval-only", *opts)
    torch.save({"model": {"roi_heads.weight": torch.ones(1)}}, tiny_run.root / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth does not fit the model"):
        run_here(tiny_run, "--eval-only", "MODEL.WEIGHTS", "datasets/other.pth")


def test_a_folder_that_cannot_be_made(refused, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "output"
    assert f"OUTPUT_DIR: can't write to {str(output)!r}" in refused("OUTPUT_DIR", str(output))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(refused, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o500)
    assert "OUTPUT_DIR: can't write to" in refused("OUTPUT_DIR", str(folder))


@pytest.mark.parametrize("found", [0, 2])
def test_more_gpus_than_there_are(refused, monkeypatch, found: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    message = refused("--num-gpus=4", "MODEL.DEVICE", "cuda", "SOLVER.IMS_PER_BATCH", "4")
    assert f"--num-gpus 4, but {found} found" in message
    assert "MODEL.DEVICE cpu, also with several processes" in message


def test_no_gpu_at_all(refused, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "MODEL.DEVICE: cuda, but no GPU found" in refused("MODEL.DEVICE", "cuda")


def test_num_gpus_under_torchrun(refused, monkeypatch) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    assert "torchrun starts the processes; say --nproc-per-node 4" in refused("--num-gpus=4")


def test_no_processes(refused) -> None:
    assert "--num-gpus 0 --num-machines 1: expected at least 1" in refused("--num-gpus=0")


def test_no_config_file(capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(IMAGE, ["--eval-only"])
    assert "--config-file is missing" in capsys.readouterr().err


def test_nothing_to_evaluate(refused) -> None:
    message = refused("--eval-only", "DATASETS.TEST", "()")
    assert "DATASETS.TEST is empty, so --eval-only has nothing to do" in message


def test_a_metric_that_the_script_does_not_have(refused, tiny_run: TinyRun) -> None:
    name = "shapes_scored_otherwise"
    path = str(tiny_run.root / "shapes" / "shapes_val.json")
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(
        thing_classes=["thing"] * 36, json_file=path, evaluator_type="sem_seg"
    )
    try:
        message = refused("DATASETS.TEST", f"('{name}',)")
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert f"{name!r} is scored by 'sem_seg', which this script can't do. It can: lvis" in message


def test_training_files_do_not_matter_to_an_evaluation(tiny_run: TinyRun) -> None:
    (tiny_run.root / "shapes" / "shapes_train_norare.json").unlink()
    (tiny_run.root / "shapes" / "clip_train.safetensors").unlink()
    run_here(tiny_run, "--eval-only", "SOLVER.IMS_PER_BATCH", "3", "SOLVER.ACCUMULATION_STEPS", "2")
    results = tiny_run.output / "inference" / "shapes_val" / "results.json"
    assert json.loads(results.read_text())


def test_the_command_line_says_it_without_a_traceback(tiny_run: TinyRun) -> None:
    config = yaml.safe_load(tiny_run.config.read_text())
    config["SOLVER"]["BASELR"] = 1
    tiny_run.config.write_text(yaml.safe_dump(config))
    process = tiny_run("MODEL.WEIGHTS", "none.pth")
    assert process.returncode == 2
    assert process.stdout == ""
    assert "train_net.py: error: " in process.stderr
    assert "unknown config key 'SOLVER.BASELR'" in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize(("stage", "name"), [(IMAGE, "OVFormerVideo"), (CLIP, "OVFormer")])
def test_a_model_of_another_script(refused, stage: Stage, name: str) -> None:
    message = refused("MODEL.META_ARCHITECTURE", name, stage=stage)
    right = next(other for other in STAGES if other.meta_architecture == name)
    assert f"MODEL.META_ARCHITECTURE: {right.script} runs {name}; {stage.script} runs" in message


def test_missing_counts_of_categories(refused, tiny_run: TinyRun) -> None:
    """Of training only: an evaluation does without."""
    opts = ["MODEL.MASK_FORMER.CAT_INFO_PATH", "datasets/none.json"]
    assert "MODEL.MASK_FORMER.CAT_INFO_PATH: no file" in refused(*opts)


def test_an_evaluation_needs_no_training_set(tiny_run: TinyRun) -> None:
    opts = ["DATASETS.TRAIN", "('lvis_v1_train',)"]
    run_here(tiny_run, "--eval-only", *opts, "MODEL.MASK_FORMER.CAT_INFO_PATH", "none.json")
