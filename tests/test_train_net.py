"""``train_net.py`` as a user runs it, on a tiny data set with a tiny model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from ovformer.d2 import BACKEND, DatasetCatalog, MetadataCatalog
from ovformer.data.catalog.dataset_spec import register_dataset
from ovformer.data.catalog.datasets import shapes
from ovformer.data.files.image_embeddings import ImageEmbeddingStore, ImageEmbeddingWriter
from ovformer.predictor.pretrained import load_pretrained
from support.tiny_runs import CLIP_DIM, FILES, TinyRun, make_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A finished training, by the command of the README."""
    run = make_run(tmp_path_factory.mktemp("trained"))
    process = run.script("DATALOADER.NUM_WORKERS", "1")
    assert process.returncode == 0, process.stderr
    (run.output / "stdout").write_text(process.stdout)
    return run


@pytest.fixture
def second(trained: TinyRun, tmp_path: Path, monkeypatch) -> TinyRun:
    """A copy of the finished training's output, to resume from."""
    shutil.copytree(trained.output, tmp_path / "output")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(trained.root))
    return replace(trained, output=tmp_path / "output")


def metrics(run: TinyRun) -> list[dict]:
    lines = (run.output / "metrics.json").read_text().splitlines()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    return sorted(lines, key=lambda line: line["iteration"])


def weights(run: TinyRun) -> dict[str, torch.Tensor]:
    return torch.load(run.output / "model_final.pth", weights_only=True)["model"]


def test_files(trained: TinyRun) -> None:
    names = {path.name for path in trained.output.iterdir() if "tfevents" not in path.name}
    expected = {"config.yaml", "inference", "last_checkpoint", "log.txt", "metrics.json", "runs"}
    checkpoints = {"model_0000001.pth", "model_0000003.pth", "model_final.pth"}
    assert names - {"stdout"} == expected | checkpoints
    assert len(list(trained.output.glob("*tfevents*"))) == 1
    assert (trained.output / "last_checkpoint").read_text() == "model_final.pth"
    assert yaml.safe_load((trained.output / "config.yaml").read_text())["SOLVER"]["MAX_ITER"] == 4
    folder = trained.output / "inference" / "shapes_val"
    assert {path.name for path in folder.iterdir()} == {"results.json", "scores.json"}


def test_first_log_line_and_console(trained: TinyRun) -> None:
    first = (trained.output / "log.txt").read_text().splitlines()[0]
    assert f"detectron2's names come from: {BACKEND}; Python 3." in first
    assert f"torch {torch.__version__}, cpu; process 0 of 1" in first
    (line,) = (x for x in (trained.output / "stdout").read_text().splitlines() if "eta: " in x)
    for word in ("iter: 3", "total_loss: ", "loss_mask: ", "data_time: ", "lr: ", "max_rss_mb: "):
        assert word in line


def test_metrics(trained: TinyRun) -> None:
    in_between, training, scores = metrics(trained)
    assert [in_between["iteration"], training["iteration"], scores["iteration"]] == [1, 3, 4]
    assert "shapes_val/segm/AP" in in_between
    losses = [v for k, v in training.items() if k.startswith("loss_")]
    assert len(losses) == 4 * 3  # the last layer, and two auxiliary outputs
    assert {"lr", "time", "data_time", "grad_norm", "eta_seconds"} <= training.keys()
    assert 0 <= scores["shapes_val/segm/AP"] <= 100
    assert "shapes_val/segm/AP50_novel" in scores


def test_results_have_the_data_sets_own_ids(trained: TinyRun) -> None:
    results = trained.results()
    assert len(results) == 4 * 5
    assert {result["image_id"] for result in results} == {1, 2, 3, 4}
    assert {result["category_id"] for result in results} <= set(range(1, 37))
    assert results[0]["segmentation"]["size"] == [64, 64]
    assert isinstance(results[0]["segmentation"]["counts"], str)


def test_resume_ends_with_the_same_weights(second: TinyRun) -> None:
    """Although the first run had an evaluation after the checkpoint, and this one has not."""
    expected = weights(second)
    (second.output / "model_final.pth").unlink()
    (second.output / "last_checkpoint").write_text("model_0000001.pth")
    second.here("--resume", "DATALOADER.NUM_WORKERS", "1")
    torch.testing.assert_close(weights(second), expected, rtol=0, atol=0)
    assert [line["iteration"] for line in metrics(second)] == [1, 3, 4]


