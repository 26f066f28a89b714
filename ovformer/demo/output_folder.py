"""From a video, picture or folder of frames to an output folder: results, film, page.

What the command line (``tools/predict.py``) and the page in the browser (``tools/app.py``) share.
Drawing needs the extra [demo].
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryFile
from typing import Protocol

import cv2
import numpy as np

from ovformer.data.files.video_files import Frame, VideoSource, thin_frames
from ovformer.data.files.video_writer import VideoWriter
from ovformer.demo.painter import Painter, scale_for
from ovformer.demo.result_page import Thumbnails, page
from ovformer.files import write_atomically, write_text
from ovformer.predictor.predictions import (
    FramesResult,
    VideoResult,
    annotations,
    evaluation_results,
)
from ovformer.predictor.video_predictor import VideoPredictor


@dataclass(frozen=True)
class Choice:
    """Which frames are looked at, and what is written about them.

    Attributes:
        stride: one frame of so many.
        every: seconds; the first frame that comes after each multiple of it, 0 for all.
        max_frames: how many, at most; a note says when some were left out.
        score_threshold: least score of what is shown.
        max_objects: most objects, in each frame where nothing is tracked; None for
            TEST.DETECTIONS_PER_IMAGE of the config.
        frames_out: also write each drawn frame, as ``frames/<number>.png``.
    """

    stride: int = 1
    every: float = 0.0
    max_frames: int | None = None
    score_threshold: float = 0.3
    max_objects: int | None = None
    frames_out: bool = False

    def frames(self, source: VideoSource) -> Iterator[Frame]:
        """Yield the frames of a video that are wanted, more than ``max_frames`` if there are."""
        return thin_frames(source, self.stride, self.every)

    def expected(self, source: VideoSource) -> int | None:
        """Return about how many frames will be looked at, if the video says how many it has."""
        if not source.num_frames:
            return None
        expected = -(-source.num_frames // self.stride)
        if self.every > 0:
            expected = min(expected, int(source.num_frames / source.rate / self.every) + 1)
        return min(expected, self.max_frames or expected)


class Watch(Protocol):
    """Shows how far the work is, and tells when it has to stop."""

    def stopping(self) -> AbstractContextManager[Callable[[], bool]]:
        """Return a context for a part of the work; what it gives tells whether to stop there."""

    def bar(self, frames: Iterable[Frame], total: int | None, text: str) -> Iterable[Frame]:
        """Return the same frames, which are counted as they go by."""


@dataclass(frozen=True)
class Written:
    """What an output folder has.

    Attributes:
        best: what is shown, one object for each thing.
        media: name of the film or picture in the folder.
        thumbnails: track id -> name of its picture in the folder.
        notes: sentences on what is left out.
        is_stopped: whether it was stopped before the end.
    """

    best: VideoResult | FramesResult
    media: str
    thumbnails: dict[int, str]
    notes: list[str]
    is_stopped: bool


@dataclass
class _Taken:
    """Frames up to a limit, or until it is time to stop: the first one is always there.

    Attributes:
        numbers: of the frames that were taken so far.
        has_more: whether the limit left some out.
    """

    frames: Iterable[Frame]
    limit: int | None
    is_stopped: Callable[[], bool]
    numbers: list[int] = field(default_factory=list)
    has_more: bool = False

    def __iter__(self) -> Iterator[Frame]:
        for frame in self.frames:
            self.has_more = len(self.numbers) == self.limit
            if self.has_more or (self.numbers and self.is_stopped()):
                return
            self.numbers.append(frame.number)
            yield frame


def predict_to_folder(
    predictor: VideoPredictor,
    source: VideoSource,
    output: Path,
    choice: Choice,
    watch: Watch,
    *,
    title: str,
    stem: str,
) -> Written:
    """Find the objects of a video and write all that is known about them.

    Args:
        predictor: with its vocabulary.
        source: what is looked at, and then read once more to draw on it.
        output: a folder, which is made. It gets results.json, annotations.json, the film or
            picture, thumbnails, poster.jpg (of a film) and index.html.
        choice: of frames and objects.
        watch: what was done when it stops the work is kept.
        title: of the page.
        stem: name of the film or picture without its suffix.

    Raises:
        ModuleNotFoundError: the extra [demo] is not installed.
        ValueError: there is no frame, or frames differ in size.
        OSError: it can't be written; what was written before stays.
    """
    Painter()  # where supervision is missing, this fails now and not after the long work
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=output):
        pass  # the same for a folder that can't be written to
    with watch.stopping() as is_stopped:
        looked_at = _Taken(choice.frames(source), choice.max_frames, is_stopped)
        frames = watch.bar(looked_at, choice.expected(source), "looking")
        result = predictor.predict(frames, choice.max_objects)
        was_stopped = is_stopped()
    count = len(result.times)
    names = source.file_names
    names = [names[n] if names else f"frame{n:06d}" for n in looked_at.numbers[:count]]
    if source.is_still:
        result = result.by_frame()
    best = result.best(choice.score_threshold, choice.max_objects)
    write_json(output / "results.json", evaluation_results(result))
    write_json(output / "annotations.json", annotations(best, names))
    media = stem + (".png" if source.is_still else ".mp4")
    with watch.stopping() as is_stopped:
        frames = watch.bar(_Taken(choice.frames(source), count, is_stopped), count, "drawing")
        thumbnails = draw(frames, best, output / media, choice.frames_out)
        was_stopped = is_stopped() or was_stopped
    notes = [f"Only the first {count} frames were looked at."] if looked_at.has_more else []
    if was_stopped:
        notes.append("Interrupted: these are the frames up to then.")
    text = page(title, media, best, thumbnails, notes)
    write_text(output / "index.html", text)
    return Written(best, media, thumbnails, notes, was_stopped)


def draw(
    frames: Iterable[Frame], result: VideoResult | FramesResult, media: Path, frames_out: bool
) -> dict[int, str]:
    """Draw objects on frames; write the film or the picture, frames and thumbnails.

    Args:
        frames: those that were predicted.
        result: what to draw.
        media: the film (.mp4), beside which its first frame becomes poster.jpg, or the picture.
        frames_out: also write each drawn frame.

    Returns:
        The name of each track's thumbnail, relative to the folder of the film.
    """
    painter = Painter(scale_for(result.size))
    thumbnails = Thumbnails(result)
    is_still = media.suffix != ".mp4"
    output = media.parent
    if frames_out:
        (output / "frames").mkdir(exist_ok=True)
    steps = np.diff(result.times)
    rate = 1 / median(steps) if len(steps) and median(steps) > 0 else 10.0
    with nullcontext() if is_still else VideoWriter(media, rate) as film:
        for t, frame in enumerate(frames):
            thumbnails.look(t, frame.image)
            drawn = painter(frame.image, result.in_frame(t))
            if is_still:
                write_picture(media, drawn)
            else:
                film.write(drawn, frame.time)
            if t == 0 and not is_still:
                write_picture(output / "poster.jpg", drawn)
            if frames_out:
                write_picture(output / "frames" / f"{frame.number:06d}.png", drawn)
    names = {}
    for track_id, picture in thumbnails.pictures.items():
        names[track_id] = f"thumbnails/{track_id:03d}.jpg"
        (output / "thumbnails").mkdir(exist_ok=True)
        write_picture(output / names[track_id], picture)
    return names


def write_picture(path: Path, image: np.ndarray) -> None:
    """Write a picture, uint8 (H, W, 3) RGB, in the format that the name says."""
    is_encoded, content = cv2.imencode(path.suffix, np.ascontiguousarray(image[:, :, ::-1]))
    assert is_encoded, path
    write_atomically(path, lambda file: file.write(content))


def write_json(path: Path, content: object) -> None:
    """Write a JSON file that is complete or not there."""
    write_text(path, json.dumps(content, ensure_ascii=False))
