"""Prediction for visitors of the page in the browser, who are not trusted.

They choose no path, name no file of this machine, and get no more than :class:`Limits` allows.
"""

import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from urllib.parse import quote

import torch

from ovformer.data.catalog.vocabulary import is_vocabulary_file
from ovformer.data.files.video_files import SELF_CONTAINED, Frame, VideoSource
from ovformer.demo.output_folder import (
    PredictionOptions,
    Progress,
    SavedPrediction,
    predict_to_folder,
)
from ovformer.demo.result_page import TEMPLATES, render_result_page
from ovformer.predictor.video_predictor import VideoPredictor

# A visitor's mistake, or a full disk or memory: the page shows the message, the server continues.
ERRORS = (OSError, ValueError, MemoryError, torch.OutOfMemoryError)


@dataclass(frozen=True)
class Limits:
    """How much a visitor may ask for.

    Attributes:
        upload_mb: megabytes of a file.
        frames: that the model sees. A longer video is cut there, with a note: only decoding tells
            the length for sure, and refusing the video then would waste the upload.
        pixels: of a frame; the masks of all objects of a frame are in memory together.
        words: names in a vocabulary; each goes through CLIP's text model.
        results: output folders that are kept; older ones are removed.
    """

    upload_mb: int = 200
    frames: int = 600
    pixels: int = 4096 * 4096
    words: int = 2000
    results: int = 20


class _VisitProgress(Progress):
    """The progress of a visitor's prediction: gradio's bar, and a button that stops it."""

    def __init__(self, track: Callable[..., Iterable[Frame]]) -> None:
        self.stop = Event()
        self._track = track

    @contextmanager
    def allow_stop(self) -> Iterator[Callable[[], bool]]:
        try:
            yield self.stop.is_set
        finally:
            self.stop.clear()  # the frames that the model saw are still drawn

    def track(self, frames: Iterable[Frame], total: int | None, text: str) -> Iterable[Frame]:
        return self._track(frames, total=total, desc=text, unit="frames")


class PredictionService:
    """Predicts what visitors send, one at a time.

    Args:
        predictor: each prediction changes its vocabulary.
        folder: gets a folder for each result, whose name can't be guessed.
        limits: for each visitor.
    """

    def __init__(self, predictor: VideoPredictor, folder: Path, limits: Limits) -> None:
        self.predictor = predictor
        self.folder = folder
        self.limits = limits
        self._visits: dict[str, _VisitProgress] = {}

    def find(
        self,
        visitor: str,
        path: str | None,
        words: str,
        options: PredictionOptions,
        track: Callable[..., Iterable[Frame]],
    ) -> tuple[str, list[str]]:
        """Find the objects with some names in a visitor's file.

        Args:
            visitor: id of the visitor; :meth:`stop` takes it.
            path: where gradio has put the file; None if the visitor sent none.
            words: as typed: with commas, or one a line.
            options: which frames and objects; the limits are added.
            track: wraps the frames in a progress bar, as ``gr.Progress.tqdm`` does.

        Returns:
            The result page as HTML, and the files to download.

        Raises:
            ValueError: there is no file, or it is neither a video nor an image, or too large; or
                there are no words, or too many.
            OSError: the results can't be written; none of them is left.
        """
        if not path or not Path(path).is_file():  # old uploads are removed
            raise ValueError("No file yet: choose a video or a picture.")
        name = Path(path).name
        # What needs no decoding is refused first.
        items = self._split_words(words)
        progress = self._visits[visitor] = _VisitProgress(track)
        output = None
        try:
            source = VideoSource(path, SELF_CONTAINED, self.limits.pixels)
            next(iter(source))  # an unreadable file fails before the vocabulary is embedded
            self.predictor.set_vocabulary(items)
            output = self._make_folder()
            saved = predict_to_folder(
                self.predictor,
                source,
                output,
                replace(options, max_frames=self.limits.frames),
                progress,
                title=name,
                stem="objects",
            )
            packed = shutil.make_archive(str(output.parent / "all"), "zip", output)
        except Exception as error:
            if output is not None:  # nobody gets the files, and they may fill the disk
                shutil.rmtree(output.parent, ignore_errors=True)
            if isinstance(error, ValueError):  # the message must not show a folder of the server
                raise ValueError(str(error).replace(path, name)) from error
            raise
        finally:
            self._visits.pop(visitor, None)
        names = [saved.media, "results.json", "annotations.json"]
        return _render_view(saved, output, name), [*(str(output / name) for name in names), packed]

    def stop(self, visitor: str) -> None:
        """End the prediction of a visitor, if there is one, after the present frame."""
        if progress := self._visits.get(visitor):
            progress.stop.set()

    def stop_all(self) -> None:
        """End all predictions after their present frames."""
        for visitor in list(self._visits):
            self.stop(visitor)

    def _split_words(self, words: str) -> list[str]:
        """Return the typed words; raise ValueError for none, too many, or the name of a file."""
        items = [item.strip() for item in words.replace("\n", ",").split(",")]
        items = [item for item in items if item]
        if not items:
            raise ValueError("No words yet: type what to look for, such as 'dog, red ball'.")
        if len(items) > self.limits.words:
            raise ValueError(f"{len(items)} words are too many: at most {self.limits.words}.")
        # The vocabulary reader would open such a file on this machine.
        for item in items:
            if is_vocabulary_file(item):
                raise ValueError(f"{item!r} is the name of a file: paste the words in it here.")
        return items

    def _make_folder(self) -> Path:
        """Remove the oldest results; return a new folder, whose parent is new as well."""
        self.folder.mkdir(parents=True, exist_ok=True)
        results = sorted(self.folder.iterdir(), key=lambda result: result.stat().st_mtime)
        for result in results[: max(0, len(results) - self.limits.results + 1)]:
            shutil.rmtree(result)
        # Two folders: the archive lies beside the one it packs. Whoever knows the name may read it.
        output = self.folder / secrets.token_urlsafe(16) / "objects"
        output.mkdir(parents=True)
        return output


def _render_view(saved: SavedPrediction, output: Path, title: str) -> str:
    """Return a result page inside an iframe, which isolates its script."""
    base = f"gradio_api/file={quote(str(output))}/"
    page = render_result_page(
        title, saved.media, saved.best, saved.thumbnails, saved.notes, base=base
    )
    return TEMPLATES.get_template("result_frame.html").render(result_page=page)
