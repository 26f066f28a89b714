"""Loads the data sets of a training with the classes of the first one, and orders them."""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch.utils.data import Sampler

from ovformer.d2 import CfgNode, MetadataCatalog, RepeatFactorTrainingSampler, TrainingSampler, comm
from ovformer.data.catalog.dataset_spec import load_dataset
from ovformer.data.files.image_files import check_images_exist, read_missing_limit

TRAIN_SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler")

logger = logging.getLogger(__name__)


def load_training_sets(cfg: CfgNode) -> list[list[dict]]:
    """Return the dataset dicts of each training set.

    A set with other classes than the first one gets the classes of the first one, by name. Images
    or videos without annotated objects are skipped if ``DATALOADER.FILTER_EMPTY_ANNOTATIONS``.

    Args:
        cfg: ``DATASETS.TRAIN`` and ``DATALOADER`` are read.

    Raises:
        ValueError: a set is unknown, has no class in common with the first one, or nothing remains.
        FileNotFoundError: annotations or images are missing.
    """
    names = cfg.DATASETS.TRAIN
    if not names:
        raise ValueError("DATASETS.TRAIN is empty; name at least one data set to train on.")
    sets = []
    for name in names:
        records = load_dataset(name, "DATASETS.TRAIN")
        check_images_exist(name, records, read_missing_limit(cfg))
        if _get_classes(name) != _get_classes(names[0]):
            records = _relabel(names[0], name, records)
        sets.append(records)
    # After relabelling: a record may have lost its last annotation there.
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        before = sum(map(len, sets))
        sets = [[r for r in records if _has_objects(r)] for records in sets]
        logger.info("%d of %d images or videos have annotated objects", sum(map(len, sets)), before)
        for name, records in zip(names, sets, strict=True):
            if not records:
                raise ValueError(f"DATASETS.TRAIN: nothing in {name} has an annotation.")
    return sets


def build_sampler(cfg: CfgNode, sets: Sequence[Sequence[dict]], seed: int) -> Sampler:
    """Return the endless sampler of this process's part of the training.

    Args:
        cfg: ``DATALOADER`` and ``DATASETS.DATASET_RATIO`` are read.
        sets: records of each training set; indices count through all of them.
        seed: the same in all processes.

    Raises:
        ValueError: the sampler is unknown, or the ratios don't fit the training sets.
    """
    ratios = read_dataset_ratios(cfg)
    if not ratios:
        return _build_set_sampler(cfg, list(itertools.chain(*sets)), seed)
    # Another seed for each set: sets of one size must not be shuffled alike.
    samplers = [_build_set_sampler(cfg, records, seed + n) for n, records in enumerate(sets)]
    return RatioSampler(samplers, [len(records) for records in sets], ratios, seed)


def read_dataset_ratios(cfg: CfgNode) -> list[float]:
    """Return ``DATASETS.DATASET_RATIO``, or raise ValueError if it doesn't fit the sets."""
    ratios, names = list(cfg.DATASETS.DATASET_RATIO), cfg.DATASETS.TRAIN
    is_valid = all(isinstance(ratio, int | float) and ratio > 0 for ratio in ratios)
    if ratios and not (is_valid and len(ratios) == len(names)):
        raise ValueError(
            f"DATASETS.DATASET_RATIO: expected a number above 0 for each of the {len(names)} sets "
            f"of DATASETS.TRAIN, or none at all, got {ratios}."
        )
    return ratios


class RatioSampler(Sampler):
    """Draws indices of several sets, each with a share of the stream.

    The next set and its next record depend only on the seed and the place in the stream of all
    processes; a process takes every world-size-th index.

    Args:
        samplers: detectron2's endless sampler of each set.
        sizes: number of records of each set.
        ratios: the shares, up to a factor.
        seed: the same in all processes.
    """

    def __init__(
        self, samplers: Sequence[Sampler], sizes: Sequence[int], ratios: Sequence[float], seed: int
    ):
        self._samplers = samplers
        self._offsets = [0, *itertools.accumulate(sizes)]
        self._ratios = torch.tensor(ratios, dtype=torch.float64)
        self._seed = seed
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        """Yield indices into the records of all sets, one set after the other."""
        return itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)

    def _infinite_indices(self) -> Iterator[int]:
        # The public iterators of detectron2's samplers yield this process's part only.
        streams = [sampler._infinite_indices() for sampler in self._samplers]
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            # In blocks, because a call for each index is slow.
            draws = torch.multinomial(self._ratios, 1024, replacement=True, generator=generator)
            for number in draws.tolist():
                yield self._offsets[number] + int(next(streams[number]))


