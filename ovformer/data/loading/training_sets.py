"""The data sets of a training: their records with the classes of the first set, and their order."""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch.utils.data import Sampler

from ovformer.d2 import (
    CfgNode,
    MetadataCatalog,
    RepeatFactorTrainingSampler,
    TrainingSampler,
    comm,
)
from ovformer.data.catalog.dataset_spec import load_dataset
from ovformer.data.files.image_files import check_images_exist, read_missing_limit

TRAIN_SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler")

logger = logging.getLogger(__name__)


def load_training_sets(cfg: CfgNode) -> list[list[dict]]:
    """Return the dataset dicts of each training set.

    A set with other classes than the first one gets the classes of the first one, by name. Images
    or videos that have nothing to learn are left out if ``DATALOADER.FILTER_EMPTY_ANNOTATIONS``.

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
        if _classes(name) != _classes(names[0]):
            records = _with_classes_of(names[0], name, records)
        sets.append(records)
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
        ValueError: the sampler is not known, or the ratios don't fit the training sets.
    """
    ratios = read_dataset_ratios(cfg)
    if not ratios:
        return _sampler(cfg, list(itertools.chain(*sets)), seed)
    samplers = [_sampler(cfg, records, seed + n) for n, records in enumerate(sets)]
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
    """Indices of several sets, of which each has a share of the stream.

    Which set is next, and which of its records, depends on the seed and the place in the stream of
    all processes only; a process takes every world-size-th index.
    """

    def __init__(
        self, samplers: Sequence[Sampler], sizes: Sequence[int], ratios: Sequence[float], seed: int
    ):
        """Combine samplers.

        Args:
            samplers: of each set, detectron2's endless ones.
            sizes: number of records of each set.
            ratios: the shares, up to a factor.
            seed: the same in all processes.
        """
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
        # Of all processes together, which the public iterators of detectron2's samplers cut up.
        streams = [sampler._infinite_indices() for sampler in self._samplers]
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            draws = torch.multinomial(self._ratios, 1024, replacement=True, generator=generator)
            for number in draws.tolist():
                yield self._offsets[number] + int(next(streams[number]))


def collect_annotations(record: Mapping) -> list[dict]:
    """Return all annotations of an image, or of all frames of a video."""
    annotations = record.get("annotations", [])
    return list(itertools.chain(*annotations)) if "file_names" in record else annotations


def _has_objects(record: Mapping) -> bool:
    return any(not annotation.get("iscrowd", 0) for annotation in collect_annotations(record))


def _classes(name: str) -> list[str] | None:
    return MetadataCatalog.get(name).get("thing_classes")


def _with_classes_of(first: str, name: str, records: list[dict]) -> list[dict]:
    """Return the records of a set with the classes of the first one.

    Annotations of classes that the first set does not have, or has as novel ones, which training
    must not see, are dropped, and records that thereby lose all they had.

    Raises:
        ValueError: nothing is left.
    """
    if not _classes(first) or not _classes(name):
        unnamed = name if _classes(first) else first
        raise ValueError(
            f"DATASETS.TRAIN: {first!r} and {name!r} have different classes, and {unnamed!r} has "
            "no class names to compare. Set thing_classes in its metadata."
        )
    novel = set(MetadataCatalog.get(first).get("class_groups", {}).get("novel", ()))
    known = {_plain(label): i for i, label in enumerate(_classes(first)) if i not in novel}
    labels = {i: known[_plain(n)] for i, n in enumerate(_classes(name)) if _plain(n) in known}

    def relabelled(annotations: list[dict]) -> list[dict]:
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
        annotations = list(map(relabelled, annotations)) if is_video else relabelled(annotations)
        record = {**record, "annotations": annotations}
        after = len(collect_annotations(record))
        total, left = total + before, left + after
        if after or not before:
            kept.append(record)
    logger.info(
        "%s: %d of its %d classes are trained classes of %s; of %d annotations %d are kept, of %d "
        "images or videos %d",
        name,
        len(labels),
        len(_classes(name)),
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


def _plain(label: str) -> str:
    return label.casefold().replace("_", " ").strip()


def _sampler(cfg: CfgNode, records: Sequence[Mapping], seed: int) -> Sampler:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return TrainingSampler(len(records), seed=seed)
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            [{"annotations": collect_annotations(record)} for record in records],
            cfg.DATALOADER.REPEAT_THRESHOLD,
            sqrt=cfg.DATALOADER.REPEAT_SQRT,
        )
        return RepeatFactorTrainingSampler(factors, seed=seed)
    raise ValueError(
        f"DATALOADER.SAMPLER_TRAIN: unknown sampler {name!r}. Known: {', '.join(TRAIN_SAMPLERS)}."
    )
