"""tools/predict.py: from a film, words and weights to a page."""

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

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("predict")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory, make_frames) -> Path:
    """Twelve frames, 10 a second."""
    return write_video(tmp_path_factory.mktemp("films") / "my.mp4", make_frames(12))


def run(tool, capsys, *words: object) -> tuple[int, str, str]:
    """Exit status, output and errors of the tool."""
    with pytest.raises(SystemExit) as end:
        tool.main(["--device", "cpu", *map(str, words)])
    captured = capsys.readouterr()
    return end.value.code, captured.out, captured.err


def test_a_film(tool, film: Path, trained: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    words = ["--vocabulary", "dog, red ball,dog", "--score-threshold", 0, "--max-objects", 4]
    code, text, _ = run(tool, capsys, film, "--weights", trained, "--output", out, *words)
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
        assert len(annotation["segmentations"]) == len(annotation["bboxes"]) == 12
        for mask, box, area in zip(
            annotation["segmentations"], annotation["bboxes"], annotation["areas"], strict=True
        ):
            assert (mask is None) == (box is None) == (area is None)

    drawn = list(VideoSource(out / "my_objects.mp4"))
    assert len(drawn) == 12
    np.testing.assert_allclose([f.time for f in drawn], np.arange(12) / 10, atol=0.002)
    assert drawn[0].image.shape == (48 * 8, 64 * 8, 3)  # enlarged, so that names can be read
    page = (out / "index.html").read_text(encoding="utf-8")
    for file in re.findall(r'(?:src|poster)="?([^" >]+)', page):
        assert (out / file).is_file(), file
    assert page.count("<svg") == len(annotations)


def test_the_vocabulary_and_clip_model_of_the_weights(
    tool,
    film: Path,
    trained: Path,
    tmp_path: Path,
    capsys,
) -> None:
    common = [film, "--weights", trained, "--output", tmp_path]
    assert run(tool, capsys, *common)[0] == 0
    categories = json.loads((tmp_path / "annotations.json").read_text())["categories"]
    assert [c["name"] for c in categories] == WORDS
    clip = make_clip(tmp_path / "clip", seed=3)
    code, _, error = run(tool, capsys, *common, "--clip", clip, "--vocabulary", "dog")
    assert code == 2 and "The weights were trained with CLIP 'local-dir:" in error


def test_options(tool, film: Path, trained: Path, tmp_path: Path, capsys) -> None:
    common = [film, "--weights", trained, "--score-threshold", 0]
    for words, numbers in (
        (["--stride", 5], [0, 5, 10]),
        (["--every", 0.4], [0, 4, 8]),
        (["--stride", 2, "--every", 0.5, "--resize", 32, "--model", "image"], [0, 6, 10]),
    ):
        out = tmp_path / str(words[1])
        code, text, _ = run(tool, capsys, *common, "--output", out, "--frames-out", *words)
        assert code == 0, text
        files = sorted(path.name for path in (out / "frames").iterdir())
        assert files == [f"{number:06d}.png" for number in numbers]
        times = [frame.time for frame in VideoSource(out / "my_objects.mp4")]
        np.testing.assert_allclose(times, np.array(numbers) / 10, atol=0.002)


def test_the_best_objects_are_listed(
    tool, film: Path, trained: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    """Those of single frames may be many thousands."""
    monkeypatch.setattr(tool, "LISTED", 3)
    words = ["--weights", trained, "--output", tmp_path, "--score-threshold", 0, "--model", "image"]
    code, text, _ = run(tool, capsys, film, *words)
    *listed, more, last = text.splitlines()
    count = len(json.loads((tmp_path / "annotations.json").read_text())["annotations"])
    assert code == 0 and last.startswith(f"{count} objects in 12 frames: ")
    assert len(listed) == 3 < count and more == f"... and {count - 3} more"
    scores = [float(line.split()[0]) for line in listed]
    assert scores == sorted(scores, reverse=True)


def test_pictures_and_folders(
    tool,
    make_frames: Callable,
    trained: Path,
    tmp_path: Path,
    capsys,
    monkeypatch,
) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for t, frame in enumerate(make_frames(3)):
        Image.fromarray(frame).save(folder / f"{t}.png")
    common = ["--weights", trained, "--score-threshold", 0]
    code, _, _ = run(tool, capsys, folder, *common, "--output", tmp_path / "film")
    assert code == 0 and len(list(VideoSource(tmp_path / "film" / "frames_objects.mp4"))) == 3
    videos = json.loads((tmp_path / "film" / "annotations.json").read_text())["videos"]
    assert videos[0]["file_names"] == ["0.png", "1.png", "2.png"]

    monkeypatch.chdir(folder)  # which is the film's name then, too
    run(tool, capsys, ".", *common, "--output", tmp_path / "here")
    assert (tmp_path / "here" / "frames_objects.mp4").is_file()

    out = tmp_path / "picture"
    code, _, _ = run(tool, capsys, folder / "1.png", *common, "--output", out)
    assert code == 0 and cv2.imread(str(out / "1_objects.png")).shape == (384, 512, 3)
    content = json.loads((out / "annotations.json").read_text())
    assert content["images"] == [{"id": 1, "file_name": "1.png", "height": 48, "width": 64}]
    assert {"bbox", "area", "segmentation"} <= content["annotations"][0].keys()
    entry = json.loads((out / "results.json").read_text())[0]
    assert entry.keys() == {"image_id", "category_id", "bbox", "score", "segmentation"}
    assert "<svg" not in (out / "index.html").read_text()


def test_what_can_not_be_done(
    tool,
    film: Path,
    trained: Path,
    tmp_path: Path,
    capsys,
) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    end = ["--weights", trained, "--output", tmp_path / "out"]
    for words, message in (
        ([tmp_path / "none.mp4", *end], "none.mp4: no such video"),
        ([text, *end], "neither a video nor a picture"),
        ([film, "--weights", "none.pth", "--output", tmp_path], "no file none.pth"),
        ([film, "--weights", text, "--output", tmp_path], "can't be read"),
        ([film, *end, "--vocabulary", ","], "vocabulary: no name"),
        ([film, *end, "--vocabulary", "words.txt"], "no file words.txt"),
        ([film, *end, "--config-file", "none.yaml"], "none.yaml does not exist"),
        ([film, *end, "--stride", "0"], "expected 1 or more, got 0"),
        ([film, *end, "--every", "-1"], "expected 0 or more seconds, got -1"),
        ([film, *end, "--score-threshold", "30"], "expected a number from 0 to 1, got 30"),
        ([film, "--weights", trained, "--output", text], "File exists"),
        ([film, *end, "--device", "nonsense"], "device: 'nonsense' can't be used"),
        ([film, *end, "--device", "cuda:4711"], "device: 'cuda:4711' can't be used"),
    ):
        code, _, error = run(tool, capsys, *words)
        assert code == 2 and message in error and "Traceback" not in error


def test_a_folder_that_can_not_be_written_to_is_noticed_before_the_work(
    tool, film: Path, trained: Path, capsys
) -> None:
    folder = Path("/proc/self")  # where also root can't make a file
    if not folder.is_dir():
        pytest.skip("no /proc")
    code, _, error = run(tool, capsys, film, "--weights", trained, "--output", folder)
    assert code == 2 and str(folder) in error and "looking" not in error


def test_no_space_left(tool, film: Path, trained: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "my_objects.mp4.tmp").symlink_to("/dev/full")
    code, _, error = run(tool, capsys, film, "--weights", trained, "--output", tmp_path)
    assert code == 2 and "No space left on device" in error
    assert json.loads((tmp_path / "results.json").read_text())  # what was written before


def test_words_in_the_page_are_text(
    tool, film: Path, trained: Path, tmp_path: Path, capsys
) -> None:
    words = ["--vocabulary", "<script>alert(1)</script>", "--score-threshold", 0]
    run(tool, capsys, film, "--weights", trained, "--output", tmp_path, *words)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert" in page and "<script>alert" not in page


@pytest.mark.slow
def test_interrupted(trained: Path, make_frames: Callable, tmp_path: Path) -> None:
    """Ctrl-C keeps the frames so far: results, a film that plays, and the page."""
    film, out = tmp_path / "long.mp4", tmp_path / "out"
    write_video(film, make_frames(1500))
    command = [sys.executable, ROOT / "tools" / "predict.py", film, "--weights", trained]
    command += ["--output", out, "--device", "cpu", "--score-threshold", "0"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        list(map(str, command)),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    seen = b""
    while b"frame/s" not in seen or b" 0/" in seen.rsplit(b"|", 1)[-1]:
        chunk = os.read(process.stderr.fileno(), 4096)
        assert chunk, seen.decode()
        seen = chunk
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error.decode()
    assert b"Stopping: what was done is kept" in error
    truth = load_vis_json(out / "annotations.json")
    length = truth["videos"][0]["length"]
    assert 0 < length < 1500
    ResultsChecker(truth).check(1, list(read_results(out / "results.json")))
    assert len(list(VideoSource(out / "long_objects.mp4"))) == length
    assert "Interrupted" in (out / "index.html").read_text()
