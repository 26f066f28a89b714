"""From a video, image or folder of frames to an output folder: results, output video, HTML page.

The command line (``tools/predict.py``) and the page in the browser (``tools/app.py``) share this.
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
from ovformer.demo.painter import Painter, choose_scale
from ovformer.demo.result_page import Thumbnails, render_result_page
from ovformer.files import write_atomically, write_text
from ovformer.predictor.predictions import (
    FramesResult,
    VideoResult,
    to_annotations,
    to_evaluation_results,
)
from ovformer.predictor.video_predictor import VideoPredictor


@dataclass(frozen=True)
class PredictionOptions:
    """Which frames the model sees, and which objects are shown.

    Attributes:
        stride: take every ``stride``-th frame.
        every: in seconds; take the first frame after each multiple of it, 0 for all frames.
        max_frames: the frames after these are skipped, and a note says so; None for no limit.
        score_threshold: least score of an object that is shown.
        max_objects: most objects of the video, or of each frame where nothing is tracked; None for
            TEST.DETECTIONS_PER_IMAGE of the config.
        frames_out: also write each drawn frame, as ``frames/<number>.png``.
    """

    stride: int = 1
    every: float = 0.0
    max_frames: int | None = None
    score_threshold: float = 0.3
    max_objects: int | None = None
    frames_out: bool = False

    def select_frames(self, source: VideoSource) -> Iterator[Frame]:
        """Yield the selected frames of a video, regardless of ``max_frames``."""
        return thin_frames(source, self.stride, self.every)

    def count_frames(self, source: VideoSource) -> int | None:
        """Estimate how many frames the model will see; None if the video has no frame count."""
        if not source.num_frames:
            return None
        count = -(-source.num_frames // self.stride)
        if self.every > 0:
            count = min(count, int(source.num_frames / source.rate / self.every) + 1)
        return min(count, self.max_frames or count)


class Progress(Protocol):
    """Shows how far the work is, and lets the user stop it."""

    def allow_stop(self) -> AbstractContextManager[Callable[[], bool]]:
        """Return a context manager for a part of the work; its function says whether to stop."""

    def track(self, frames: Iterable[Frame], total: int | None, text: str) -> Iterable[Frame]:
        """Return the same frames, and show how many of them were taken."""


@dataclass(frozen=True)
class SavedPrediction:
    """What :func:`predict_to_folder` wrote.

    Attributes:
        best: the objects that are shown, one for each thing.
        media: name of the output video or image in the folder.
        thumbnails: track id -> path of its thumbnail, relative to the folder.
        notes: sentences about frames that are missing.
        is_stopped: whether the user stopped it before the end.
    """

    best: VideoResult | FramesResult
    media: str
    thumbnails: dict[int, str]
    notes: list[str]
    is_stopped: bool


@dataclass
class _LimitedFrames:
    """Frames up to a limit, or until the user stops, but at least one.

    Attributes:
        numbers: of the frames that were taken so far.
        has_more: whether the limit skipped some.
    """

    frames: Iterable[Frame]
    limit: int | None
    is_stopped: Callable[[], bool]
    numbers: list[int] = field(default_factory=list)
    has_more: bool = False

    def __iter__(self) -> Iterator[Frame]:
        for frame in self.frames:
            # Only a frame after the last one tells that the video is longer.
            self.has_more = len(self.numbers) == self.limit
            if self.has_more or (self.numbers and self.is_stopped()):
                return
            self.numbers.append(frame.number)
            yield frame


def predict_to_folder(
    predictor: VideoPredictor,
    source: VideoSource,
    output: Path,
    options: PredictionOptions,
    progress: Progress,
    *,
    title: str,
    stem: str,
) -> SavedPrediction:
    """Find the objects of a video; write results, drawings and an HTML page about them.

    Args:
        predictor: with its vocabulary.
        source: the video, which is read twice: to predict and to draw.
        output: a folder, which is made. It gets results.json, annotations.json, the output video or
            image, thumbnails, poster.jpg (of a video) and index.html.
        options: which frames and objects.
        progress: where it stops the work, the frames up to then are written.
        title: of the page.
        stem: name of the output video or image without its suffix.

    Raises:
        ModuleNotFoundError: the extra [demo] is not installed.
        ValueError: there is no frame, or frames differ in size.
        OSError: a file can't be written. Those that were written before stay.
    """
    # Both fail now, and not after minutes of prediction: supervision is not installed, or the
    # folder can't be written to.
    Painter()
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=output):
        pass
    with progress.allow_stop() as is_stopped:
        seen = _LimitedFrames(options.select_frames(source), options.max_frames, is_stopped)
        frames = progress.track(seen, options.count_frames(source), "looking")
        result = predictor.predict(frames, options.max_objects)
        was_stopped = is_stopped()
    count = len(result.times)
    names = source.file_names
    names = [names[n] if names else f"frame{n:06d}" for n in seen.numbers[:count]]
    if source.is_still:
        result = result.by_frame()  # the JSON files of an image are COCO's
    best = result.best(options.score_threshold, options.max_objects)
    # Before the drawing, so that a stop or a full disk does not lose the predictions.
    write_json(output / "results.json", to_evaluation_results(result))
    write_json(output / "annotations.json", to_annotations(best, names))
    media = stem + (".png" if source.is_still else ".mp4")
    # The video is read again: all of its frames would not fit in memory.
    with progress.allow_stop() as is_stopped:
        frames = _LimitedFrames(options.select_frames(source), count, is_stopped)
        frames = progress.track(frames, count, "drawing")
        thumbnails = write_drawn_frames(frames, best, output / media, options.frames_out)
        was_stopped = is_stopped() or was_stopped
    notes = [f"Only the first {count} frames were looked at."] if seen.has_more else []
    if was_stopped:
        notes.append("Interrupted: these are the frames up to then.")
    write_text(output / "index.html", render_result_page(title, media, best, thumbnails, notes))
    return SavedPrediction(best, media, thumbnails, notes, was_stopped)


def write_drawn_frames(
    frames: Iterable[Frame], result: VideoResult | FramesResult, media: Path, frames_out: bool
) -> dict[int, str]:
    """Draw objects on frames; write the output video or image, and thumbnails.

    Args:
        frames: those that were predicted.
        result: the objects.
        media: the output video (.mp4), beside which its first frame becomes poster.jpg, or the
            output image.
        frames_out: also write each drawn frame.

    Returns:
        Track id -> path of its thumbnail, relative to the folder of ``media``.
    """
    painter = Painter(choose_scale(result.size))
    thumbnails = Thumbnails(result)
    is_still = media.suffix != ".mp4"
    output = media.parent
    if frames_out:
        (output / "frames").mkdir(exist_ok=True)
    # Players want one rate; the median ignores gaps. Each frame still has a time of its own.
    steps = np.diff(result.times)
    rate = 1 / median(steps) if len(steps) and median(steps) > 0 else 10.0
    with nullcontext() if is_still else VideoWriter(media, rate) as video:
        for t, frame in enumerate(frames):
            # Thumbnails show the object itself, without what is drawn on it.
            thumbnails.add_frame(t, frame.image)
            drawn = painter(frame.image, result.in_frame(t))
            if is_still:
                write_image(media, drawn)
            else:
                video.write(drawn, frame.time)
                if t == 0:
                    write_image(output / "poster.jpg", drawn)
            if frames_out:
                write_image(output / "frames" / f"{frame.number:06d}.png", drawn)
    paths = {}
    for track_id, image in thumbnails.images.items():
        paths[track_id] = f"thumbnails/{track_id:03d}.jpg"
        (output / "thumbnails").mkdir(exist_ok=True)
        write_image(output / paths[track_id], image)
    return paths


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image, uint8 (H, W, 3) RGB, in the format of the path's suffix."""
    is_encoded, content = cv2.imencode(path.suffix, np.ascontiguousarray(image[:, :, ::-1]))
    assert is_encoded, path
    write_atomically(path, lambda file: file.write(content))


def write_json(path: Path, content: object) -> None:
    """Write a JSON file atomically: a failure leaves no half of it."""
    write_text(path, json.dumps(content, ensure_ascii=False))
