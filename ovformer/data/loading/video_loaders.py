"""Batches of videos: clips for training, whole videos for evaluation."""

import os
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

from torch.utils.data import DataLoader

from ovformer.d2 import CfgNode, InferenceSampler
from ovformer.data.catalog.dataset_spec import load_dataset
from ovformer.data.files.image_files import check_images_exist, iterate_images, read_missing_limit
from ovformer.data.loading.loaders import build_stream_loader
from ovformer.data.loading.training_sets import load_training_sets
from ovformer.data.samples.clip_mapper import ClipMapper
from ovformer.data.samples.video_reader import VideoReader


def build_video_train_loader(cfg: CfgNode, start_iteration: int = 0) -> DataLoader:
    """Return the endless loader of this process's part of the training clips.

    The stream of samples is that of :mod:`ovformer.data.loading.loaders`: the frames of a clip and
    its augmentation depend on the seed and the place in the stream only. Images become
    pseudo-clips.

    Args:
        cfg: the whole config; ``SOLVER.IMS_PER_BATCH`` counts clips.
        start_iteration: number of iterations that are trained already.

    Raises:
        ValueError: a name in the config is unknown, the batch can't be split among the processes,
            or the data sets don't fit each other.
        FileNotFoundError: annotations, frames or stored embeddings are missing.
        KeyError: the embeddings of some frames are missing.
    """
    return build_stream_loader(cfg, load_training_sets(cfg), ClipMapper(cfg), start_iteration)


def build_video_test_loader(
    cfg: CfgNode, dataset_name: str, skip: Collection[int] = ()
) -> "VideoLoader":
    """Return a loader of this process's part of a test set, one video at a time.

    Args:
        cfg: the whole config.
        dataset_name: one of ``DATASETS.TEST``.
        skip: ids of videos that are done.

    Raises:
        ValueError: the data set is unknown, empty, or one of images.
        FileNotFoundError: annotations, frames or stored embeddings are missing.
        KeyError: the embeddings of some frames are missing.
    """
    reader = VideoReader(cfg)
    records = load_dataset(dataset_name, "DATASETS.TEST")
    if "file_names" not in records[0]:
        raise ValueError(
            f"DATASETS.TEST: {dataset_name!r} is a data set of images; train_net.py evaluates it."
        )
    records = [record for record in records if record["video_id"] not in skip]
    check_images_exist(dataset_name, records, read_missing_limit(cfg))
    if reader.embeddings is not None:
        reader.embeddings.require(iterate_images(records))
    # The evaluator reads annotations itself; here they would take most of the memory.
    records = [{k: v for k, v in record.items() if k != "annotations"} for record in records]
    if records:
        records = [records[index] for index in InferenceSampler(len(records))]
    return VideoLoader(records, reader, max(1, cfg.DATALOADER.NUM_WORKERS))


class VideoLoader:
    """Batches of one video, whose frames are decoded in the background while they are used.

    Decoding releases Python's lock, so threads are enough; no frame is copied between processes.

    Args:
        records: dataset dicts.
        reader: opens them.
        num_threads: threads that decode frames; limited to the number of CPU cores.
    """

    def __init__(self, records: list[dict], reader: VideoReader, num_threads: int):
        self.records = records
        self.reader = reader
        self.num_threads = min(num_threads, os.cpu_count() or 1)

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[list[dict]]:
        """Yield one batch per video, while the first frames of the next video are read.

        Take the frames of a video before the next one.
        """
        executor = ThreadPoolExecutor(self.num_threads, thread_name_prefix="frames")
        try:
            # A video is opened before the previous one is yielded: its first frames are decoded
            # while the model is busy with that one.
            following = None
            for record in self.records:
                video, following = following, self.reader.open(record, executor)
                if video is not None:
                    yield [video]
            if following is not None:
                yield [following]
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
