"""LVIS average precision of instance masks, and the same for groups of classes.

The annotation of LVIS is federated (Gupta et al., 2019): for each image only some categories are
known to occur or not to occur in it. A prediction counts if its category is annotated in the image
or listed as absent from it; an unmatched prediction is ignored if its category was not annotated
exhaustively; and only the 300 predictions of an image with the highest scores count.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ovformer.d2 import DatasetEvaluator, MetadataCatalog, comm
from ovformer.data.files.json_file import write_json
from ovformer.ops.mask_rle import encode_masks

MAX_DETECTIONS_PER_IMAGE = 300
FREQUENCIES = ("r", "c", "f")

logger = logging.getLogger(__name__)


class LvisEvaluator(DatasetEvaluator):
    """Collects predicted instances, writes them to ``results.json`` and scores them.

    Args:
        dataset_name: a data set whose annotations are in LVIS format.
        output_folder: where ``results.json`` and ``scores.json`` are written.
    """

    def __init__(self, dataset_name: str, output_folder: Path) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self.output_folder = Path(output_folder)
        self._annotation_file = Path(metadata.json_file)
        ids = metadata.thing_dataset_id_to_contiguous_id
        self._category_ids = {index: category_id for category_id, index in ids.items()}
        self._groups = {
            group: [self._category_ids[index] for index in members]
            for group, members in group_classes(metadata).items()
        }
        self._predictions: list[dict] = []

    def reset(self) -> None:
        """Forget all predictions."""
        self._predictions = []

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> None:
        """Collect the predictions for a batch; :mod:`ovformer.data` describes both."""
        for record, output in zip(inputs, outputs, strict=True):
            instances = output["instances"]
            for label, score, rle in zip(
                instances.pred_classes.tolist(),
                instances.scores.tolist(),
                encode_masks(instances.pred_masks),
                strict=True,
            ):
                self._predictions.append(
                    {
                        "image_id": record["image_id"],
                        "category_id": self._category_ids[label],
                        "score": score,
                        "segmentation": rle,
                    }
                )

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Write and score the predictions of all processes.

        Returns:
            ``{"segm": scores}`` of :func:`score_lvis`; {} where the scorer is not installed or the
            data set has no annotations; None in all processes except the main one.
        """
        # Every process has its own part of the images; gather waits for all of them, so it comes
        # before the main process goes on alone.
        parts = comm.gather(self._predictions)
        if not comm.is_main_process():
            return None
        predictions = [prediction for part in parts for prediction in part]
        # Before the scores: a failure there must not lose the predictions.
        path = self.output_folder / "results.json"
        write_json(path, predictions)
        logger.info("%d predictions written to %s", len(predictions), path)
        try:
            scores, per_category = score_lvis(self._annotation_file, predictions, self._groups)
        except ModuleNotFoundError as error:
            # Only the optional scorer may be absent; any other missing module is a broken install.
            if error.name != "faster_coco_eval":
                raise
            logger.warning(
                "The predictions are not scored, because faster-coco-eval is not installed. "
                "Install it with: pip install 'ovformer[eval]' (in a checkout: pip install -e "
                "'.[eval]'), and run the evaluation again."
            )
            return {}
        if not scores:
            logger.warning("%s has no annotations: nothing to score.", self._annotation_file)
            return {}
        write_json(
            self.output_folder / "scores.json",
            {"segm": _replace_nan(scores), "categories": list(map(_replace_nan, per_category))},
        )
        return {"segm": scores}


def group_classes(metadata: object) -> dict[str, list[int]]:
    """Return the groups of classes with scores of their own, as {group: contiguous indices}.

    Args:
        metadata: of a data set; ``category_info`` has the frequency groups r, c and f, and
            ``class_groups`` the others.
    """
    groups: dict[str, list[int]] = {frequency: [] for frequency in FREQUENCIES}
    for index, category in enumerate(metadata.get("category_info", [])):
        if category.get("frequency") in groups:
            groups[category["frequency"]].append(index)
    return groups | dict(metadata.get("class_groups", {}))


