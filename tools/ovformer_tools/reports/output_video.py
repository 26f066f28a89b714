"""The output video of tools/predict.py, and how the model named each annotated object in it."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovformer.data.files.json_file import read_json
from ovformer.evaluation.tube_iou import tube_iou

# An object counts as found if a prediction has this tube IoU with it.
MIN_IOU = 0.5


@dataclass(frozen=True)
class Match:
    """An annotated object, and the prediction that overlaps it most.

    Attributes:
        name: of the object.
        found: name of the prediction; empty if no tube IoU reaches :data:`MIN_IOU`.
        score: of the prediction.
    """

    name: str
    found: str = ""
    score: float = 0.0

    @property
    def is_right(self) -> bool:
        """Whether the object was found under its own name."""
        return self.name == self.found


@dataclass(frozen=True)
class NamingRun:
    """The predictions for the video, with one vocabulary.

    Attributes:
        num_names: of the vocabulary.
        matches: one for each annotated object.
    """

    num_names: int
    matches: Sequence[Match]

    @property
    def num_right(self) -> int:
        """Number of objects that were found under their own names."""
        return sum(match.is_right for match in self.matches)

    @property
    def num_found(self) -> int:
        """Number of objects that were found under any name."""
        return sum(match.found != "" for match in self.matches)


@dataclass(frozen=True)
class OutputVideo:
    """A drawn video and its runs, for the report.

    Attributes:
        mp4: the video in base64.
        poster: its first frame, a JPEG in base64.
        runs: one for each vocabulary.
    """

    mp4: str
    poster: str
    runs: Sequence[NamingRun]

    def matches_of_objects(self) -> Iterable[tuple[Match, ...]]:
        """Return for each annotated object its match in each run."""
        return zip(*(run.matches for run in self.runs), strict=True)


def read_output_video(folder: Path, others: Path, truth: Path) -> OutputVideo:
    """Read the output folders of two predictions for one video.

    Args:
        folder: output of tools/predict.py; its video is shown.
        others: output of tools/predict.py with other words.
        truth: annotations of the video in the format of YouTube-VIS.

    Raises:
        FileNotFoundError: the folder has no poster.jpg.
        ValueError: it has no output video, or several.
    """
    annotated = read_json(truth)
    runs = []
    for path in (folder, others):
        predicted = read_json(path / "annotations.json")
        matches = match_objects(annotated, predicted)
        runs.append(NamingRun(len(predicted["categories"]), matches))
    videos = sorted(folder.glob("*_objects.mp4"))
    if len(videos) != 1:
        raise ValueError(f"{folder}: expected one *_objects.mp4, found {len(videos)}.")
    return OutputVideo(read_base64(videos[0]), read_base64(folder / "poster.jpg"), runs)


def read_base64(path: Path) -> str:
    """Return the content of a file in base64, for a data URL."""
    return base64.b64encode(path.read_bytes()).decode("ascii")


def match_objects(truth: Mapping, predicted: Mapping) -> list[Match]:
    """Match each annotated object with the prediction of the largest tube IoU.

    Args:
        truth: annotations of one video.
        predicted: annotations of the same video with scores.
    """
    names, predicted_names = (
        {category["id"]: category["name"] for category in content["categories"]}
        for content in (truth, predicted)
    )
    tubes, predicted_tubes = (
        [item["segmentations"] for item in content["annotations"]] for content in (truth, predicted)
    )
    matches = [Match(names[item["category_id"]]) for item in truth["annotations"]]
    if not predicted_tubes:
        return matches
    for number, overlaps in enumerate(tube_iou(tubes, predicted_tubes)):
        best = int(np.argmax(overlaps))
        if overlaps[best] >= MIN_IOU:
            item = predicted["annotations"][best]
            found = predicted_names[item["category_id"]]
            matches[number] = Match(matches[number].name, found, item["score"])
    return matches
