"""Batches of images for training and evaluation, and the stream of samples of any training.

Training is the same stream of samples however many processes and workers read it: sample p is
image (or video) ``order[p]``, augmented with random numbers that depend on the seed and p only.
With B images per iteration, iteration i takes the samples i*B to (i+1)*B - 1, which the processes
take in turn. A run that is resumed continues at its place in the stream.
"""

import bisect
import itertools
import logging
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ovformer.d2 import CfgNode, DatasetFromList, InferenceSampler, comm
from ovformer.data.catalog.dataset_spec import load_dataset
from ovformer.data.files.image_files import check_images_exist, iterate_images, read_missing_limit
from ovformer.data.loading.training_sets import build_sampler, load_training_sets
from ovformer.data.samples.broken_samples import MOST_TRIES, SampleError
from ovformer.data.samples.image_mapper import ImageMapper

# INPUT.DATASET_MAPPER_NAME
TRAIN_MAPPERS = {"coco_instance_lsj": ImageMapper}

logger = logging.getLogger(__name__)


def build_train_loader(cfg: CfgNode, start_iteration: int = 0) -> DataLoader:
    """Return the endless loader of this process's part of the training batches.

    ``DATALOADER.ASPECT_RATIO_GROUPING`` has no effect: training images have one size.

    Args:
        cfg: the whole config; ``DATASETS.TRAIN``, ``DATALOADER``, ``INPUT``, ``SEED`` and
            ``SOLVER.IMS_PER_BATCH`` are read. A negative seed is replaced by a random one, and then
            a resumed run draws a new order.
        start_iteration: number of iterations that are trained already.

    Returns:
        A loader of lists of ``IMS_PER_BATCH / processes`` samples, which :mod:`ovformer.data`
        describes.

    Raises:
        ValueError: a name in the config is unknown, the batch can't be split among the processes,
            or the data sets don't fit each other.
        FileNotFoundError: annotations, images or stored embeddings are missing.
        KeyError: the embeddings of some images are missing.
    """
    # The mapper comes first: its errors take a moment to find, and reading the sets takes long.
    mapper = _find_mapper_class(cfg)(cfg, is_train=True)
    sets = load_training_sets(cfg)
    for name, records in zip(cfg.DATASETS.TRAIN, sets, strict=True):
        if any("file_names" in record for record in records):
            raise ValueError(
                f"DATASETS.TRAIN: {name!r} is a data set of videos; train_net_lvvis.py and "
                "train_net_video.py train on it."
            )
    return build_stream_loader(cfg, sets, mapper, start_iteration)


def build_stream_loader(
    cfg: CfgNode, sets: Sequence[list[dict]], mapper: Callable[[dict], dict], start_iteration: int
) -> DataLoader:
    """Return the endless loader of ``DATASETS.TRAIN`` for a mapper of images or of videos.

    Args:
        cfg: see :func:`build_train_loader`.
        sets: records of each training set.
        mapper: turns a dataset dict into a training sample; has ``embeddings``.
        start_iteration: number of iterations that are trained already.
    """
    batch_size = _compute_batch_size(cfg)
    skip_broken = cfg.DATALOADER.SKIP_BROKEN
    # A missing embedding is reported before the training starts, unless it counts as broken.
    if mapper.embeddings is not None and not skip_broken:
        mapper.embeddings.require(iterate_images(itertools.chain(*sets)))
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    sampler = StreamSampler(build_sampler(cfg, sets, seed), skip=start_iteration * batch_size)
    return DataLoader(
        StreamDataset(cfg.DATASETS.TRAIN, sets, mapper, seed, skip_broken),
        batch_size=batch_size,
        sampler=sampler,
        persistent_workers=cfg.DATALOADER.NUM_WORKERS > 0,
        **_make_common_options(cfg),
    )


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """Return a loader of this process's part of a test set, one image at a time.

    Args:
        cfg: the whole config.
        dataset_name: one of ``DATASETS.TEST``.

    Raises:
        ValueError: the data set is unknown or empty.
        FileNotFoundError: annotations, images or stored embeddings are missing.
        KeyError: the embeddings of some images are missing.
    """
    mapper = ImageMapper(cfg, is_train=False)
    records = load_dataset(dataset_name, "DATASETS.TEST")
    check_images_exist(dataset_name, records, read_missing_limit(cfg))
    if mapper.embeddings is not None:
        mapper.embeddings.require(records)
    # The evaluator reads annotations itself; here they would take most of the memory.
    records = [{k: v for k, v in record.items() if k != "annotations"} for record in records]
    return DataLoader(
        MappedDataset([dataset_name], [records], mapper, cfg.DATALOADER.SKIP_BROKEN),
        batch_size=1,
        sampler=InferenceSampler(len(records)),
        **_make_common_options(cfg),
    )


