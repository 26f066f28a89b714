"""Write results.json of video instance segmentation (see :mod:`.results_reader`) as videos finish.

Each process appends one line per video to a part file, and the parts are merged at the end. A run
that crashed continues after its last finished video. Each line begins with the checksum of its
rest: a line that is cut off or damaged is skipped, and its video is predicted again.
"""

import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ovformer.files import replacing

logger = logging.getLogger(__name__)


def to_results(prediction: Mapping, category_ids: Sequence[int]) -> list[dict]:
    """Turn the prediction of a video model into entries of results.json.

    Args:
        prediction: ``video_id``, ``pred_scores``, ``pred_labels`` (contiguous) and
            ``segmentations`` (N lists of T COCO RLEs) of one video. ``pred_tracks`` (N,) may be
            missing; without it no entry has a "track_id".
        category_ids: the data set's own id of each contiguous label.

    Returns:
        N entries.
    """
    entries = [
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
    # A track is listed once under each of its names; its number tells that they are one.
    for entry, track in zip(entries, prediction.get("pred_tracks", ()), strict=False):
        entry["track_id"] = track
    return entries


class ResultsWriter:
    """Keeps the results of each finished video on disk.

    Attributes:
        finished: ids of the videos whose results are on disk, written by any process or earlier
            run.

    Args:
        path: the results file that the parts will become.
        rank: of this process.
        resume: keep the videos that an earlier run finished. Otherwise the process of rank 0
            deletes the parts, so it has to make its writer before the others.
    """

    def __init__(self, path: Path, rank: int = 0, resume: bool = False):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not resume and rank == 0:
            remove_parts(path)
        self.finished = {video_id for part in _list_parts(path) for video_id, _ in _read_part(part)}
        part = path.with_name(f"{path.name}.part{rank}")
        if part.is_file():
            _drop_cut_line(part)
        self._file = part.open("ab")

    def add(self, video_id: int, results: list[dict]) -> None:
        """Write the results of a video; the list may be empty."""
        line = json.dumps([video_id, results]).encode()
        self._file.write(b"%08x %b\n" % (zlib.crc32(line), line))
        self._file.flush()
        os.fsync(self._file.fileno())  # else a power cut could take the videos of the last seconds
        self.finished.add(video_id)

    def close(self) -> None:
        """Close the part file. Then :func:`merge_results` merges those of all processes."""
        self._file.close()


def merge_results(path: Path) -> None:
    """Merge the part files of all processes into results.json.

    Args:
        path: the results file. An older one is replaced in one step.
    """
    seen: set[int] = set()
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        separator = "["
        for part in _list_parts(path):
            for video_id, results in _read_part(part):
                if video_id in seen:
                    continue  # samplers may give two processes the same video
                seen.add(video_id)
                for entry in results:
                    file.write(separator + json.dumps(entry))
                    separator = ",\n"
        file.write("]\n" if separator != "[" else "[]\n")


def remove_parts(path: Path) -> None:
    """Delete the part files of a results file: there is nothing to resume any more."""
    for part in _list_parts(path):
        part.unlink()


def _json_rle(rle: Mapping) -> dict:
    counts = rle["counts"]
    return {
        "size": [int(side) for side in rle["size"]],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }


def _list_parts(path: Path) -> list[Path]:
    parts = path.parent.glob(f"{path.name}.part[0-9]*")
    return sorted(parts, key=lambda part: int(part.suffix.removeprefix(".part")))


def _read_part(part: Path) -> Iterator[tuple[int, list[dict]]]:
    with part.open("rb") as file:
        for number, line in enumerate(file, start=1):
            is_whole = line.endswith(b"\n")
            checksum, _, line = line.rstrip(b"\n").partition(b" ")
            if not is_whole or checksum != b"%08x" % zlib.crc32(line):
                logger.warning("%s: line %d is cut off or damaged; it is skipped.", part, number)
                continue
            try:
                video_id, results = json.loads(line)
            except (RecursionError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{part}, line {number}: expected [video id, results]. OVFormer did not write "
                    "this line: remove the file, or evaluate without --resume."
                ) from error
            yield video_id, results


def _drop_cut_line(part: Path) -> None:
    """Cut off a last line without line break, so that the next one starts on a line of its own."""
    with part.open("r+b") as file:
        whole = sum(len(line) for line in file if line.endswith(b"\n"))
        file.truncate(whole)
