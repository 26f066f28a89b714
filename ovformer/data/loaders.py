"""Batches of images for training and evaluation, and the stream of samples of any training.

Training is the same stream of samples however many processes and workers read it: sample p is
image (or video) ``order[p]``, augmented with random numbers that depend on the seed and p only.
With B images per iteration, iteration i is made of the samples i*B to (i+1)*B - 1, dealt out to the
processes in turn. A run that is resumed goes on at its place in the stream.
"""

import itertools
import logging
import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ovformer.d2 import (
    CfgNode,
    DatasetFromList,
    InferenceSampler,
    MetadataCatalog,
    RepeatFactorTrainingSampler,
    TrainingSampler,
    comm,
)
from ovformer.data.clip_features import clip_key
from ovformer.data.dataset_spec import load_dataset
from ovformer.data.image_mapper import ImageMapper

# INPUT.DATASET_MAPPER_NAME
TRAIN_MAPPERS = {"coco_instance_lsj": ImageMapper}
TRAIN_SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler")

logger = logging.getLogger(__name__)


def build_train_loader(cfg: CfgNode, start_iteration: int = 0) -> DataLoader:
    """Return the endless loader of this process's part of the training batches.

    ``DATALOADER.ASPECT_RATIO_GROUPING`` needs no action: training images are of one size.

    Args:
        cfg: the whole config; ``DATASETS.TRAIN``, ``DATALOADER``, ``INPUT``, ``SEED`` and
            ``SOLVER.IMS_PER_BATCH`` are read. A negative seed is replaced by a random one, and then
            a resumed run draws a new order.
        start_iteration: number of iterations that were trained already.

    Returns:
        A loader of lists of ``IMS_PER_BATCH / processes`` elements, which
        :mod:`ovformer.data` describes.

    Raises:
        ValueError: a name in the config is not known, the batch can't be split among the processes,
            or the data sets do not fit together.
        FileNotFoundError: annotations, images or CLIP features are missing.
        KeyError: the CLIP features of some images are missing.
    """
    return stream_loader(cfg, _mapper_class(cfg)(cfg, is_train=True), start_iteration)


def stream_loader(cfg: CfgNode, mapper: Callable[[dict], dict], start_iteration: int) -> DataLoader:
    """Return the endless loader of ``DATASETS.TRAIN`` for a mapper of images or of videos.

    Args:
        cfg: see :func:`build_train_loader`.
        mapper: turns a dataset dict into a training sample; has ``clip_features``.
        start_iteration: number of iterations that were trained already.
    """
    batch_size = _batch_size_per_process(cfg)
    records = load_training_records(cfg)
    if mapper.clip_features is not None:
        mapper.clip_features.require(image_entries(records))
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    sampler = StreamSampler(_build_sampler(cfg, records, seed), skip=start_iteration * batch_size)
    return DataLoader(
        StreamDataset(records, mapper, seed),
        batch_size=batch_size,
        sampler=sampler,
        persistent_workers=cfg.DATALOADER.NUM_WORKERS > 0,
        **_common_options(cfg),
    )


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """Return a loader of this process's part of a test set, one image at a time.

    Args:
        cfg: the whole config.
        dataset_name: one of ``DATASETS.TEST``.

    Raises:
        ValueError: the data set is not known or empty.
        FileNotFoundError: annotations, images or CLIP features are missing.
        KeyError: the CLIP features of some images are missing.
    """
    mapper = ImageMapper(cfg, is_train=False)
    records = load_dataset(dataset_name, "DATASETS.TEST")
    check_images_exist(dataset_name, records)
    if mapper.clip_features is not None:
        mapper.clip_features.require(records)
    # Annotations are left behind: the evaluator reads its own, and they are most of the memory.
    records = [{k: v for k, v in record.items() if k != "annotations"} for record in records]
    return DataLoader(
        MappedDataset(records, mapper),
        batch_size=1,
        sampler=InferenceSampler(len(records)),
        **_common_options(cfg),
    )


def load_training_records(cfg: CfgNode) -> list[dict]:
    """Return the dataset dicts of all training sets.

    Images or videos that have nothing to learn are left out if
    ``DATALOADER.FILTER_EMPTY_ANNOTATIONS``.

    Raises:
        ValueError: a set is unknown, the sets have different classes, or nothing remains.
        FileNotFoundError: annotations or images are missing.
    """
    names = cfg.DATASETS.TRAIN
    if not names:
        raise ValueError("DATASETS.TRAIN is empty; name at least one data set to train on.")
    records = []
    for name in names:
        part = load_dataset(name, "DATASETS.TRAIN")
        check_images_exist(name, part)
        classes = [MetadataCatalog.get(n).get("thing_classes") for n in (names[0], name)]
        if classes[0] != classes[1]:
            raise ValueError(
                f"DATASETS.TRAIN: {names[0]!r} and {name!r} have different classes. Train on data "
                "sets with one category table."
            )
        records += part
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        before = len(records)
        records = [r for r in records if _has_objects(r)]
        logger.info("%d of %d images or videos have annotated objects", len(records), before)
        if not records:
            raise ValueError(f"DATASETS.TRAIN: nothing in {', '.join(names)} has an annotation.")
    return records


def image_entries(records: Iterable[dict]) -> Iterator[dict]:
    """Yield "file_name" and "clip_key" of each image of a data set: of videos, each frame.

    Args:
        records: dataset dicts. Of an image its own is yielded; of a frame also "video_id" and its
            number "frame".
    """
    for record in records:
        if "file_names" not in record:
            yield record
            continue
        keys = record.get("clip_keys") or map(clip_key, record["file_names"])
        for t, (file_name, key) in enumerate(zip(record["file_names"], keys, strict=True)):
            yield {
                "file_name": file_name,
                "clip_key": key,
                "video_id": record["video_id"],
                "frame": t,
            }


