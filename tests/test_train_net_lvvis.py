"""``train_net_lvvis.py`` as a user runs it: clips of a tiny LV-VIS, a tiny model."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ovformer.data.catalog.dataset_spec import load_categories, load_dataset
from ovformer.data.files.image_embeddings import ImageEmbeddingWriter
from ovformer.engine.stages import CLIPS, IMAGE
from support.mini_lvis import MiniLvis
from support.mini_videos import CATEGORIES, VIDEOS
from support.tiny_clip import make_clip
from support.tiny_runs import CLIP_DIM, DETECTIONS, ROOT, TinyRun, make_run

TRAIN_ONLY = ("DATASETS.TEST", "()")
VOCABULARY = ("class_embed.zs_weight", "criterion.")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A finished training with evaluations in between, by the command of the README."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(folder / "data sets"))
        run = make_run(folder, CLIPS)
    process = run.script()
    assert process.returncode == 0, process.stderr
    (folder / "stdout").write_text(process.stdout)
    return run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyRun:
    """A fresh data set and output folder."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data sets"))
    return make_run(tmp_path, CLIPS)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def log(run: TinyRun) -> str:
    return (run.output / "log.txt").read_text()


def losses(run: TinyRun) -> list[float]:
    return [line["total_loss"] for line in run.metrics() if "total_loss" in line]


def test_training(trained: TinyRun) -> None:
    names = {path.name for path in trained.output.iterdir() if "tfevents" not in path.name}
    expected = {"config.yaml", "inference", "last_checkpoint", "log.txt", "metrics.json", "runs"}
    checkpoints = {"model_0000001.pth", "model_0000003.pth", "model_final.pth"}
    assert names == expected | checkpoints
    assert losses(trained)[-1] > 0
    before, after = weights(trained.untrained), weights(trained.output / "model_final.pth")
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    for part in ("backbone.", "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor.mask_embed."):
        assert any(key.startswith(part) for key in moved), part


def test_scores_of_base_and_novel(trained: TinyRun) -> None:
    results = trained.results()
    assert len(results) == DETECTIONS * len(VIDEOS)
    own_ids = {category["id"] for category in load_categories("lvvis")}
    for entry in results:
        length, height, width = VIDEOS[entry["video_id"]]
        assert [rle["size"] for rle in entry["segmentations"]] == [[height, width]] * length
        assert entry["category_id"] in own_ids
    groups = trained.scores()["groups"]
    assert set(groups) == {"all", "base", "novel"}
    assert all(0 <= group["AP"] <= 1 for group in groups.values())
    text = (trained.untrained.parent / "stdout").read_text()
    assert "Average Precision" in text
    for metric in ("AP", "AP_base", "AP_novel"):
        last = [line for line in trained.metrics() if f"lvvis_val/segm/{metric}" in line][-1]
        group = metric.removeprefix("AP").strip("_") or "all"
        assert last[f"lvvis_val/segm/{metric}"] == pytest.approx(100 * groups[group]["AP"])


def test_a_training_resumes_where_it_stopped(trained: TinyRun, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(trained.data.root))
    stopped = replace(trained, output=tmp_path / "output")
    stopped.output.mkdir()
    shutil.copy(trained.output / "model_0000001.pth", stopped.output)
    (stopped.output / "last_checkpoint").write_text("model_0000001.pth")
    stopped.here("--resume")
    assert "Resuming: 2 iterations are done" in log(stopped)
    states = [weights(run.output / "model_final.pth") for run in (stopped, trained)]
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.slow
def test_from_the_files_of_the_data_set(run: TinyRun) -> None:
    """The commands of the README, from LV-VIS's own annotations on."""
    content = {**run.data.content, "categories": load_categories("lvvis")}
    folder = run.data.root / "LVVIS"
    (folder / "train" / "train_instances_.json").write_text(json.dumps(content))
    cat_info = run.data.root / "metadata" / "lvvis_train_cat_info.json"
    for path in (run.data.annotations("train"), run.data.annotations("test"), cat_info):
        path.unlink()
    for command in (
        ["remove_lvvis_novel.py", "--ann", "datasets/LVVIS/train/train_instances_.json"],
        ["get_lvvis_cat_info.py", "--add_freq"],
        ["lvvis_test_instances_json.py"],
    ):
        process = run.python(str(ROOT / "tools" / command[0]), *command[1:])
        assert process.returncode == 0, process.stderr
    kept = json.loads(run.data.annotations("train").read_text())["annotations"]
    assert CATEGORIES["lvvis"][1] not in {annotation["category_id"] for annotation in kept}
    process = run.script("DATASETS.TEST", "('lvvis_val', 'lvvis_test')", "TEST.EVAL_PERIOD", "0")
    assert process.returncode == 0, process.stderr
    assert {entry["video_id"] for entry in run.results("lvvis_test")} == {0, 1, 2}