class StreamSampler(Sampler):
    """Numbers the indices of a training sampler by their place in the stream of all processes.

    Args:
        sampler: endless sampler of this process's indices.
        skip: number of indices to skip at the start.
    """

    def __init__(self, sampler: Sampler, skip: int = 0):
        self.sampler = sampler
        self.skip = skip
        self.rank = comm.get_rank()
        self.world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (place in the stream, index of the image or video)."""
        # The sampler yields every world-size-th index, starting at this process's rank.
        places = itertools.count(self.rank, self.world_size)
        return itertools.islice(zip(places, self.sampler, strict=False), self.skip, None)


class MappedDataset(Dataset):
    """Dataset dicts, stored in one block of bytes that worker processes share, and their mapper.

    Args:
        names: of the data sets.
        sets: their dataset dicts; indices count through all of them.
        mapper: turns a dataset dict into a sample.
        skip_broken: in place of a sample that can't be loaded, return its dataset dict with
            "broken", the message.
    """

    def __init__(
        self,
        names: Sequence[str],
        sets: Sequence[list[dict]],
        mapper: Callable[[dict], dict],
        skip_broken: bool = False,
    ):
        self.names = list(names)
        self.ends = list(itertools.accumulate(map(len, sets)))
        self.records = DatasetFromList(list(itertools.chain(*sets)), copy=False)
        self.mapper = mapper
        self.skip_broken = skip_broken

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        """Return a sample, or raise SampleError."""
        try:
            return self._load(index)
        except SampleError as error:
            if not self.skip_broken:
                raise
            return {**self.records[index], "broken": str(error)}

    def _load(self, index: int) -> dict:
        """Return a sample, or raise SampleError that names data set, file and id."""
        record = self.records[index]
        try:
            return self.mapper(record)
        except Exception as error:  # a damaged file may make a decoder raise anything
            kind = "image" if "file_name" in record else "video"
            files = [entry["file_name"] for entry in iterate_images([record])]
            message = str(error)
            # Errors of our own readers name the file already.
            if not any(file in message for file in files):
                message = f"{files[0]}: {type(error).__name__}: {message}"
            name = self.names[self._find_set(index)]
            raise SampleError(f"{name}, {kind} id {record.get(f'{kind}_id')}: {message}") from error

    def _find_set(self, index: int) -> int:
        return bisect.bisect_right(self.ends, index)


class StreamDataset(MappedDataset):
    """Training samples, whose random numbers depend on the seed and the place in the stream only.

    A sample that can't be loaded is replaced by another one of the same data set, which depends on
    the place and on which files are broken. It has "broken", the messages.

    Args:
        names: of the data sets.
        sets: their dataset dicts.
        mapper: turns a dataset dict into a sample.
        seed: of the run.
        skip_broken: replace samples that can't be loaded.
    """

    def __init__(
        self,
        names: Sequence[str],
        sets: Sequence[list[dict]],
        mapper: Callable[[dict], dict],
        seed: int,
        skip_broken: bool = False,
    ):
        super().__init__(names, sets, mapper, skip_broken)
        self.seed = seed

    def __getitem__(self, place_and_index: tuple[int, int]) -> dict:
        """Return the sample for a pair that :class:`StreamSampler` yields.

        Raises:
            SampleError: neither the sample nor one of its replacements can be loaded.
        """
        place, index = place_and_index
        broken: list[str] = []
        while True:
            # Recorded trainings depend on these two numbers; only a replacement adds a third one.
            seeds = [self.seed, place, len(broken)] if broken else [self.seed, place]
            try:
                with _seed_augmentations(seeds):
                    sample = self._load(index)
            except SampleError as error:
                if not self.skip_broken or len(broken) == MOST_TRIES:
                    raise
                broken.append(str(error))
                index = self._draw_replacement(index, place, len(broken))
            else:
                return {**sample, "broken": broken} if broken else sample

    def _draw_replacement(self, index: int, place: int, tries: int) -> int:
        """Draw the index of another record of the same data set."""
        number = self._find_set(index)
        start = self.ends[number - 1] if number else 0
        # From the place, not from a shared generator, whose state would depend on the workers.
        (random_number,) = np.random.SeedSequence([self.seed, place, tries, 1]).generate_state(1)
        return start + int(random_number) % (self.ends[number] - start)


@contextmanager
def _seed_augmentations(seeds: Sequence[int]) -> Iterator[None]:
    """Seed the generators that augmentations use, and restore their state afterwards."""
    state = random.getstate(), np.random.get_state()
    numbers = np.random.SeedSequence(seeds).generate_state(2)
    random.seed(int(numbers[0]))
    np.random.seed(numbers[1])
    try:
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])


def _compute_batch_size(cfg: CfgNode) -> int:
    total, world_size = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if total <= 0 or total % world_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {total}; it has to be a positive multiple of the number of "
            f"processes, {world_size}."
        )
    return total // world_size


def _find_mapper_class(cfg: CfgNode) -> type:
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name not in TRAIN_MAPPERS:
        raise ValueError(
            f"INPUT.DATASET_MAPPER_NAME: unknown mapper {name!r}. "
            f"Known: {', '.join(TRAIN_MAPPERS)}."
        )
    return TRAIN_MAPPERS[name]


def _make_common_options(cfg: CfgNode) -> dict:
    return {
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "collate_fn": _as_list,
        "worker_init_fn": _init_worker,
        # Without a generator, each new iterator draws a number from the model's generator.
        "generator": torch.Generator(),
        "pin_memory": cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available(),
    }


def _as_list(batch: list[dict]) -> list[dict]:
    return batch


def _init_worker(_: int) -> None:
    # Workers run in parallel already; OpenCV's own threads would compete with them.
    cv2.setNumThreads(0)
    # A signal may go to all processes of a training. The trainer still needs its workers to end the
    # iteration, and stops them afterwards, by a second SIGTERM if needed.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