def collect_annotations(record: Mapping) -> list[dict]:
    """Return all annotations of an image, or of all frames of a video."""
    annotations = record.get("annotations", [])
    return list(itertools.chain(*annotations)) if "file_names" in record else annotations


def _has_objects(record: Mapping) -> bool:
    return any(not annotation.get("iscrowd", 0) for annotation in collect_annotations(record))


def _get_classes(name: str) -> list[str] | None:
    return MetadataCatalog.get(name).get("thing_classes")


def _relabel(first: str, name: str, records: list[dict]) -> list[dict]:
    """Give the records of a set the classes of the first set.

    Annotations are dropped if the first set lacks their class, or holds it as a novel class, which
    training must not see. Records that lose all their annotations are dropped as well.

    Raises:
        ValueError: no annotation is left.
    """
    if not _get_classes(first) or not _get_classes(name):
        unnamed = name if _get_classes(first) else first
        raise ValueError(
            f"DATASETS.TRAIN: {first!r} and {name!r} have different classes, and {unnamed!r} has "
            "no class names to compare. Set thing_classes in its metadata."
        )
    novel = set(MetadataCatalog.get(first).get("class_groups", {}).get("novel", ()))
    # Names are compared, since data sets number the same classes differently.
    ours = map(_normalise, _get_classes(first))
    known = {label: i for i, label in enumerate(ours) if i not in novel}
    theirs = map(_normalise, _get_classes(name))
    labels = {i: known[label] for i, label in enumerate(theirs) if label in known}

    def relabel(annotations: list[dict]) -> list[dict]:
        return [
            {**annotation, "category_id": labels[annotation["category_id"]]}
            for annotation in annotations
            if annotation["category_id"] in labels
        ]

    kept, total, left = [], 0, 0
    for record in records:
        before = len(collect_annotations(record))
        is_video = "file_names" in record
        annotations = record.get("annotations", [])
        annotations = list(map(relabel, annotations)) if is_video else relabel(annotations)
        record = {**record, "annotations": annotations}
        after = len(collect_annotations(record))
        total, left = total + before, left + after
        # A record without annotations is a negative example; one that lost them is not.
        if after or not before:
            kept.append(record)
    logger.info(
        "%s: %d of its %d classes are trained classes of %s; of %d annotations %d are kept, of %d "
        "images or videos %d",
        name,
        len(labels),
        len(_get_classes(name)),
        first,
        total,
        left,
        len(records),
        len(kept),
    )
    if not left:
        raise ValueError(
            f"DATASETS.TRAIN: no annotation of {name!r} is of a class that {first!r}, the first "
            "set, has and may learn. Name the set with the model's classes first."
        )
    return kept


def _normalise(label: str) -> str:
    return label.casefold().replace("_", " ").strip()


def _build_set_sampler(cfg: CfgNode, records: Sequence[Mapping], seed: int) -> Sampler:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return TrainingSampler(len(records), seed=seed)
    if name == "RepeatFactorTrainingSampler":
        # A video counts as one image with the annotations of all its frames; the factors depend on
        # which categories it has, not on how often.
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            [{"annotations": collect_annotations(record)} for record in records],
            cfg.DATALOADER.REPEAT_THRESHOLD,
            sqrt=cfg.DATALOADER.REPEAT_SQRT,
        )
        return RepeatFactorTrainingSampler(factors, seed=seed)
    raise ValueError(
        f"DATALOADER.SAMPLER_TRAIN: unknown sampler {name!r}. Known: {', '.join(TRAIN_SAMPLERS)}."
    )
