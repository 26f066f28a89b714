"""results.json of video instance segmentation: find it, read and check one prediction at a time.

The file is a JSON list of predictions {"video_id", "score", "category_id": the data set's own id,
"segmentations": one COCO RLE per frame}.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from ovformer.data.files.json_file import LIST, NUMBER, Kind, name_file_in_errors, shorten
from ovformer.data.files.untrusted_masks import find_fault

# Ids are looked up, so that it does not matter here whether they are whole.
FIELDS: dict[str, Kind] = {
    "video_id": NUMBER,
    "score": NUMBER,
    "category_id": NUMBER,
    "segmentations": LIST,
}

_CHUNK = 1 << 22  # characters read at a time
_LONGEST = 1 << 29  # characters of a prediction
_NEAR_END = 16  # a word or an escape of JSON is no longer
_DECODER = json.JSONDecoder()
_BLANKS = re.compile(r"\s*")
_SEPARATOR = re.compile(r"[\s,]*")

logger = logging.getLogger(__name__)


def find_results(folder: Path, dataset: str) -> Path:
    """Find the results of a run.

    Args:
        folder: a results file, or the folder of a run (``OUTPUT_DIR``) or of its results.
        dataset: name of the data set.

    Returns:
        The results file: ``OUTPUT_DIR/inference/<dataset>/results.json``, or where the published
        code put it.

    Raises:
        FileNotFoundError: there is none.
    """
    if folder.is_file():
        return folder
    places = [
        folder / "inference" / dataset / "results.json",
        folder / "inference" / "results.json",
        folder / dataset / "results.json",
        folder / "results.json",
    ]
    for place in places:
        if place.is_file():
            return place
    tried = "\n  ".join(str(place) for place in places)
    raise FileNotFoundError(
        f"No results of {dataset} in {folder}. Tried:\n  {tried}\n"
        "Evaluate a model first (train_net_video.py --eval-only), or give the file itself."
    )


def read_results(path: Path) -> Iterator[dict]:
    """Read a results file without ever holding more than a few predictions.

    Args:
        path: a JSON list of predictions.

    Yields:
        The predictions in the order of the file, each with at least :data:`FIELDS`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut off or no list of predictions.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Results file {path} not found.")
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        text = file.read(_CHUNK)
        position = _BLANKS.match(text).end()
        if not text.startswith("[", position):
            raise ValueError(f"{path}: expected a JSON list of predictions, found {text[:40]!r}.")
        position += 1
        number = longest = 0
        while True:
            # A prediction that is cut off by the end of the chunk would be decoded twice.
            if len(text) - position < 2 * longest:
                text, position = text[position:] + file.read(_CHUNK), 0
            start = position = _SEPARATOR.match(text, position).end()
            if text.startswith("]", position):
                break
            try:
                prediction, position = _decode(text, position)
            except _CutOffError as error:
                # Twice as much each time, so that a long one is not decoded again and again.
                chunk = (
                    ""
                    if len(text) - position > _LONGEST
                    else file.read(max(_CHUNK, len(text) - position))
                )
                if not chunk:
                    raise ValueError(
                        f"{path}: prediction {number} is cut off or not valid JSON ({error}). "
                        "The run that wrote it was probably interrupted: evaluate again."
                    ) from None
                text, position = text[position:] + chunk, 0
                continue
            except (RecursionError, ValueError) as error:
                raise ValueError(
                    f"{path}: prediction {number} is not valid JSON ({error})."
                ) from None
            if fault := _fault(prediction):
                raise ValueError(f"{path}: prediction {number} {fault}")
            longest = max(longest, position - start)
            yield prediction
            number += 1
        if (text[position + 1 :] + file.read(_CHUNK)).strip():
            raise ValueError(f"{path}: goes on after its list of {number} predictions has ended.")


def read_checked(path: Path, ground_truth: Mapping) -> Iterator[tuple[int, list[dict]]]:
    """Read a results file, and check it against its ground truth.

    Args:
        path: a JSON list of predictions.
        ground_truth: see :class:`ResultsChecker`.

    Yields:
        The id of a video, and those of its predictions that follow one another in the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: see :func:`read_results` and :meth:`ResultsChecker.check`.
    """
    checker = ResultsChecker(ground_truth)
    for video_id, entries in groupby(read_results(path), key=itemgetter("video_id")):
        entries = list(entries)
        with name_file_in_errors(path):
            checker.check(video_id, entries)
        yield video_id, entries


class Oddities:
    """Counts what is allowed in a results file, but lowers its scores and is seldom meant."""

    def __init__(self, ground_truth: Mapping) -> None:
        """Prepare, see :class:`ResultsChecker`."""
        self._videos = {video["id"] for video in ground_truth["videos"]}
        self._without = set(self._videos)
        self._seen: set[int] = set()  # hashes, which are small
        self._repeated = 0

    def watch(self, predictions: Iterable[dict]) -> Iterator[dict]:
        """Yield the same predictions, which are counted as they go by."""
        for prediction in predictions:
            self._without.discard(prediction["video_id"])
            content = json.dumps([prediction[key] for key in FIELDS])
            self._repeated += hash(content) in self._seen
            self._seen.add(hash(content))
            yield prediction

    def notes(self) -> Iterator[str]:
        """Yield sentences on what was counted."""
        if self._without:
            yield f"no prediction for {len(self._without)} of {len(self._videos)} videos."
        if self._repeated:
            yield (
                f"{self._repeated} predictions repeat earlier ones, with the same score and masks: "
                "were files joined? An object counts once, so all but one are counted as wrong."
            )


