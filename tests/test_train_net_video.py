"""``train_net_video.py`` as a user runs it, on a tiny data set with a tiny model."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import yaml

from ovformer.d2 import DatasetCatalog, MetadataCatalog
from ovformer.engine.stages import FRAMES
from ovformer.evaluation import video_evaluator
from support.mini_videos import VIDEOS
from support.tiny_runs import DETECTIONS, ROOT, TinyRun, make_run

spec = importlib.util.spec_from_file_location("mAP", ROOT / "mAP.py")
mAP = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mAP)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyRun:
    """A fresh data set and output folder."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data sets"))
    return make_run(tmp_path, FRAMES)


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ids of the videos that the model ran on, in this process."""
    ids = []
    original = video_evaluator.VideoEvaluator.process

    def process(self, inputs, outputs):
        ids.extend(record["video_id"] for record in inputs)
        return original(self, inputs, outputs)

    monkeypatch.setattr(video_evaluator.VideoEvaluator, "process", process)
    return ids


@pytest.mark.slow
def test_evaluation_by_the_command_of_the_readme(run: TinyRun) -> None:
    process = run.script("--eval-only")
    assert process.returncode == 0, process.stderr
    results = run.results()
    assert len(results) == DETECTIONS * len(VIDEOS)
    assert {entry["video_id"] for entry in results} == set(VIDEOS)
    for entry in results:
        length, height, width = VIDEOS[entry["video_id"]]
        assert [rle["size"] for rle in entry["segmentations"]] == [[height, width]] * length
        assert 1 <= entry["category_id"] <= 40
    scores = run.scores()
    assert set(scores["groups"]) == {"all", "base", "novel"}
    assert scores["groups"]["all"]["AP"] is not None
    assert "Average Precision" in process.stdout and "copypaste" in process.stdout
    files = (run.output / "inference" / "ytvis_2019_val").iterdir()
    assert {path.name for path in files} == {"results.json", "scores.csv", "scores.json"}


@pytest.mark.parametrize("options", [["--resume"], []])
def test_a_crash_in_the_last_video(run: TinyRun, predicted: list[int], options: list[str]) -> None:
    """Loses nothing with --resume; without it, all videos are predicted again."""
    run.here("--eval-only")
    expected = run.results()
    frame = run.data.frames / "video11" / "00001.png"
    whole = frame.read_bytes()
    frame.write_bytes(b"damaged")
    predicted.clear()
    with pytest.raises(ValueError, match=r"Frame 1 of video 11: .*00001\.png"):
        run.here("--eval-only")
    assert predicted == [3, 8]
    assert run.results() == expected  # of the run before, until the new ones are complete
    frame.write_bytes(whole)
    predicted.clear()
    run.here("--eval-only", *options)
    assert predicted == ([11] if options else [3, 8, 11])
    assert run.results() == expected


@pytest.mark.parametrize("step", ["merge_results", "VideoMetric"])
def test_all_videos_finished_but_not_scored(
    run: TinyRun, predicted: list[int], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    run.here("--eval-only")
    expected, scores = run.results(), run.scores()
    with monkeypatch.context() as patch:
        patch.setattr(video_evaluator, step, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.here("--eval-only")
    predicted.clear()
    run.here("--eval-only", "--resume")
    assert predicted == [] and run.results() == expected and run.scores() == scores
    # All is finished, so a new run starts again.
    run.here("--eval-only")
    assert predicted == [3, 8, 11] and run.results() == expected


def test_a_data_set_without_labels_says_where_results_go(run: TinyRun) -> None:
    run.here("--eval-only", "DATASETS.TEST", "('ytvis_2019_test', 'ytvis_2019_val')")
    assert len(run.results("ytvis_2019_test")) == DETECTIONS * 3
    assert not (run.output / "inference" / "ytvis_2019_test" / "scores.json").exists()
    log = (run.output / "log.txt").read_text()
    assert "tools/ytvis_json.py --results" in log and "--dataset ytvis_2019_test" in log
    assert run.scores()["dataset"] == "ytvis_2019_val"


def test_a_data_set_of_ones_own(run: TinyRun, capfd: pytest.CaptureFixture) -> None:
    described = {
        "name": "mine_val",
        "annotations": "ytvis_2019/valid.json",
        "images": "ytvis_2019/valid/JPEGImages",
        "novel": ["person"],
    }
    try:
        words = ["DATASETS.CUSTOM", str([described]), "DATASETS.TEST", "('mine_val',)"]
        run.here("--eval-only", *words)
        assert set(run.scores("mine_val")["groups"]) == {"all", "base", "novel"}
        assert len(run.results("mine_val")) == DETECTIONS * 3
        config = run.config.with_name("mine.yaml")
        config.write_text(yaml.safe_dump({"DATASETS": {"CUSTOM": [described]}}))
        by_script = ["--dt", str(run.output), "--et", "mine_val", "--config-file", str(config)]
        mAP.main([*by_script, "--out", str(run.output)])
        again = json.loads((run.output / "scores.json").read_text())
        assert again["groups"] == run.scores("mine_val")["groups"]
        described["novel"] = ["persona"]
        with pytest.raises(SystemExit):
            run.here("--eval-only", "DATASETS.CUSTOM", str([described]), *words[2:])
        assert "no category has the name or id 'persona'" in capfd.readouterr().err
    finally:
        if "mine_val" in DatasetCatalog.list():
            DatasetCatalog.remove("mine_val")
            MetadataCatalog.remove("mine_val")


def test_training(run: TinyRun) -> None:
    options = {
        "DATASETS.TRAIN": "('ytvis_2019_train',)",
        "MODEL.MASK_FORMER.CAT_INFO_PATH": "datasets/metadata/ytvis_2019_train_cat_info.json",
        "TEST.EVAL_PERIOD": "4",
    }
    run.here(*(word for pair in options.items() for word in pair))
    metrics = {key: value for line in run.metrics() for key, value in line.items()}
    assert metrics["total_loss"] > 0 and "ytvis_2019_val/segm/AP" in metrics
    trained = torch.load(run.output / "model_final.pth", weights_only=True)["model"]
    before = torch.load(run.untrained, weights_only=True)["model"]
    moved = [key for key in before if not torch.equal(before[key], trained[key])]
    assert any(key.startswith("sem_seg_head.pixel_decoder") for key in moved)
