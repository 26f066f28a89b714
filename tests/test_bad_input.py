"""Faults of a command line, config or machine: a message says each, before any long work."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from ovformer import run as training_script
from ovformer.engine.stages import CLIPS, IMAGE, STAGES, Stage
from support.tiny_shapes import TinyRun, run_here


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
            ["MODEL.SEM_SEG_HEAD.IN_FEATURES", "'layer2', 'layer3', 'layer4'", "['res2']"],
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
        (["MODEL.WEIGHTS", "~no-such-user/a.pth"], ["WEIGHTS: ~no-such-user/a.pth not found"]),
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
        (["SOLVER.BASE_LR", "fast"], ["SOLVER.BASE_LR: expected a number", "got 'fast'"]),
        (["SOLVER.BASE_LR", "-0.1"], ["SOLVER.BASE_LR: expected above 0, got -0.1"]),
        (["SOLVER.BASE_LR", "0"], ["SOLVER.BASE_LR: expected above 0, got 0.0"]),
        (["SOLVER.CHECKPOINT_PERIOD", "0"], ["CHECKPOINT_PERIOD: expected at least 1, got 0"]),
        (["SOLVER.BASE_LR", "1e999"], ["SOLVER.BASE_LR: expected above 0, got inf"]),
        (["SOLVER.WEIGHT_DECAY", "-1"], ["SOLVER.WEIGHT_DECAY: expected at least 0, got -1.0"]),
        (["SOLVER.MOMENTUM", "1.5"], ["MOMENTUM: expected at least 0 and at most 1, got 1.5"]),
        (["SOLVER.GAMMA", "0.0"], ["SOLVER.GAMMA: expected above 0 and at most 1, got 0.0"]),
        (["SOLVER.STEPS", "(3, 2)"], ["SOLVER.STEPS: expected iterations", "got (3, 2)"]),
        (["SOLVER.STEPS", "('3',)"], ["SOLVER.STEPS: expected a list", "got ('3',)"]),
        (["SOLVER.STEPS", "3"], ["SOLVER.STEPS: expected a list, as (30000,), got 3"]),
        (["SOLVER.WARMUP_METHOD", "burn"], ["WARMUP_METHOD: unknown 'burn'. Known: linear"]),
        (["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0"], ["CLIP_VALUE: expected above 0", "False"]),
        (["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "-1"], ["CLIP_VALUE: expected at least 0, got -1"]),
        (["SOLVER.CLIP_GRADIENTS.NORM_TYPE", "0"], ["NORM_TYPE: expected above 0, got 0.0"]),
        (["SEED", "5000000000"], ["SEED: expected", "got 5000000000"]),
        (["TEST.EVAL_PERIOD", "-1"], ["TEST.EVAL_PERIOD: expected at least 0, got -1"]),
        (["DATALOADER.NUM_WORKERS", "-1"], ["NUM_WORKERS: expected at least 0, got -1"]),
        (["INPUT.MIN_SIZE_TEST", "128"], ["MIN_SIZE_TEST: expected at most", "64 pixels, got 128"]),
        (["INPUT.MIN_SCALE", "3.0"], ["INPUT.MIN_SCALE, MAX_SCALE", "got 3.0 and 2.0"]),
        (["INPUT.IMAGE_SIZE", "0"], ["INPUT.IMAGE_SIZE: expected at least 1 pixel, got 0"]),
        (["INPUT.RANDOM_FLIP", "left"], ["INPUT.RANDOM_FLIP: unknown flip 'left'", "horizontal"]),
        (["INPUT.AUGMENTATIONS", "['blur']"], ["INPUT.AUGMENTATIONS: unknown", "brightness"]),
        (["MODEL.DEVICE", "gpu"], ["MODEL.DEVICE: expected cuda, cpu", "got 'gpu'"]),
        (["FLOAT32_PRECISION", "half"], ["FLOAT32_PRECISION: unknown 'half'", "high, medium"]),
        (["MODEL.PIXEL_STD", "[1, 0, 1]"], ["PIXEL_STD: expected three numbers above 0"]),
        (
            ["MODEL.MASK_FORMER.HIDDEN_DIM", "30"],
            ["attention of width 30 cannot have 8 heads", "MODEL.MASK_FORMER.NHEADS"],
        ),
        (["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "0"], ["NUM_OBJECT_QUERIES of at least 1"]),
        (["MODEL.MASK_FORMER.CLASS_LOSS_NORM", "all"], ["CLASS_LOSS_NORM: expected one of"]),
        (
            ["MODEL.MASK_FORMER.TEST.MEMORY_MOMENTUM", "2"],
            ["MEMORY_MOMENTUM", "at most 1, got 2.0"],
        ),
        (
            ["MODEL.MASK_FORMER.DIM_FEEDFORWARD", "-3"],
            ["MODEL: OVFormer can't be built from the values of its keys"],
        ),
        (["DATASETS.TRAIN", "shapes_train"], ["DATASETS.TRAIN: expected a list", "'shapes_train'"]),
        (["SOLVER.MAX_ITER", "None"], ["SOLVER.MAX_ITER: expected a whole number", "got None"]),
        (["SOLVER", "3"], ["'SOLVER' is a section"]),
    ],
    ids=lambda value: " ".join(value[:2]) if value[0].isupper() and "." in value[0] else "",
)
def test_config(refused, opts: list[str], words: list[str]) -> None:
    message = refused(*opts)
    for word in words:
        assert word in message
    assert "thing(s)" not in message or "1 thing(s) to mend" in message


def test_everything_at_once(refused) -> None:
    """Also what can't be read, next to what is wrong in the rest."""
    message = refused(
        *("MODEL.WEIGHTS", "none.pth", "SOLVER.OPTIMIZER", "ADAM", "DATASETS.TEST", "('none',)"),
        *("SOLVER.BASELR", "1", "SOLVER.MAX_ITER", "many", "SOLVER.REFERENCE_WORLD_SIZE", "3"),
        *("DATASETS.CUSTOM", "[{'name': 'mine'}, {'name': 'yours'}]"),
    )
    assert "8 thing(s) to mend" in message
    for word in (
        *("none.pth", "'ADAM'", "unknown dataset 'none'", "'SOLVER.BASELR'", "got 'many'"),
        *("REFERENCE_WORLD_SIZE is 3", "DATASETS.CUSTOM[0]: expected name, annotations"),
        "DATASETS.CUSTOM[1]: expected name, annotations",
    ):
        assert word in message


