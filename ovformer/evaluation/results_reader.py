"""Find, read and check results.json of video instance segmentation, one prediction at a time.

The file is a JSON list of predictions {"video_id", "score", "category_id": the data set's own id,
"segmentations": one COCO RLE per frame}. Where it has a "track_id" as well, predictions of a video
with the same one are one track under several names.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from ovformer.data.files.json_file import LIST, NUMBER, Kind, name_file_in_errors, shorten
from ovformer.data.files.untrusted_masks import find_fault

# Ids are looked up in the ground truth, so any number is accepted here.
FIELDS: dict[str, Kind] = {
    "video_id": NUMBER,
    "score": NUMBER,
    "category_id": NUMBER,
    "segmentations": LIST,
}

_CHUNK = 1 << 22  # characters read at a time
_LONGEST = 1 << 29  # most characters of one prediction
_NEAR_END = 16  # most characters of a word or an escape of JSON
_DECODER = json.JSONDecoder()
_BLANKS = re.compile(r"\s*")
_SEPARATOR = re.compile(r"[\s,]*")


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
    # The folder named after the data set comes first: one run may have evaluated several.
    for place in places:
        if place.is_file():
            return place
    tried = "\n  ".join(str(place) for place in places)
    raise FileNotFoundError(
        f"No results of {dataset} in {folder}. Tried:\n  {tried}\n"
        "Evaluate a model first (train_net_video.py --eval-only), or give the file itself."
    )


def read_results(path: Path) -> Iterator[dict]:
    """Read a results file while holding only a few predictions in memory.

    Args:
        path: a JSON list of predictions.

    Yields:
        The predictions in the order of the file, each with at least :data:`FIELDS`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut off, or is not a list of predictions.
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
            # Read on early: a prediction that the end of the chunk cuts off is decoded twice.
            if len(text) - position < 2 * longest:
                text, position = text[position:] + file.read(_CHUNK), 0
            start = position = _SEPARATOR.match(text, position).end()
            if text.startswith("]", position):
                break
            try:
                prediction, position = _decode(text, position)
            except _CutOffError as error:
                chunk, length = "", len(text) - position
                if length <= _LONGEST:
                    # Double the text each time, so that a long prediction is decoded few times.
                    chunk = file.read(max(_CHUNK, length))
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
            if error := _find_format_error(prediction):
                raise ValueError(f"{path}: prediction {number} {error}")
            longest = max(longest, position - start)
            yield prediction
            number += 1
        # Two files that were joined, or a list written over a longer one.
        if (text[position + 1 :] + file.read(_CHUNK)).strip():
            raise ValueError(f"{path}: text follows the end of its list of {number} predictions.")


