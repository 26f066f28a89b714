"""Evaluation on a data set of videos: keeps finished videos, writes and scores results.json."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from ovformer.d2 import DatasetEvaluator, MetadataCatalog, comm
from ovformer.data.files.json_file import name_file_in_errors
from ovformer.data.files.vis_json import group_categories, load_vis_json
from ovformer.evaluation.results_reader import read_results
from ovformer.evaluation.results_writer import (
    ResultsWriter,
    merge_results,
    remove_parts,
    to_results,
)
from ovformer.evaluation.video_metric import VideoMetric
from ovformer.evaluation.video_scores import ROWS, VideoScores

logger = logging.getLogger(__name__)


class VideoEvaluator(DatasetEvaluator):
    """Writes the predictions of each video as soon as it is finished, and scores them at the end.

    Attributes:
        finished: ids of the videos that need not be run again, the same in all processes.

    Args:
        dataset_name: a data set whose annotations are in YouTube-VIS format.
        output_folder: where ``results.json``, ``scores.json`` and ``scores.csv`` are written.
        resume: keep the videos that an interrupted evaluation finished.
    """

    def __init__(self, dataset_name: str, output_folder: Path, resume: bool = False) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self._name = dataset_name
        self._annotation_file = Path(metadata.json_file)
        contiguous = metadata.thing_dataset_id_to_contiguous_id
        self._category_ids = sorted(contiguous, key=contiguous.get)
        # Only a DatasetSpec has groups of classes; users may register data sets without one.
        self._groups = getattr(metadata.get("spec"), "groups", {})
        self._categories = metadata.get("category_info", [])
        self._results = Path(output_folder) / "results.json"
        rank = comm.get_rank()
        if rank == 0:
            self._writer = ResultsWriter(self._results, rank, resume)
        comm.synchronize()  # the first process has deleted the parts that are not kept
        if rank != 0:
            self._writer = ResultsWriter(self._results, rank, resume)
        self.finished = frozenset(self._writer.finished)
        comm.synchronize()  # all processes have read the parts before one writes to them
        if self.finished:
            logger.info(
                "%s: the predictions of %d videos are kept. With other weights, evaluate without "
                "--resume",
                dataset_name,
                len(self.finished),
            )

    def reset(self) -> None:
        """Do nothing: finished videos stay finished."""

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> None:
        """Write the predictions for a batch; :mod:`ovformer.data` describes both."""
        for record, output in zip(inputs, outputs, strict=True):
            self._writer.add(record["video_id"], to_results(output, self._category_ids))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Merge the predictions of all processes into ``results.json`` and score them.

        Returns:
            ``{"segm": scores}`` with the rows of the table for all classes ("AP") and for each
            group ("AP_novel") in percent, NaN where there is nothing to find; {} where the
            annotation file has no labels; None in all processes except the main one.
        """
        self._writer.close()
        comm.synchronize()
        if not comm.is_main_process():
            return None
        merge_results(self._results)
        logger.info("Predictions written to %s", self._results)
        scores = self._score()
        remove_parts(self._results)  # after a crash before this line, --resume only scores again
        return scores

    def _score(self) -> dict[str, dict[str, float]]:
        """Score ``results.json``, if the annotation file has labels."""
        ground_truth = load_vis_json(self._annotation_file)
        if not ground_truth.get("annotations"):
            logger.info(
                "%s: %s has no annotations, so nothing is scored. Where a server has them, pack "
                "the predictions for it with: python tools/ytvis_json.py --results %s --dataset %s",
                self._name,
                self._annotation_file,
                self._results,
                self._name,
            )
            return {}
        groups = group_categories(ground_truth["categories"], self._groups, self._categories)
        metric = VideoMetric(ground_truth, groups)
        with name_file_in_errors(self._results):
            metric.update(read_results(self._results))
        scores = metric.compute()
        logger.info("%s:\n%s", self._name, scores.table())
        scores.write(
            self._results.with_name("scores"),
            dataset=self._name,
            results=str(self._results),
            ground_truth=str(self._annotation_file),
        )
        return {"segm": to_percent(scores)}


def to_percent(scores: VideoScores) -> dict[str, float]:
    """Return the rows of a table in percent by name: "AP", and for groups "AP_novel".

    A row is NaN where the class or size has no ground truth.
    """
    values = {}
    for group in ("all", *scores.groups):
        suffix = "" if group == "all" else f"_{group}"
        for row, value in zip(ROWS, scores.group(group).tolist(), strict=True):
            values[row.name + suffix] = 100 * value if value >= 0 else float("nan")
    return values
