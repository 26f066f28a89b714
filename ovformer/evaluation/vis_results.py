"""results.json of video instance segmentation: found, read one prediction at a time, written.

The file is a JSON list of predictions {"video_id", "score", "category_id": the data set's own id,
"segmentations": one COCO RLE per frame}. It is written as videos finish: each process appends one
line per video to a part file next to it, and the parts are merged at the end. A run that crashed
can go on after its last finished video. Each line begins with the checksum of its rest, so what is
cut off or damaged is found, and counts as not written.
"""

import json
import logging
import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ovformer.data.vis_json import check_rle
from ovformer.files import replacing

FIELDS = ("video_id", "score", "category_id", "segmentations")

_FIELDS = set(FIELDS)
_CHUNK = 1 << 22  # characters read at a time
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
    decode = json.JSONDecoder().raw_decode
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
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
                prediction, position = decode(text, position)
            except json.JSONDecodeError as error:
                chunk = file.read(_CHUNK)
                if not chunk:
                    raise ValueError(
                        f"{path}: prediction {number} is cut off or not valid JSON ({error.msg}). "
                        "The run that wrote it was probably interrupted: evaluate again."
                    ) from None
                text, position = text[position:] + chunk, 0
                continue
            if not isinstance(prediction, dict) or not prediction.keys() >= _FIELDS:
                raise ValueError(
                    f"{path}: prediction {number} has to be an object with {', '.join(FIELDS)}; "
                    f"found {str(prediction)[:80]}."
                )
            longest = max(longest, position - start)
            yield prediction
            number += 1
        if (text[position + 1 :] + file.read(_CHUNK)).strip():
            raise ValueError(f"{path}: goes on after its list of {number} predictions has ended.")


class ResultsChecker:
    """Tells predictions that belong to a ground truth from those that do not."""

    def __init__(self, ground_truth: Mapping):
        """Prepare.

        Args:
            ground_truth: from :func:`ovformer.data.vis_json.load_vis_json`.
        """
        self._lengths = {video["id"]: video["length"] for video in ground_truth["videos"]}
        self._categories = {category["id"] for category in ground_truth["categories"]}
        # Frames of one video may differ in size; then the true masks tell.
        self._sizes = {v["id"]: {(v["height"], v["width"])} for v in ground_truth["videos"]}
        for annotation in ground_truth.get("annotations") or ():
            sizes = {tuple(mask["size"]) for mask in annotation["segmentations"] if mask}
            self._sizes[annotation["video_id"]] |= sizes

    def check(self, video_id: int, entries: Sequence[dict]) -> None:
        """Check predictions of one video.

        Args:
            video_id: its id.
            entries: its predictions.

        Raises:
            ValueError: the video or a category is not in the ground truth, a score is no finite
                number, or the masks are not one compressed RLE (or ``None``) of the right size per
                frame.
        """
        if video_id not in self._lengths:
            raise ValueError(
                f"A prediction is for video {video_id!r}, which the ground truth does not have "
                f"({len(self._lengths)} videos, ids {min(self._lengths)} to {max(self._lengths)}). "
                "These are results of another data set or split."
            )
        place = f"A prediction for video {video_id}"
        length, sizes = self._lengths[video_id], set[tuple]()
        for entry in entries:
            tube, score, category_id = (entry[k] for k in ("segmentations", "score", "category_id"))
            if category_id not in self._categories:
                raise ValueError(
                    f"{place} has category_id {category_id!r}, which the ground truth does not "
                    f"have ({len(self._categories)} categories, ids {min(self._categories)} to "
                    f"{max(self._categories)}). These are results of another data set."
                )
            if not (isinstance(score, int | float) and math.isfinite(score)):
                raise ValueError(f"{place} has the score {score!r}; expected a finite number.")
            if not isinstance(tube, list) or len(tube) != length:
                found = len(tube) if isinstance(tube, list) else tube
                raise ValueError(
                    f"{place} has {found} segmentations, but the video has {length} frames. "
                    "Predictions need one per frame, in the order of its file_names."
                )
            try:
                sizes.update(tuple(mask["size"]) for mask in tube if mask is not None)
            except (KeyError, TypeError):
                raise ValueError(f"{place} has a mask that is not a compressed COCO RLE.") from None
        if not sizes <= self._sizes[video_id]:
            wrong, right = (sizes - self._sizes[video_id]).pop(), min(self._sizes[video_id])
            raise ValueError(
                f"{place} has a mask of size {list(wrong)} (height, width), but the video has "
                f"{right[0]} x {right[1]} pixels."
            )
        # A sample: a model that writes masks of another form or size does so everywhere.
        masks = (mask for entry in entries for mask in entry["segmentations"] if mask is not None)
        try:
            check_rle(next(masks, None))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{place} has a mask that is not a compressed COCO RLE: {error}"
            ) from error