def test_a_number_that_is_none(refused, tiny_run: TinyRun) -> None:
    config = yaml.safe_load(tiny_run.config.read_text())
    config["SOLVER"]["WEIGHT_DECAY"] = float("nan")
    tiny_run.config.write_text(yaml.safe_dump(config))
    assert "SOLVER.WEIGHT_DECAY: expected at least 0, got nan" in refused()


@pytest.mark.parametrize("key", ["SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD"])
def test_scaled_to_nothing(refused, key: str) -> None:
    words = ["SOLVER.REFERENCE_WORLD_SIZE", "1", "SOLVER.MAX_ITER", "100", key, "1"]
    message = refused("--num-gpus=4", "SOLVER.CHECKPOINT_PERIOD", "9", *words)
    assert f"{key}: 1 would be 0, scaled from SOLVER.REFERENCE_WORLD_SIZE 1 to 4 proc" in message


def test_several_machines(refused) -> None:
    options = ["--num-machines=2", "--machine-rank=2", "--dist-url=auto"]
    message = refused(*options, "MODEL.DEVICE", "cpu")
    assert "--machine-rank: expected 0 to 1 for --num-machines 2, got 2" in message
    assert "--dist-url auto: several machines need tcp://HOST:PORT" in message


def test_a_full_disk(refused, tiny_run: TinyRun, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100_000))
    message = refused()
    assert "OUTPUT_DIR: a checkpoint takes" in message
    assert f"100.0 kB are free in {tiny_run.output.parent}" in message


def test_what_is_allowed_and_hardly_meant(tiny_run: TinyRun, monkeypatch, caplog) -> None:
    """Room for some checkpoints only, another training's files, a schedule that is cut off."""
    monkeypatch.setattr(training_script, "launch", lambda *args, **kwargs: None)
    tiny_run.output.mkdir()
    (tiny_run.output / "last_checkpoint").write_text("model_final.pth")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    run_here(tiny_run, "SOLVER.MAX_ITER", "100", "SOLVER.STEPS", "(50, 100)")
    assert "51 checkpoints of" in caplog.text and "5.0 MB are free" in caplog.text
    assert "has checkpoints of another training" in caplog.text
    assert "the learning rate does not fall at 100" in caplog.text
    caplog.clear()
    run_here(tiny_run, "--eval-only")
    assert not caplog.text


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
        training_script.main(IMAGE, ["--eval-only"])
    assert "--config-file is missing" in capsys.readouterr().err


def test_nothing_to_evaluate(refused) -> None:
    message = refused("--eval-only", "DATASETS.TEST", "()")
    assert "DATASETS.TEST is empty, so --eval-only has nothing to do" in message


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


@pytest.mark.parametrize(("stage", "name"), [(IMAGE, "OVFormerVideo"), (CLIPS, "OVFormer")])
def test_a_model_of_another_script(refused, stage: Stage, name: str) -> None:
    message = refused("MODEL.META_ARCHITECTURE", name, stage=stage)
    right = next(other for other in STAGES if other.meta_architecture == name)
    assert f"MODEL.META_ARCHITECTURE: {right.script} runs {name}; {stage.script} runs" in message