def test_images_among_the_clips(run: TinyRun, mini_lvis: MiniLvis) -> None:
    store = run.data.root / "metadata" / "both.safetensors"
    with ImageEmbeddingWriter(store, {}) as writer:
        for record in (*load_dataset("lvvis_train"), *load_dataset("lvis_v1_train")):
            keys = record.get("clip_keys", [record.get("clip_key")])
            writer.add(keys, torch.ones(len(keys), CLIP_DIM))
    options = {
        "DATASETS.TRAIN": "('lvvis_train', 'lvis_v1_train')",
        "DATASETS.DATASET_RATIO": "(1, 1)",
        "MODEL.MASK_FORMER.CLIP_IMAGE_PATH_TRAIN": str(store),
        "SOLVER.ACCUMULATION_STEPS": "2",
        "SOLVER.IMS_PER_BATCH": "4",
        "DATASETS.TEST": "()",
    }
    run.here(*(word for pair in options.items() for word in pair))
    assert "lvis_v1_train: 640 of its 1203 classes are trained classes of lvvis_train" in log(run)
    assert "of 7 annotations 5 are kept, of 5 images or videos 5" in log(run)
    assert losses(run)[-1] > 0


def test_features_stored_and_computed_are_the_same(
    run: TinyRun, mini_lvis: MiniLvis, tmp_path: Path, load_tool: Callable
) -> None:
    """Of frames and of images that become clips, in training and evaluation."""
    clip, store = make_clip(tmp_path / "clip"), str(tmp_path / "store.safetensors")
    names = ["lvvis_train", "lvvis_val", "lvis_v1_train"]
    arguments = ["--output", store, "--clip", clip, "--device", "cpu", "--num-workers", "0"]
    load_tool("save_clip_features").main(["--dataset", *names, *arguments])
    options = ["DATASETS.TRAIN", "('lvvis_train', 'lvis_v1_train')", "SOLVER.MAX_ITER", "2"]
    options += ["MODEL.CLIP.NAME", clip, "MODEL.CLIP.IMAGE_SIZE", "32"]
    found = []
    for path in (store, ""):
        again = replace(run, output=tmp_path / f"output {bool(path)}")
        files = ["MODEL.MASK_FORMER.CLIP_IMAGE_PATH_TRAIN", path]
        again.here(*options, *files, "MODEL.MASK_FORMER.CLIP_IMAGE_PATH", path)
        found.append(again)
    stored, computed = found
    assert losses(computed) == pytest.approx(losses(stored), rel=1e-5)
    scores = [{x["video_id"]: x["score"] for x in again.results()} for again in found]
    assert scores[1] == pytest.approx(scores[0], rel=1e-3)


def test_videos_of_one_frame(run: TinyRun) -> None:
    one = [video for video in run.data.content["videos"] if video["id"] == 8]
    tracks = [a for a in run.data.content["annotations"] if a["video_id"] == 8]
    run.data.write("train", videos=one, annotations=tracks)
    run.here("INPUT.SAMPLING_FRAME_NUM", "3", *TRAIN_ONLY)
    assert losses(run)[-1] > 0


def test_videos_without_objects(run: TinyRun) -> None:
    run.data.write("train", annotations=[])
    options = [*TRAIN_ONLY, "SOLVER.MAX_ITER", "1"]
    with pytest.raises(ValueError, match="DATASETS.TRAIN: nothing in lvvis_train has an annotat"):
        run.here(*options, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "True")
    run.here(*options)
    (line,) = [line for line in run.metrics() if "total_loss" in line]
    assert line["loss_object_ce"] > 0 and line["loss_mask"] == line["loss_dice"] == 0


def test_from_the_weights_of_stage_1(run: TinyRun, tmp_path: Path, monkeypatch) -> None:
    """Of another vocabulary: 36 classes there, 1,196 here."""
    with monkeypatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(tmp_path / "images" / "data sets"))
        images = make_run(tmp_path / "images")
        images.here("SOLVER.MAX_ITER", "1", *TRAIN_ONLY)
    stage_1 = weights(images.output / "model_final.pth")
    start = ["MODEL.WEIGHTS", str(images.output / "model_final.pth")]
    # A learning rate that is zero in float32.
    run.here(*start, "SOLVER.MAX_ITER", "1", "SOLVER.BASE_LR", "1e-300", *TRAIN_ONLY)
    found = weights(run.output / "model_final.pth")
    assert found.keys() == stage_1.keys()
    for key, value in stage_1.items():
        if not any(word in key for word in VOCABULARY):
            assert torch.equal(found[key], value), key
    assert found["sem_seg_head.predictor.class_embed.zs_weight"].shape == (CLIP_DIM, 1197)
    evaluated = replace(run, output=run.output / "evaluated")
    evaluated.here("--eval-only", *start)
    assert "has random weights" not in log(evaluated)
    assert set(evaluated.scores()["groups"]) == {"all", "base", "novel"}