def test_the_weights_alone_are_enough_to_predict(
    trained: TinyRun, tmp_path: Path, monkeypatch
) -> None:
    """Without the data set, the text classifier and the config, as on another machine."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nothing"))
    path = shutil.copy(trained.output / "model_final.pth", tmp_path)
    loaded = load_pretrained(None, path, device="cpu")
    assert type(loaded.model).__name__ == "OVFormerVideo"
    assert loaded.names[:2] == ["red circle", "red square"]
    assert loaded.embeddings.shape == (36, CLIP_DIM)
    assert loaded.clip == {"name": "ViT-B-32-quickgelu", "pretrained": "openai"}
    expected = weights(trained)
    for name, value in loaded.model.state_dict().items():
        if name not in loaded.model.VOCABULARY_KEYS:
            assert torch.equal(value, expected[name]), name


def test_eval_only_gives_the_same_results(trained: TinyRun, second: TinyRun) -> None:
    folder = second.output / "inference"
    shutil.rmtree(folder)
    config = (second.output / "config.yaml").read_text()
    model = str(trained.output / "model_final.pth")
    second.here("--eval-only", "MODEL.WEIGHTS", model, "SEED", "99")
    for name in ("results.json", "scores.json"):
        expected = trained.output / "inference" / "shapes_val" / name
        assert (folder / "shapes_val" / name).read_bytes() == expected.read_bytes()
    # An evaluation leaves the training's own record alone.
    assert (second.output / "config.yaml").read_text() == config
    assert "random weights" not in (second.output / "log.txt").read_text()


def test_evaluating_random_weights_warns(tiny_run: TinyRun) -> None:
    tiny_run.here("--eval-only")
    assert "random weights" in (tiny_run.output / "log.txt").read_text()


@pytest.mark.gpu
def test_on_a_gpu(tiny_run: TinyRun) -> None:
    tiny_run.here("MODEL.DEVICE", "cuda", "SOLVER.AMP.ENABLED", "True")
    assert metrics(tiny_run)[0]["total_loss"] > 0
    process = tiny_run.script("--resume", "MODEL.DEVICE", "cuda", "SOLVER.MAX_ITER", "6")
    assert process.returncode == 0, process.stderr
    assert metrics(tiny_run)[-2]["iteration"] == 5


def test_two_test_sets_each_have_their_results(tiny_run: TinyRun) -> None:
    """Of different sizes; the CLIP features are those of all images together."""
    register_dataset(replace(shapes.SPECS[0], name="shapes_other"))
    folder = tiny_run.root / "shapes"
    stores = [ImageEmbeddingStore.open(folder / f"clip_{split}.safetensors") for split in FILES]
    with ImageEmbeddingWriter(folder / "clip_all.safetensors", {}) as writer:
        for store in stores:
            writer.add(store.keys, torch.stack([store.get(key) for key in store.keys]))
    opts = ["DATASETS.TEST", "('shapes_val', 'shapes_other')"]
    opts += ["MODEL.MASK_FORMER.CLIP_IMAGE_PATH", "datasets/shapes/clip_all.safetensors"]
    try:
        tiny_run.here("SOLVER.MAX_ITER", "1", *opts)
    finally:
        DatasetCatalog.remove("shapes_other")
        MetadataCatalog.remove("shapes_other")
    for name, num_images in (("shapes_val", 4), ("shapes_other", 8)):
        found = {result["image_id"] for result in tiny_run.results(name)}
        assert found == set(range(1, num_images + 1))
        assert f"{name}/segm/AP" in metrics(tiny_run)[-1]


@pytest.mark.slow
def test_two_processes(trained: TinyRun, tmp_path: Path) -> None:
    """torchrun on the CPU: the same stream of images, merged results, one set of files."""
    run = replace(trained, output=tmp_path / "output")
    process = run.script(processes=2)
    assert process.returncode == 0, process.stderr
    for rank, name in enumerate(("log.txt", "log.txt.rank1")):
        first_line = (run.output / name).read_text().splitlines()[0]
        assert f"process {rank} of 2" in first_line
    assert sorted(result["image_id"] for result in run.results()) == sorted([1, 2, 3, 4] * 5)
    states = torch.load(run.output / "model_final.pth", weights_only=True)["trainer"]
    assert len(states["random_states"]) == 2


def test_float16(tiny_run: TinyRun) -> None:
    tiny_run.here("SOLVER.AMP.ENABLED", "True", "SOLVER.MAX_ITER", "2", "DATASETS.TEST", "()")
    assert metrics(tiny_run)[0]["total_loss"] > 0


def test_workers_give_the_same_images(tiny_run: TinyRun, trained: TinyRun) -> None:
    tiny_run.here("DATALOADER.NUM_WORKERS", "2", "DATASETS.TEST", "()")
    torch.testing.assert_close(weights(tiny_run), weights(trained), rtol=0, atol=0)


def test_scaling_is_logged(tiny_run: TinyRun) -> None:
    tiny_run.here("SOLVER.REFERENCE_WORLD_SIZE", "2", "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "1")
    assert "SOLVER.IMS_PER_BATCH 2 -> 1" in (tiny_run.output / "log.txt").read_text()
    assert yaml.safe_load((tiny_run.output / "config.yaml").read_text())["SOLVER"]["MAX_ITER"] == 2


def test_a_drawn_seed_is_logged_and_resumed(tiny_run: TinyRun) -> None:
    tiny_run.here("SEED", "-1", "DATASETS.TEST", "()")
    log = (tiny_run.output / "log.txt").read_text()
    seed = int(log.split("SEED: drew ")[1].split()[0])
    expected = weights(tiny_run)
    (tiny_run.output / "last_checkpoint").write_text("model_0000001.pth")
    assert torch.load(tiny_run.output / "model_final.pth")["trainer"]["seed"] == seed
    tiny_run.here("--resume", "SEED", "-1", "DATASETS.TEST", "()")
    torch.testing.assert_close(weights(tiny_run), expected, rtol=0, atol=0)
