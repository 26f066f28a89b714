"""Prediction for visitors of the page in the browser, within their limits."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from html import unescape
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from ovformer.data.files.video_files import VideoSource
from ovformer.demo.output_folder import PredictionOptions
from ovformer.demo.prediction_service import Limits, PredictionService
from ovformer.predictor import VideoPredictor
from support.predictor_fixture import write_video

pytest.importorskip("av", reason="needs the extra [demo]")
pytest.importorskip("supervision", reason="needs the extra [demo]")

SIZE = (48, 64)


def show_no_bar(frames: Iterable, **_: Any) -> Iterable:
    return frames


def find(service, path, words="dog", track=show_no_bar) -> tuple[str, list[Path]]:
    """Find all objects, whatever their score, for the visitor "me"."""
    options = PredictionOptions(score_threshold=0)
    view, files = service.find("me", path and str(path), words, options, track)
    return view, [Path(file) for file in files]


@pytest.fixture
def service(predictor: VideoPredictor, tmp_path: Path) -> Iterator[PredictionService]:
    """Takes 4 frames of 48 x 64 pixels, 3 words, and keeps 2 results."""
    limits = Limits(frames=4, pixels=SIZE[0] * SIZE[1], words=3, results=2)
    yield PredictionService(predictor, tmp_path / "results", limits)
    predictor.set_vocabulary("checkpoint")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory, make_frames: Callable) -> Path:
    """Six frames, in a file with a name that nobody should trust."""
    return write_video(tmp_path_factory.mktemp("films") / "<b>my film.mp4", make_frames(6))


def test_a_video(service: PredictionService, video: Path) -> None:
    view, paths = find(service, video, "dog\nred ball, dog,")
    output = paths[0].parent
    names = ["objects.mp4", "results.json", "annotations.json", "all.zip"]
    assert [path.name for path in paths] == names
    assert output.parents[1] == service.folder and "film" not in output.parent.name
    assert len(list(VideoSource(paths[0]))) == 4  # of six
    names = [c["name"] for c in json.loads(paths[2].read_text())["categories"]]
    assert names == ["dog", "red ball"]
    packed = zipfile.ZipFile(paths[3]).namelist()
    assert {"index.html", "objects.mp4", "results.json"} <= set(packed)
    page = unescape(view.split("srcdoc=")[1])
    assert f'<base href="gradio_api/file={output}/">' in page
    assert "Only the first 4 frames were looked at." in page and "<svg" in page
    assert "&lt;b&gt;my film.mp4" in page and "<b>" not in page
    assert "sandbox=allow-scripts " in view


def test_wrong_input_is_refused_before_the_work(
    service: PredictionService, video: Path, tmp_path: Path
) -> None:
    text, large = tmp_path / "text.mp4", tmp_path / "large.png"
    text.write_text("no video")
    Image.new("RGB", (65, 48)).save(large)
    large_video = write_video(tmp_path / "large.mp4", [np.zeros((48, 66, 3), np.uint8)])
    for path, words, message in (
        (None, "dog", "file"),
        (tmp_path / "removed.mp4", "dog", "file"),
        (video, " ,\n ,", "words"),
        (video, "a,b,c,d", r"\b4\b.*\b3\b"),
        (video, f"dog, {tmp_path}/secret.txt ", "secret.txt"),
        (video, f"{tmp_path}/secret.json\ndog", "secret.json"),
        (text, "dog", "^text.mp4"),
        (large, "dog", "^large.png.*48 x 65.*3072"),
        (large_video, "dog", "^large.mp4.*48 x 66.*3072"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            find(service, path, words)
        assert "secret" in words or str(tmp_path) not in str(caught.value)
    assert not service.folder.exists()


def test_a_failure_leaves_no_files(service: PredictionService, video: Path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "make_archive", Mock(side_effect=OSError("No space left")))
    with pytest.raises(OSError, match="No space left"):
        find(service, video)
    assert list(service.folder.iterdir()) == []


def test_old_results_are_removed(service: PredictionService, video: Path) -> None:
    folders = []
    for age in (3, 2, 1):
        folders.append(find(service, video)[1][0].parents[1])
        os.utime(folders[-1], (9 - age, 9 - age))
    assert [folder.exists() for folder in folders] == [False, True, True]


def test_stopping(service: PredictionService, video: Path) -> None:
    def stopped_after_two(frames: Iterable, total: int | None, desc: str, unit: str) -> Iterator:
        assert total == (4 if desc == "looking" else 2)
        for count, frame in enumerate(frames):
            yield frame
            service.stop("me" if desc == "looking" and count == 1 else "somebody else")

    service.stop("me")  # nothing is running yet
    view, paths = find(service, video, track=stopped_after_two)
    assert len(json.loads(paths[2].read_text())["videos"][0]["file_names"]) == 2
    assert "Interrupted" in view and "in 2 frames" in view