def check_images_exist(name: str, records: Iterable[dict]) -> None:
    """Check that all images or frames of a data set are there, by listing each folder once.

    Args:
        name: the data set, for the error message.
        records: its dataset dicts; those whose file is a URL are not checked.

    Raises:
        FileNotFoundError: images are missing.
    """
    folders: dict[str, set[str]] = {}
    missing = []
    count = 0
    for entry in image_entries(records):
        count += 1
        folder, file_name = os.path.split(entry["file_name"])
        if "://" in folder:
            continue
        if folder not in folders:
            folders[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if file_name not in folders[folder]:
            missing.append(entry)
    if missing:
        first = missing[0]["file_name"]
        if "frame" in missing[0]:
            first += " (frame {frame} of video {video_id})".format(**missing[0])
        raise FileNotFoundError(
            f"{name}: {len(missing)} of {count} images not found, the first is {first}. "
            "datasets/README.md says how the folders are laid out."
        )


class StreamSampler(Sampler):
    """Numbers the indices of a training sampler by their place in the stream of all processes."""

    def __init__(self, sampler: Sampler, skip: int = 0):
        """Wrap a sampler.

        Args:
            sampler: endless sampler of this process's indices.
            skip: how many of them to leave out at the start.
        """
        self.sampler = sampler
        self.skip = skip
        self.rank = comm.get_rank()
        self.world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield pairs of place in the stream and index of the image."""
        places = itertools.count(self.rank, self.world_size)
        return itertools.islice(zip(places, self.sampler, strict=False), self.skip, None)


class MappedDataset(Dataset):
    """Dataset dicts, kept in one block of bytes that worker processes share, and their mapper."""

    def __init__(self, records: list[dict], mapper: Callable[[dict], dict]):
        """Take over dataset dicts.

        Args:
            records: dataset dicts.
            mapper: turns one of them into an element of the batch.
        """
        self.records = DatasetFromList(records, copy=False)
        self.mapper = mapper

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        """Return an element of the batch. Any error names the image or video."""
        record = self.records[index]
        try:
            return self.mapper(record)
        except Exception as error:
            if any(entry["file_name"] in str(error) for entry in image_entries([record])):
                raise
            name = f"Video {record.get('video_id')}"
            if "file_name" in record:
                name = f"{record['file_name']} (image id {record['image_id']})"
            raise RuntimeError(f"{name}: {type(error).__name__}: {error}") from error


class StreamDataset(MappedDataset):
    """The same for training: what is random depends on the place in the stream alone."""

    def __init__(self, records: list[dict], mapper: Callable[[dict], dict], seed: int):
        """Take over dataset dicts.

        Args:
            records: dataset dicts.
            mapper: turns one of them into an element of the batch.
            seed: seed of the run.
        """
        super().__init__(records, mapper)
        self.seed = seed

    def __getitem__(self, place_and_index: tuple[int, int]) -> dict:
        """Return the element of the batch for a pair that :class:`StreamSampler` yields."""
        place, index = place_and_index
        with _random_numbers_of(self.seed, place):
            return super().__getitem__(index)


@contextmanager
def _random_numbers_of(seed: int, place: int) -> Iterator[None]:
    """Seed the generators that augmentations use, and put them back afterwards."""
    state = random.getstate(), np.random.get_state()
    numbers = np.random.SeedSequence([seed, place]).generate_state(2)
    random.seed(int(numbers[0]))
    np.random.seed(numbers[1])
    try:
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])


def _batch_size_per_process(cfg: CfgNode) -> int:
    total, world_size = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if total <= 0 or total % world_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {total}; it has to be a positive multiple of the number of "
            f"processes, {world_size}."
        )
    return total // world_size


def _mapper_class(cfg: CfgNode) -> type:
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name not in TRAIN_MAPPERS:
        raise ValueError(
            f"INPUT.DATASET_MAPPER_NAME: unknown mapper {name!r}. "
            f"Known: {', '.join(TRAIN_MAPPERS)}."
        )
    return TRAIN_MAPPERS[name]


def _annotations(record: dict) -> list[dict]:
    """Return all annotations of an image, or of all frames of a video."""
    annotations = record.get("annotations", [])
    return list(itertools.chain(*annotations)) if "file_names" in record else annotations


def _has_objects(record: dict) -> bool:
    return any(not annotation.get("iscrowd", 0) for annotation in _annotations(record))


def _build_sampler(cfg: CfgNode, records: list[dict], seed: int) -> Sampler:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return TrainingSampler(len(records), seed=seed)
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            [{"annotations": _annotations(record)} for record in records],
            cfg.DATALOADER.REPEAT_THRESHOLD,
            sqrt=cfg.DATALOADER.REPEAT_SQRT,
        )
        return RepeatFactorTrainingSampler(factors, seed=seed)
    raise ValueError(
        f"DATALOADER.SAMPLER_TRAIN: unknown sampler {name!r}. Known: {', '.join(TRAIN_SAMPLERS)}."
    )


def _common_options(cfg: CfgNode) -> dict:
    return {
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "collate_fn": _as_list,
        "worker_init_fn": _init_worker,
        # Of its own: without one each new iterator takes a number of the model's generator.
        "generator": torch.Generator(),
        "pin_memory": cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available(),
    }


def _as_list(batch: list[dict]) -> list[dict]:
    return batch


def _init_worker(_: int) -> None:
    # Workers are the parallelism; OpenCV's own threads would compete with the other workers.
    cv2.setNumThreads(0)
