"""Prediction for visitors of a page, who are strangers.

They decide no path, name no file of this machine, and get no more than :class:`Limits` allows.
"""

import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from threading import Event
from urllib.parse import quote

import torch

from ovformer.data.catalog.vocabulary import is_vocabulary_file
from ovformer.data.files.video_files import SELF_CONTAINED, Frame, VideoSource
from ovformer.demo.output_folder import Choice, Watch, Written, predict_to_folder
from ovformer.demo.result_page import page
from ovformer.predictor.video_predictor import VideoPredictor

# What a visitor did wrong, or what is full: the message is shown, and the server goes on.
ERRORS = (OSError, ValueError, MemoryError, torch.OutOfMemoryError)


@dataclass(frozen=True)
class Limits:
    """How much a visitor may ask for.

    Attributes:
        upload_mb: megabytes of a file.
        frames: that are looked at. Longer videos are cut there, with a note, and not refused: only
            decoding tells the length for sure, and what was sent is not sent in vain.
        pixels: of a frame; the masks of all objects of a frame are in memory together.
        words: names in a vocabulary, each of which goes through CLIP's text model.
        results: output folders that are kept; the oldest are removed.
    """

    upload_mb: int = 200
    frames: int = 600
    pixels: int = 4096 * 4096
    words: int = 2000
    results: int = 20


class _Visit(Watch):
    """A prediction that is under way: gradio's bar, and stopping by a button."""

    def __init__(self, track: Callable[..., Iterable[Frame]]) -> None:
        self.stop = Event()
        self._track = track

    @contextmanager
    def stopping(self) -> Iterator[Callable[[], bool]]:
        try:
            yield self.stop.is_set
        finally:
            self.stop.clear()  # what was looked at is drawn

    def bar(self, frames: Iterable[Frame], total: int | None, text: str) -> Iterable[Frame]:
        return self._track(frames, total=total, desc=text, unit="frames")


class PredictionService:
    """Predicts what visitors send, one at a time."""

    def __init__(self, predictor: VideoPredictor, folder: Path, limits: Limits) -> None:
        """Store the settings.

        Args:
            predictor: its vocabulary is changed by each prediction.
            folder: where results are written, each to a folder whose name can't be guessed.
            limits: for each visitor.
        """
        self.predictor = predictor
        self.folder = folder
        self.limits = limits
        self._visits: dict[str, _Visit] = {}

    def find(
        self,
        visitor: str,
        path: str | None,
        words: str,
        choice: Choice,
        track: Callable[..., Iterable[Frame]],
    ) -> tuple[str, list[str]]:
        """Look at a file for some words.

        Args:
            visitor: whose :meth:`stop` ends this.
            path: of the file, where gradio has put it; None if there is none.
            words: as typed: with commas, or one a line.
            choice: of frames and objects; the limits are added to it.
            track: returns the frames that it is given, with a bar: see ``gr.Progress.tqdm``.

        Returns:
            The result page as HTML, and files to download.

        Raises:
            ValueError: there is no file, or it is neither a video nor a picture, or too large; or
                there are no words, or too many.
            OSError: the results can't be written; none of them is left.
        """
        if not path or not Path(path).is_file():  # it may have been removed meanwhile
            raise ValueError("No file yet: choose a video or a picture.")
        name = Path(path).name
        items = self._items(words)
        visit = self._visits[visitor] = _Visit(track)
        output = None
        try:
            source = VideoSource(path, SELF_CONTAINED, self.limits.pixels)
            next(iter(source))  # what is wrong with it is told before anything is begun
            self.predictor.set_vocabulary(items)
            output = self._new_folder()
            written = predict_to_folder(
                self.predictor,
                source,
                output,
                replace(choice, max_frames=self.limits.frames),
                visit,
                title=name,
                stem="objects",
            )
            packed = shutil.make_archive(str(output.parent / "all"), "zip", output)
        except Exception as error:
            if output is not None:  # nobody gets it, and it may be what fills the disk
                shutil.rmtree(output.parent, ignore_errors=True)
            if isinstance(error, ValueError):  # a visitor has a file, and no folder of the server
                raise ValueError(str(error).replace(path, name)) from error
            raise
        finally:
            self._visits.pop(visitor, None)
        names = [written.media, "results.json", "annotations.json"]
        return _view(written, output, name), [*(str(output / name) for name in names), packed]

    def stop(self, visitor: str) -> None:
        """Let the prediction of a visitor end with the present frame, if there is one."""
        if visit := self._visits.get(visitor):
            visit.stop.set()

    def stop_all(self) -> None:
        """Let all predictions end."""
        for visitor in list(self._visits):
            self.stop(visitor)

    def _items(self, words: str) -> list[str]:
        """Return what was typed as a list, or raise ValueError."""
        items = [item.strip() for item in words.replace("\n", ",").split(",")]
        items = [item for item in items if item]
        if not items:
            raise ValueError("No words yet: type what to look for, such as 'dog, red ball'.")
        if len(items) > self.limits.words:
            raise ValueError(f"{len(items)} words are too many: at most {self.limits.words}.")
        for item in items:
            if is_vocabulary_file(item):
                raise ValueError(f"{item!r} is the name of a file: paste the words in it here.")
        return items

    def _new_folder(self) -> Path:
        """Return a new folder in a new folder, after the oldest of these were removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        results = sorted(self.folder.iterdir(), key=lambda result: result.stat().st_mtime)
        for result in results[: max(0, len(results) - self.limits.results + 1)]:
            shutil.rmtree(result)
        output = self.folder / secrets.token_urlsafe(16) / "objects"
        output.mkdir(parents=True)
        return output


def _view(written: Written, output: Path, title: str) -> str:
    """Return a result page in a frame of its own, whose script can't touch the page around it."""
    base = f"gradio_api/file={quote(str(output))}/"
    text = page(title, written.media, written.best, written.thumbnails, written.notes, base=base)
    return (
        '<iframe class=result sandbox=allow-scripts allow=fullscreen title="what was found" '
        f'srcdoc="{escape(text)}"></iframe>'
    )
