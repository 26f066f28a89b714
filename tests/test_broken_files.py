"""``DATALOADER.SKIP_BROKEN``: trainings and evaluations with files that can't be loaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from ovformer.data.samples.broken_samples import SampleError
from ovformer.engine.stages import CLIPS
from support.tiny_runs import DETECTIONS, TinyRun, make_run

SKIP = ["DATALOADER.SKIP_BROKEN", "True"]
# A share of the few draws of these trainings says little.
MANY = [*SKIP, "DATALOADER.MAX_BROKEN", "0.6"]


def break_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes((folder / name).read_bytes()[:60])


@pytest.mark.slow
def test_a_training_counts_skipped_samples(tiny_run: TinyRun, monkeypatch) -> None:
    monkeypatch.setattr("ovformer.run.WRITE_PERIOD", 1)
    opts = ["DATASETS.TEST", "()", *MANY]
    folder = tiny_run.root / "shapes" / "train"
    break_files(folder, "001.png", "002.png")
    tiny_run.here(*opts)
    log = (tiny_run.output / "log.txt").read_text()
    skipped = [line.split("Skipped, ")[1] for line in log.splitlines() if "Skipped, " in line]
    assert skipped and len(set(skipped)) == len(skipped)
    assert all("taken: shapes_train, image id " in line for line in skipped)
    counts = [line["broken_samples"] for line in tiny_run.metrics()]
    assert counts == sorted(counts) and counts[-1] >= len(skipped)
    # A training that is resumed counts on, and sees the same samples.
    whole = torch.load(tiny_run.output / "model_final.pth", weights_only=True)
    assert whole["trainer"]["broken_samples"] == counts[-1]
    (tiny_run.output / "last_checkpoint").write_text("model_0000001.pth")
    tiny_run.here("--resume", *opts)
    again = torch.load(tiny_run.output / "model_final.pth", weights_only=True)
    assert [line["broken_samples"] for line in tiny_run.metrics()] == counts
    for name, value in whole["model"].items():
        assert torch.equal(again["model"][name], value), name


def test_without_the_key_the_first_one_ends_a_training(tiny_run: TinyRun) -> None:
    break_files(tiny_run.root / "shapes" / "train", *(f"00{n}.png" for n in range(1, 9)))
    with pytest.raises(SampleError, match=r"shapes_train, image id \d: .*train.00\d\.png: the im"):
        tiny_run.here("DATASETS.TEST", "()")
    assert "broken_samples" not in (tiny_run.output / "metrics.json").read_text()


def test_images_without_predictions_count_as_missed(tiny_run: TinyRun) -> None:
    broken = tiny_run.output / "inference" / "shapes_val" / "broken.json"
    tiny_run.here("--eval-only", *SKIP)
    whole = tiny_run.results()
    assert not broken.exists()
    image = tiny_run.root / "shapes" / "val" / "002.png"
    content = image.read_bytes()
    break_files(image.parent, image.name)
    with pytest.raises(SampleError, match=r"shapes_val, image id 2: .*002\.png"):
        tiny_run.here("--eval-only")
    tiny_run.here("--eval-only", *SKIP)
    assert tiny_run.results() == [r for r in whole if r["image_id"] != 2]
    (message,) = json.loads(broken.read_text())
    assert "shapes_val, image id 2: " in message and "002.png" in message
    log = (tiny_run.output / "log.txt").read_text()
    assert "1 image(s) or video(s) could not be loaded and have no predictions" in log
    image.write_bytes(content)
    tiny_run.here("--eval-only")
    assert tiny_run.results() == whole and not broken.exists()


@pytest.fixture
def videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyRun:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data sets"))
    return make_run(tmp_path, CLIPS)


@pytest.mark.slow
def test_clips_and_videos(videos: TinyRun) -> None:
    folders = [videos.data.frames_of(split) / "video3" for split in ("train", "val")]
    for folder in folders:
        break_files(folder, *(f"{t:05d}.png" for t in range(6)))
    videos.here(*MANY)
    assert max(line.get("broken_samples", 0) for line in videos.metrics()) > 0
    assert videos.metrics()[-1]["lvvis_val/broken/samples"] == 1
    assert {r["video_id"] for r in videos.results()} == {8, 11}
    assert len(videos.results()) == 2 * DETECTIONS
    (message,) = json.loads((videos.output / "inference/lvvis_val/broken.json").read_text())
    assert "Frame 0 of video 3" in message
    # Mended, and evaluated again, it has predictions: nothing says that it is done.
    for folder in folders:
        for path in folder.iterdir():
            shutil.copy(folder.with_name("video8") / "00000.png", path)
    videos.here("--eval-only", "--resume", *SKIP)
    assert {r["video_id"] for r in videos.results()} == {3, 8, 11}
