"""tools/predict.py: from a video, words and weights to an output folder."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ovformer.data.files.video_files import VideoSource
from ovformer.data.files.vis_json import load_vis_json
from ovformer.evaluation.results_reader import ResultsChecker, read_results
from support.predictor_fixture import WORDS, make_clip, write_video

pytest.importorskip("av", reason="needs the extra [demo]")
pytest.importorskip("supervision", reason="needs the extra [demo]")

TOOL = "predict"
SCRIPT = Path(__file__).parents[2] / "tools" / "predict.py"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory, make_frames) -> Path:
    """Twelve frames, 10 a second."""
    return write_video(tmp_path_factory.mktemp("films") / "my.mp4", make_frames(12))


@pytest.fixture
def run(tool, trained: Path, capsys) -> Callable[..., tuple[int, str, str]]:
    """A function of words of the command line: exit status, output and errors of the tool."""

    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            tool.main(["--device", "cpu", "--weights", str(trained), *map(str, words)])
        captured = capsys.readouterr()
        return end.value.code, captured.out, captured.err

    return run


def test_a_video(run, video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--vocabulary", "dog, red ball,dog", "--score-threshold", 0, "--max-objects", 4]
    code, text, _ = run(video, "--output", out, *words)
    assert code == 0 and re.search(r"\d objects in 12 frames: .*index\.html", text)
    names = {"annotations.json", "index.html", "my_objects.mp4", "poster.jpg", "results.json"}
    assert {path.name for path in out.iterdir()} == names | {"thumbnails"}

    truth = load_vis_json(out / "annotations.json")
    assert [c["name"] for c in truth["categories"]] == ["dog", "red ball"]
    results = list(read_results(out / "results.json"))
    assert len(results) == 4
    ResultsChecker(truth).check(1, results)
    annotations = truth["annotations"]
    assert 0 < len(annotations) <= 4
    assert len(list((out / "thumbnails").iterdir())) == len(annotations)
    for annotation in annotations:
        assert len(annotation["segmentations"]) == 12
        parts = (annotation[key] for key in ("segmentations", "bboxes", "areas"))
        for mask, box, area in zip(*parts, strict=True):
            assert (mask is None) == (box is None) == (area is None)

    drawn = list(VideoSource(out / "my_objects.mp4"))
    assert len(drawn) == 12
    np.testing.assert_allclose([f.time for f in drawn], np.arange(12) / 10, atol=0.002)
    assert drawn[0].image.shape == (48 * 8, 64 * 8, 3)  # enlarged, so that names can be read
    page = (out / "index.html").read_text(encoding="utf-8")
    for file in re.findall(r'(?:src|poster)="?([^" >]+)', page):
        assert (out / file).is_file(), file
    assert page.count("<svg") == len(annotations)


def test_the_vocabulary_and_clip_model_of_the_weights(run, video: Path, tmp_path: Path) -> None:
    assert run(video, "--output", tmp_path)[0] == 0
    categories = json.loads((tmp_path / "annotations.json").read_text())["categories"]
    assert [c["name"] for c in categories] == WORDS
    clip = make_clip(tmp_path / "clip", seed=3)
    code, _, error = run(video, "--output", tmp_path, "--clip", clip, "--vocabulary", "dog")
    assert code == 2 and clip in error


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (["--every", 0.4], [0, 4, 8]),
        (["--stride", 2, "--every", 0.5, "--resize", 32, "--model", "image"], [0, 6, 10]),
    ],
)
def test_which_frames_are_used(run, video: Path, tmp_path: Path, words, numbers) -> None:
    assert run(video, "--output", tmp_path, "--frames-out", *words)[0] == 0
    files = sorted(path.name for path in (tmp_path / "frames").iterdir())
    assert files == [f"{number:06d}.png" for number in numbers]
    times = [frame.time for frame in VideoSource(tmp_path / "my_objects.mp4")]
    np.testing.assert_allclose(times, np.array(numbers) / 10, atol=0.002)


def test_the_best_objects_are_printed(tool, run, video: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tool, "MAX_PRINTED", 3)
    _, text, _ = run(video, "--output", tmp_path, "--score-threshold", 0, "--model", "image")
    *listed, more, last = text.splitlines()
    count = len(json.loads((tmp_path / "annotations.json").read_text())["annotations"])
    assert last.startswith(f"{count} objects in 12 frames: ")
    assert len(listed) == 3 < count and more == f"... and {count - 3} more"
    scores = [float(line.split()[0]) for line in listed]
    assert scores == sorted(scores, reverse=True)


def test_images_and_folders(run, make_frames: Callable, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for t, frame in enumerate(make_frames(3)):
        Image.fromarray(frame).save(folder / f"{t}.png")
    monkeypatch.chdir(folder)
    out = tmp_path / "video"
    assert run(".", "--score-threshold", 0, "--output", out)[0] == 0
    assert len(list(VideoSource(out / "frames_objects.mp4"))) == 3
    (video,) = json.loads((out / "annotations.json").read_text())["videos"]
    assert video["file_names"] == ["0.png", "1.png", "2.png"]

    out = tmp_path / "image"
    assert run(folder / "1.png", "--score-threshold", 0, "--output", out)[0] == 0
    assert cv2.imread(str(out / "1_objects.png")).shape == (384, 512, 3)
    content = json.loads((out / "annotations.json").read_text())
    assert content["images"] == [{"id": 1, "file_name": "1.png", "height": 48, "width": 64}]
    assert {"bbox", "area", "segmentation"} <= content["annotations"][0].keys()
    entry = json.loads((out / "results.json").read_text())[0]
    assert entry.keys() == {"image_id", "category_id", "bbox", "score", "segmentation"}
    assert "<svg" not in (out / "index.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--vocabulary", ","], "vocabulary"),
        (["--vocabulary", "words.txt"], "words.txt"),
        (["--config-file", "none.yaml"], "none.yaml"),
        (["--stride", "0"], "--stride"),
        (["--every", "-1"], "--every"),
        (["--score-threshold", "30"], "--score-threshold"),
        (["--device", "nonsense"], "'nonsense'"),
        (["--device", "cuda:4711"], "'cuda:4711'"),
        (["--output", "text.mp4"], "text.mp4"),
    ],
)
def test_bad_input(run, video: Path, tmp_path: Path, monkeypatch, words, message) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.mp4").write_text("no video")
    code, _, error = run(video, "--output", "out", *words)
    assert code == 2 and message in error and "Traceback" not in error
    assert "looking" not in error  # it fails before the work


def test_a_folder_without_permission_and_a_full_disk(run, video: Path, tmp_path: Path) -> None:
    if Path("/proc/self").is_dir():  # where not even root can make a file
        code, _, error = run(video, "--output", "/proc/self")
        assert code == 2 and "/proc/self" in error and "looking" not in error
    (tmp_path / "my_objects.mp4.tmp").symlink_to("/dev/full")
    code, _, error = run(video, "--output", tmp_path)
    assert code == 2 and "No space left on device" in error and str(tmp_path) in error
    assert json.loads((tmp_path / "results.json").read_text())  # written before the video


@pytest.mark.slow
def test_interrupted(trained: Path, make_frames: Callable, tmp_path: Path) -> None:
    """Ctrl-C keeps the frames so far: results, a video that plays, and the HTML report."""
    out = tmp_path / "out"
    video = write_video(tmp_path / "long.mp4", make_frames(1500))
    command = [sys.executable, SCRIPT, video, "--weights", trained, "--output", out]
    command += ["--device", "cpu", "--score-threshold", "0"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(list(map(str, command)), stderr=pipe, stdout=pipe)
    seen = b""
    while b"frame/s" not in seen or b" 0/" in seen.rsplit(b"|", 1)[-1]:
        chunk = os.read(process.stderr.fileno(), 4096)
        assert chunk, seen.decode()
        seen = chunk
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error.decode()
    truth = load_vis_json(out / "annotations.json")
    length = truth["videos"][0]["length"]
    assert 0 < length < 1500
    ResultsChecker(truth).check(1, list(read_results(out / "results.json")))
    assert len(list(VideoSource(out / "long_objects.mp4"))) == length
    assert "Interrupted" in (out / "index.html").read_text()