def to_results(prediction: Mapping, category_ids: Sequence[int]) -> list[dict]:
    """Turn the prediction of a video model into entries of results.json.

    Args:
        prediction: ``video_id``, ``pred_scores``, ``pred_labels`` (contiguous) and
            ``segmentations`` (N lists of T COCO RLEs) of one video.
        category_ids: the data set's own id of each contiguous label.

    Returns:
        N entries.
    """
    return [
        {
            "video_id": prediction["video_id"],
            "score": float(score),
            "category_id": category_ids[label],
            "segmentations": [_json_rle(rle) for rle in tube],
        }
        for score, label, tube in zip(
            prediction["pred_scores"],
            prediction["pred_labels"],
            prediction["segmentations"],
            strict=True,
        )
    ]


class VisResultsWriter:
    """Keeps the results of each finished video on disk.

    Attributes:
        finished: ids of the videos whose results are there, by any process of an earlier run too.
    """

    def __init__(self, path: Path, rank: int = 0, resume: bool = False):
        """Open the part file of this process.

        Args:
            path: the results file that the parts will become.
            rank: of this process.
            resume: keep the videos that an earlier run finished; otherwise its parts are deleted by
                the first process (call it there first).
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        if not resume and rank == 0:
            remove_parts(path)
        self.finished = {video_id for part in _parts(path) for video_id, _ in _read_part(part)}
        part = path.with_name(f"{path.name}.part{rank}")
        if part.is_file():
            _drop_cut_line(part)
        self._file = part.open("ab")

    def add(self, video_id: int, results: list[dict]) -> None:
        """Write the results of a video, which may be none."""
        line = json.dumps([video_id, results]).encode()
        self._file.write(b"%08x %b\n" % (zlib.crc32(line), line))
        self._file.flush()
        os.fsync(self._file.fileno())  # else a power cut could take the videos of the last seconds
        self.finished.add(video_id)

    def close(self) -> None:
        """Close the part file. When all processes have, :func:`merge_results` makes the file."""
        self._file.close()


def merge_results(path: Path) -> None:
    """Merge the part files of all processes into results.json.

    Args:
        path: the results file. What was there before is replaced in one step.
    """
    seen: set[int] = set()
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        separator = "["
        for part in _parts(path):
            for video_id, results in _read_part(part):
                if video_id not in seen:  # samplers may give two processes the same video
                    seen.add(video_id)
                    for entry in results:
                        file.write(separator + json.dumps(entry))
                        separator = ",\n"
        file.write("]\n" if separator != "[" else "[]\n")


def remove_parts(path: Path) -> None:
    """Delete the part files of a results file: nothing is left to go on from."""
    for part in _parts(path):
        part.unlink()


def _json_rle(rle: Mapping) -> dict:
    counts = rle["counts"]
    return {
        "size": [int(side) for side in rle["size"]],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }


def _parts(path: Path) -> list[Path]:
    parts = path.parent.glob(f"{path.name}.part[0-9]*")
    return sorted(parts, key=lambda part: int(part.suffix.removeprefix(".part")))


def _read_part(part: Path) -> Iterator[tuple[int, list[dict]]]:
    with part.open("rb") as file:
        for number, line in enumerate(file, start=1):
            checksum, _, line = line.rstrip(b"\n").partition(b" ")
            if checksum != b"%08x" % zlib.crc32(line):
                logger.warning("%s: line %d is cut off or damaged and not used.", part, number)
                continue
            video_id, results = json.loads(line)
            yield video_id, results


def _drop_cut_line(part: Path) -> None:
    with part.open("r+b") as file:
        whole = sum(len(line) for line in file if line.endswith(b"\n"))
        file.truncate(whole)