def score_lvis(
    annotation_file: Path, predictions: Sequence[Mapping], groups: Mapping[str, Sequence[int]]
) -> tuple[dict[str, float], list[dict]]:
    """Compute LVIS's average precision of masks.

    Args:
        annotation_file: in LVIS format, or in COCO's: an image without "neg_category_ids" counts as
            searched for all categories.
        predictions: dicts with image_id, category_id (of the file), score and segmentation (RLE).
        groups: name -> category ids. The group "novel" adds AP_novel and AP50_novel; the frequency
            groups r, c and f add APr, APc and APf, as LVIS names them.

    Returns:
        Scores in percent, NaN where there is nothing to find: AP, AP50, AP75, APs, APm, APl (by
        mask area, limits 32 and 96 squared), APr, APc, APf, and those of the other groups; and for
        each category ``{"id", "name", "AP", "AP50"}``. Both are empty where the file has no
        annotations.

    Raises:
        ModuleNotFoundError: faster-coco-eval is not installed.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    truth = COCO(str(annotation_file))
    if not truth.anns:
        return {}, []
    for category in truth.dataset["categories"]:
        category.setdefault("frequency", "f")  # required, but its groups are not used here
    for image in truth.dataset["images"]:
        # COCO's format has no such lists: all images were searched for all categories.
        image.setdefault("neg_category_ids", list(truth.cats))
        image.setdefault("not_exhaustive_category_ids", [])
    detections = truth.loadRes(keep_best_per_image(predictions, MAX_DETECTIONS_PER_IMAGE))
    scorer = COCOeval_faster(
        truth, detections, "segm", lvis_style=True, print_function=lambda _: None
    )
    scorer.params.maxDets = [MAX_DETECTIONS_PER_IMAGE]
    ids = sorted(truth.cats)
    # One category at a time, over the images in which it was searched: all pairs of image and
    # category together would need 28 GB on LVIS val.
    images = _find_images_of_categories(truth.dataset)
    # IoU thresholds .50 to .95, recall thresholds, categories, areas (all, small, medium, large)
    precision = np.full((10, 101, len(ids), 4), -1.0)
    for column, category_id in enumerate(ids):
        # A category without objects keeps -1, so that no mean counts it.
        if truth.catToImgs[category_id]:
            scorer.params.catIds = [category_id]
            scorer.params.imgIds = images[category_id]
            scorer.evaluate()
            precision[:, :, column] = scorer.eval["precision"][:, :, 0, :, 0]

    scores = {
        "AP": _mean(precision[:, :, :, 0]),
        "AP50": _mean(precision[0, :, :, 0]),
        "AP75": _mean(precision[5, :, :, 0]),
        "APs": _mean(precision[:, :, :, 1]),
        "APm": _mean(precision[:, :, :, 2]),
        "APl": _mean(precision[:, :, :, 3]),
    }
    for group, members in groups.items():
        # A group lists all classes of the vocabulary; the file may hold fewer categories.
        columns = [ids.index(category_id) for category_id in members if category_id in truth.cats]
        if group in FREQUENCIES:
            scores[f"AP{group}"] = _mean(precision[:, :, columns, 0])
        else:
            scores[f"AP_{group}"] = _mean(precision[:, :, columns, 0])
            scores[f"AP50_{group}"] = _mean(precision[0, :, columns, 0])
    per_category = [
        {
            "id": int(category_id),
            "name": truth.cats[category_id]["name"],
            "AP": _mean(precision[:, :, column, 0]),
            "AP50": _mean(precision[0, :, column, 0]),
        }
        for column, category_id in enumerate(ids)
    ]
    return scores, per_category


def _find_images_of_categories(content: Mapping) -> dict[int, list[int]]:
    """Return {category id: images in which it is annotated or listed as absent}."""
    images = defaultdict(set)
    for image in content["images"]:
        for category_id in image.get("neg_category_ids", ()):
            images[category_id].add(image["id"])
    for annotation in content["annotations"]:
        images[annotation["category_id"]].add(annotation["image_id"])
    return {category_id: sorted(of_category) for category_id, of_category in images.items()}


def keep_best_per_image(predictions: Sequence[Mapping], limit: int) -> list[dict]:
    """Return copies of the ``limit`` predictions of each image that have the highest scores."""
    by_image = defaultdict(list)
    for prediction in predictions:
        by_image[prediction["image_id"]].append(prediction)
    best = []
    for of_image in by_image.values():
        best += sorted(of_image, key=lambda prediction: -prediction["score"])[:limit]
    # Without a box, the scorer takes the area of the mask.
    return [{k: v for k, v in prediction.items() if k != "bbox"} for prediction in best]


def _mean(precision: np.ndarray) -> float:
    """Return the mean of the defined values in percent; the scorer marks others by -1."""
    defined = precision[precision > -1]
    return float(defined.mean() * 100) if defined.size else float("nan")


def _replace_nan(values: Mapping) -> dict:
    """Replace NaN, which JSON does not know, by None."""
    return {key: None if value != value else value for key, value in values.items()}