def read_checked(path: Path, ground_truth: Mapping) -> Iterator[tuple[int, list[dict]]]:
    """Read a results file and check it against its ground truth.

    Args:
        path: a JSON list of predictions.
        ground_truth: see :class:`ResultsChecker`.

    Yields:
        The id of a video, and its predictions. A video whose predictions are scattered over the
        file is yielded several times.

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


class PredictionCounter:
    """Counts repeated predictions and videos without any: allowed, but they lower the scores.

    Args:
        ground_truth: see :class:`ResultsChecker`.
    """

    def __init__(self, ground_truth: Mapping) -> None:
        self._videos = {video["id"] for video in ground_truth["videos"]}
        self._empty = set(self._videos)
        self._seen: set[int] = set()  # hashes: a file has millions of predictions
        self._repeated = 0

    def count(self, predictions: Iterable[dict]) -> Iterator[dict]:
        """Count predictions and yield them unchanged."""
        for prediction in predictions:
            self._empty.discard(prediction["video_id"])
            content = json.dumps([prediction[key] for key in FIELDS])
            if hash(content) in self._seen:
                self._repeated += 1
            self._seen.add(hash(content))
            yield prediction

    def warnings(self) -> Iterator[str]:
        """Yield a sentence for each kind of problem that was counted."""
        if self._empty:
            yield f"no prediction for {len(self._empty)} of {len(self._videos)} videos."
        if self._repeated:
            yield (
                f"{self._repeated} predictions repeat earlier ones, with the same score and masks: "
                "were files joined? Only one of them counts as right, all others as wrong."
            )


class _CutOffError(ValueError):
    """The JSON may be valid once more text is read."""


def _decode(text: str, position: int) -> tuple[object, int]:
    """Return the JSON value that begins somewhere in a text, and where it ends.

    Raises:
        _CutOffError: there is an error at the end of the text, where more text may mend it.
        ValueError: there is an error elsewhere, or a number of thousands of digits.
        RecursionError: the value is nested too deeply.
    """
    try:
        return _DECODER.raw_decode(text, position)
    except json.JSONDecodeError as error:
        if error.msg.startswith("Unterminated") or error.pos >= len(text) - _NEAR_END:
            raise _CutOffError(error.msg) from error
        raise ValueError(error.msg) from error


def _find_format_error(prediction: object) -> str | None:
    """Return why a value is not a prediction, or None if it is one."""
    if not isinstance(prediction, dict) or not prediction.keys() >= FIELDS.keys():
        return f"has to be an object with {', '.join(FIELDS)}; found {shorten(prediction)}."
    for key, kind in FIELDS.items():
        if not kind.fits(prediction[key]):
            return f"has the {key} {shorten(prediction[key])}; expected {kind.text}."
    return None


class ResultsChecker:
    """Checks that predictions are well formed and belong to a ground truth.

    Args:
        ground_truth: from :func:`ovformer.data.files.vis_json.load_vis_json`.
    """

    def __init__(self, ground_truth: Mapping):
        self._lengths = {video["id"]: video["length"] for video in ground_truth["videos"]}
        self._categories = {category["id"] for category in ground_truth["categories"]}
        # Frames of one video may differ in size: then each size of a true mask is right.
        self._sizes = {v["id"]: {(v["height"], v["width"])} for v in ground_truth["videos"]}
        for annotation in ground_truth.get("annotations") or ():
            sizes = {tuple(mask["size"]) for mask in annotation["segmentations"] if mask}
            self._sizes[annotation["video_id"]] |= sizes
        self._checked = 0

    def check(self, video_id: int, entries: Sequence[dict]) -> None:
        """Check predictions of one video; call this for a whole file in its order.

        Args:
            video_id: its id.
            entries: its predictions.

        Raises:
            ValueError: the video or a category is not in the ground truth, a score is not finite,
                or the masks are not one compressed RLE (or ``None``) of the right size per frame.
                The message numbers predictions from 0, in the order of the checks.
        """
        # Fields first: the masks can only be collected from entries that have a list of them.
        for number, entry in enumerate(entries, start=self._checked):
            if error := _find_format_error(entry) or self._find_mismatch(video_id, entry):
                raise ValueError(f"Prediction {number}, for video {shorten(video_id)}, {error}")
        # All masks in one call: the check runs over arrays.
        masks = [mask for entry in entries for mask in entry["segmentations"] if mask is not None]
        if fault := find_fault(masks):
            raise ValueError(
                f"{self._name_frame_of(masks[fault.index], entries)} has a mask that is not a "
                f"compressed COCO RLE: {fault.reason}."
            )
        sizes = self._sizes[video_id]
        if wrong := next((mask for mask in masks if tuple(mask["size"]) not in sizes), None):
            height, width = min(sizes)
            raise ValueError(
                f"{self._name_frame_of(wrong, entries)} has a mask of size {list(wrong['size'])} "
                f"(height, width), but the video has {height} x {width} pixels."
            )
        self._checked += len(entries)

    def _find_mismatch(self, video_id: int, entry: Mapping) -> str | None:
        """Return why a prediction does not belong to the ground truth; masks are not looked at."""
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

    def _name_frame_of(self, mask: object, entries: Sequence[Mapping]) -> str:
        """Return how messages name the frame of a prediction that has this mask object."""
        for number, entry in enumerate(entries, start=self._checked):
            for frame, other in enumerate(entry["segmentations"]):
                if other is mask:
                    return f"Prediction {number}, for video {entry['video_id']}, frame {frame},"
        raise AssertionError("no prediction has the mask")