class _CutOffError(ValueError):
    """JSON that may be valid if there is more of it."""


def _decode(text: str, position: int) -> tuple[object, int]:
    """Return the JSON value that begins somewhere in a text, and where it ends.

    Raises:
        _CutOffError: there is a fault, but only the end of the text may be to blame.
        ValueError: there is one elsewhere, or a number of thousands of digits.
        RecursionError: it is nested too deeply.
    """
    try:
        return _DECODER.raw_decode(text, position)
    except json.JSONDecodeError as error:
        if error.msg.startswith("Unterminated") or error.pos >= len(text) - _NEAR_END:
            raise _CutOffError(error.msg) from error
        raise ValueError(error.msg) from error


def _fault(prediction: object) -> str | None:
    """Say in which way a value is no prediction."""
    if not isinstance(prediction, dict) or not prediction.keys() >= FIELDS.keys():
        return f"has to be an object with {', '.join(FIELDS)}; found {shorten(prediction)}."
    for key, kind in FIELDS.items():
        if not kind.fits(prediction[key]):
            return f"has the {key} {shorten(prediction[key])}; expected {kind.text}."
    return None


class ResultsChecker:
    """Tells predictions that belong to a ground truth from those that do not."""

    def __init__(self, ground_truth: Mapping):
        """Prepare.

        Args:
            ground_truth: from :func:`ovformer.data.files.vis_json.load_vis_json`.
        """
        self._lengths = {video["id"]: video["length"] for video in ground_truth["videos"]}
        self._categories = {category["id"] for category in ground_truth["categories"]}
        # Frames of one video may differ in size; then the true masks tell.
        self._sizes = {v["id"]: {(v["height"], v["width"])} for v in ground_truth["videos"]}
        for annotation in ground_truth.get("annotations") or ():
            sizes = {tuple(mask["size"]) for mask in annotation["segmentations"] if mask}
            self._sizes[annotation["video_id"]] |= sizes
        self._checked = 0

    def check(self, video_id: int, entries: Sequence[dict]) -> None:
        """Check predictions of one video. All of a file are checked in its order.

        Args:
            video_id: its id.
            entries: its predictions.

        Raises:
            ValueError: the video or a category is not in the ground truth, a score is no finite
                number, or the masks are not one compressed RLE (or ``None``) of the right size per
                frame. The message counts predictions from 0, as they were checked.
        """
        for number, entry in enumerate(entries, start=self._checked):
            if fault := _fault(entry) or self._misfit(video_id, entry):
                raise ValueError(f"Prediction {number}, for video {shorten(video_id)}, {fault}")
        masks = [mask for entry in entries for mask in entry["segmentations"] if mask is not None]
        if fault := find_fault(masks):
            place = self._place_of(masks[fault.index], entries)
            raise ValueError(
                f"{place} has a mask that is not a compressed COCO RLE: {fault.reason}."
            )
        sizes = self._sizes[video_id]
        if wrong := next((mask for mask in masks if tuple(mask["size"]) not in sizes), None):
            height, width = min(sizes)
            raise ValueError(
                f"{self._place_of(wrong, entries)} has a mask of size {list(wrong['size'])} "
                f"(height, width), but the video has {height} x {width} pixels."
            )
        self._checked += len(entries)

    def _misfit(self, video_id: int, entry: Mapping) -> str | None:
        """Say in which way a prediction does not belong to the ground truth, but for its masks."""
        if video_id not in self._lengths:
            return (
                f"which the ground truth does not have ({len(self._lengths)} videos, ids "
                f"{min(self._lengths)} to {max(self._lengths)}). These are results of another data "
                "set or split."
            )
        if (category_id := entry["category_id"]) not in self._categories:
            return (
                f"has category_id {category_id!r}, which the ground truth does not have "
                f"({len(self._categories)} categories, ids {min(self._categories)} to "
                f"{max(self._categories)}). These are results of another data set."
            )
        if (found := len(entry["segmentations"])) != (length := self._lengths[video_id]):
            return (
                f"has {found} segmentations, but the video has {length} frames. Predictions need "
                "one per frame, in the order of its file_names."
            )
        return None

    def _place_of(self, mask: object, entries: Sequence[Mapping]) -> str:
        """Return how messages call the frame of a prediction that has this very mask."""
        for number, entry in enumerate(entries, start=self._checked):
            for frame, other in enumerate(entry["segmentations"]):
                if other is mask:
                    return f"Prediction {number}, for video {entry['video_id']}, frame {frame},"
        raise AssertionError("the mask is of none of the predictions")