def test_the_recipe_for_a_small_gpu(run: TinyRun) -> None:
    """Recomputed activations change nothing, micro-batches what is drawn, bfloat16 the rounding."""
    options = ["SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "2", *TRAIN_ONLY]
    run.here(*options)
    recipe = ["MODEL.ACTIVATION_CHECKPOINTING", "True"]
    recomputed = replace(run, output=run.output / "recomputed")
    recomputed.here(*options, *recipe)
    states = [weights(x.output / "model_final.pth") for x in (recomputed, run)]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-6)
    recipe += ["SOLVER.ACCUMULATION_STEPS", "4"]
    recipe += ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", "bfloat16"]
    small = replace(run, output=run.output / "small")
    small.here(*options, *recipe)
    assert losses(small) == pytest.approx(losses(run), rel=0.15)


def remove_frame(run: TinyRun, split: str) -> None:
    (run.data.frames_of(split) / "video3" / "00002.png").unlink()


def damage_frames(run: TinyRun) -> None:
    for path in run.data.frames_of("train").rglob("*.png"):
        path.write_bytes(b"?")


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda run: remove_frame(run, "val"), ["--eval-only"], r"lvvis_val: 1 of 10 .*00002\.png"),
        (lambda run: remove_frame(run, "train"), [], r"lvvis_train: 1 of 10 .*00002\.png"),
        (lambda run: run.data.write("val", videos=[]), ["--eval-only"], "val_instances_.json"),
        (damage_frames, [], r"Frame \d of video \d+: .*png"),
    ],
    ids=["test frame", "training frame", "no videos", "damaged"],
)
def test_bad_files(run: TinyRun, spoil: Callable, options: list[str], message: str) -> None:
    spoil(run)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        run.here(*options)


def refused(run: TinyRun, user_error: Callable, *words: str) -> str:
    """Return the message with which the script stops before any work."""
    return user_error(lambda words: run.here(*words), *words)


def test_all_errors_of_a_config_at_once(run: TinyRun, user_error: Callable) -> None:
    annotations = run.data.annotations("val")
    annotations.write_text(annotations.read_text()[:-100])
    run.data.annotations("train").unlink()
    options = {
        "MODEL.WEIGHTS": "none.pth",
        "MODEL.MASK_FORMER.TEST.CLIP_OVERLAP": "5",
        "INPUT.SAMPLING_FRAME_NUM": "0",
        "INPUT.RANDOM_FLIP": "left",
        "INPUT.PSEUDO.CROP.TYPE": "half",
        "DATASETS.DATASET_RATIO": "(1, 2)",
    }
    message = user_error(
        lambda words: run.here(*words), *(word for pair in options.items() for word in pair)
    )
    assert all(f"{key}: " in message for key in options)
    assert "train_instances_nonovel.json of 'lvvis_train'" in message
    assert "val_instances_.json: not valid JSON" in message
    # The slow checks run once the quick ones pass.
    run.data.write("train")
    run.data.write("val")
    remove_frame(run, "val")
    assert "lvvis_val: 1 of 10 images" in refused(run, user_error)


def test_the_decoder_of_another_model(run: TinyRun, user_error: Callable) -> None:
    key = "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME"
    message = refused(run, user_error, key, "MultiScaleMaskedTransformerDecoder")
    assert key in message and "VideoOVFormer" in message


def test_videos_in_the_script_of_images(run: TinyRun, user_error: Callable) -> None:
    options = ["MODEL.META_ARCHITECTURE", "OVFormer", "INPUT.RANDOM_FLIP", "horizontal"]
    decoder = "MultiScaleMaskedTransformerDecoder"
    options += ["MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", decoder]
    images = replace(run, stage=IMAGE)
    message = refused(images, user_error, *options)
    assert "'lvvis_val'" in message and "'vis'" in message and "train_net.py" in message
    with pytest.raises(ValueError, match="'lvvis_train'.* train_net_lvvis"):
        images.here(*options, "DATASETS.TEST", "()")
