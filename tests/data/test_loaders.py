"""The stream of training samples and the loaders of both kinds."""

import itertools
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ovformer.d2 import CfgNode, DatasetCatalog, RepeatFactorTrainingSampler, TrainingSampler, comm
from ovformer.data.files.image_embeddings import ImageEmbeddingWriter
from ovformer.data.loading import loaders
from ovformer.data.loading.loaders import StreamSampler, build_test_loader, build_train_loader
from ovformer.data.samples.broken_samples import SampleError
from support.data_configs import data_config
from support.masks import corners
from support.mini_lvis import MiniLvis


def config(*opts: object) -> CfgNode:
    base = ("INPUT.AUGMENTATIONS", "['contrast', 'rotation90']", "SOLVER.IMS_PER_BATCH", 4)
    return data_config("lvis_v1", *base, *opts)


def images(loader: torch.utils.data.DataLoader, count: int) -> list[tuple]:
    """The first batches of a loader, in a form that compares."""
    batches = itertools.islice(loader, count)
    return [
        (s["image_id"], s["image"].numpy().tobytes(), str(s["instances"]), s.get("broken"))
        for batch in batches
        for s in batch
    ]


def as_process(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)


def test_batches(mini_lvis: MiniLvis) -> None:
    batch = next(iter(build_train_loader(config("INPUT.AUGMENTATIONS", []))))
    assert len(batch) == 4
    for sample in batch:
        assert sample["image"].shape == (3, 32, 32)
        assert sample["clip_image"].shape == (3, 8, 8)
        assert sample["instances"].image_size == (32, 32)
    # Image 5 has no annotation; the crowd region of image 4 does not count as one.
    for is_filtered, ids in ((True, {1, 2, 3, 4}), (False, {1, 2, 3, 4, 5})):
        cfg = config("DATALOADER.FILTER_EMPTY_ANNOTATIONS", is_filtered)
        assert {sample[0] for sample in images(build_train_loader(cfg), 8)} == ids


def test_samples_depend_on_seed_and_place_only(mini_lvis: MiniLvis) -> None:
    expected = images(build_train_loader(config()), 5)
    assert len(set(expected)) == 20  # every sample is augmented anew
    assert images(build_train_loader(config("DATALOADER.NUM_WORKERS", 2)), 5) == expected
    assert images(build_train_loader(config("SEED", 6)), 5) != expected
    drawn = [images(build_train_loader(config("SEED", -1)), 2) for _ in range(2)]
    assert drawn[0] != drawn[1]


def test_processes_share_one_stream(mini_lvis: MiniLvis, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = images(build_train_loader(config()), 4)
    parts = []
    for rank in range(2):
        as_process(monkeypatch, rank, 2)
        loader = build_train_loader(config(), start_iteration=1)
        assert loader.batch_size == 2
        parts.append(images(loader, 3))
    for iteration in range(3):
        together = [sample for part in parts for sample in part[2 * iteration :][:2]]
        assert sorted(together) == sorted(whole[4 * (iteration + 1) :][:4])


@given(
    size=st.integers(1, 30),
    seed=st.integers(0, 5),
    world_size=st.integers(1, 5),
    skip=st.integers(0, 60),
    repeats=st.booleans(),
)
def test_stream_sampler_numbers_one_order(
    size: int, seed: int, world_size: int, skip: int, repeats: bool
) -> None:
    def sampler() -> torch.utils.data.Sampler:
        if repeats:
            return RepeatFactorTrainingSampler(torch.linspace(1, 2.5, size), seed=seed)
        return TrainingSampler(size, seed=seed)

    order = list(itertools.islice(sampler(), (skip + 10) * world_size))
    with pytest.MonkeyPatch.context() as monkeypatch:
        for rank in range(world_size):
            as_process(monkeypatch, rank, world_size)
            found = list(itertools.islice(StreamSampler(sampler(), skip), 10))
            places = [rank + world_size * k for k in range(skip, skip + 10)]
            assert found == [(place, order[place]) for place in places]


def test_random_numbers_of_the_process_are_left_alone(mini_lvis: MiniLvis) -> None:
    def draw(load: Callable[[], object]) -> tuple:
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)
        load()
        return random.random(), np.random.random(), torch.rand(1).item()

    expected = draw(lambda: None)
    assert draw(lambda: images(build_train_loader(config()), 2)) == expected
    # An evaluation in between leaves the points alone that the training's losses draw.
    assert draw(lambda: list(build_test_loader(config(), "lvis_v1_val")))[2] == expected[2]


def test_evaluation_sees_each_image_once(
    mini_lvis: MiniLvis, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for rank in range(2):
        as_process(monkeypatch, rank, 2)
        loader = build_test_loader(config("DATALOADER.NUM_WORKERS", rank), "lvis_v1_val")
        samples = [sample for (sample,) in loader]
        assert len(samples) == len(loader)
        assert not {"annotations", "instances"} & samples[0].keys()
        found.append([sample["image_id"] for sample in samples])
    assert found == [[1, 2, 3], [4, 5]]


def train_images(data: MiniLvis) -> list[Path]:
    """Images 1, 2, 4 and 5."""
    return sorted((data.root / "coco" / "train2017").iterdir())


def test_errors_in_workers_name_the_image(mini_lvis: MiniLvis) -> None:
    path = train_images(mini_lvis)[1]
    path.write_bytes(path.read_bytes()[:300])
    loader = build_train_loader(config("DATALOADER.NUM_WORKERS", 2))
    with pytest.raises(ValueError, match=f"{path}: .*decoded"):
        images(loader, 5)
    # The error keeps the processes alive, which end slowly when it is collected.
    loader._iterator._shutdown_workers()


def test_any_error_of_a_mapper_names_the_image() -> None:
    records = [[{}, {}], [{"file_name": "/data/x.jpg", "image_id": 7}]]
    dataset = loaders.MappedDataset(["first", "second"], records, lambda record: record["mask"])
    with pytest.raises(SampleError, match="second, image id 7: /data/x.jpg: KeyError: 'mask'"):
        dataset[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_another_sample_takes_the_place_of_a_broken_one(mini_lvis: MiniLvis, workers: int) -> None:
    whole = images(build_train_loader(config()), 5)
    _, second, fourth, _ = train_images(mini_lvis)
    second.write_bytes(second.read_bytes()[:300])
    fourth.unlink()
    keys = ["DATALOADER.SKIP_BROKEN", True, "DATALOADER.MAX_BROKEN", 0.5]
    cfg = config(*keys, "DATALOADER.NUM_WORKERS", workers)
    found = images(build_train_loader(cfg), 5)
    for before, after in zip(whole, found, strict=True):
        if before[0] in (1, 3):
            assert after == before  # its random numbers, too, are those of its place
        else:
            assert after[0] in (1, 3)
            assert f"lvis_v1_train, image id {before[0]}: " in after[3][0]
    assert {sample[0] for sample in found if sample[3]} == {1, 3}
    # A resumed training sees the same.
    assert images(build_train_loader(cfg, start_iteration=3), 2) == found[12:]


def test_no_sample_can_be_loaded(mini_lvis: MiniLvis) -> None:
    for path in (mini_lvis.root / "coco").glob("*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(SampleError, match=r"lvis_v1_train, image id \d: .*can't be decoded"):
        next(iter(build_train_loader(config("DATALOADER.SKIP_BROKEN", True))))


def test_evaluation_marks_broken_images(mini_lvis: MiniLvis) -> None:
    (path,) = (mini_lvis.root / "coco" / "val2017").iterdir()
    path.write_bytes(b"")
    loader = build_test_loader(config("DATALOADER.SKIP_BROKEN", True), "lvis_v1_val")
    broken = {s["image_id"]: s["broken"] for (s,) in loader if "broken" in s}
    number = int(path.stem)
    assert list(broken) == [number] and f"lvis_v1_val, image id {number}: " in broken[number]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("DATASETS.TRAIN", "('nope',)", "DATASETS.TRAIN.*'nope'"),
        ("DATASETS.TRAIN", "()", "DATASETS.TRAIN is empty"),
        ("INPUT.DATASET_MAPPER_NAME", "coco", "DATASET_MAPPER_NAME.*'coco'.*coco_instance_lsj"),
        ("DATALOADER.SAMPLER_TRAIN", "Sampler", "SAMPLER_TRAIN.*'Sampler'.*TrainingSampler"),
        ("SOLVER.IMS_PER_BATCH", 0, "SOLVER.IMS_PER_BATCH is 0"),
        ("MODEL.MASK_FORMER.CLIP_IMAGE_PATH_TRAIN", "no.safetensors", "no.safetensors not found"),
    ],
)
def test_wrong_keys_are_named(mini_lvis: MiniLvis, key: str, value: object, message: str) -> None:
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        build_train_loader(config(key, value))


def remove_annotations(data: MiniLvis) -> None:
    data.content["annotations"] = []
    data.write()


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        (remove_annotations, "lvis_v1_train has an annotation"),
        (lambda data: [image.unlink() for image in train_images(data)[1:3]], "2 of 5 images not f"),
        (lambda data: (data.root / "coco" / "val2017").rename(data.root / "val"), "1 of 5 images"),
    ],
)
def test_missing_files_are_named(mini_lvis: MiniLvis, remove: Callable, message: str) -> None:
    remove(mini_lvis)
    for skip_broken in (False, True):  # which allows fewer of them by default
        with pytest.raises((FileNotFoundError, ValueError), match=message):
            build_train_loader(config("DATALOADER.SKIP_BROKEN", skip_broken))


def test_a_batch_that_does_not_split(mini_lvis: MiniLvis, monkeypatch: pytest.MonkeyPatch) -> None:
    as_process(monkeypatch, 0, 3)
    with pytest.raises(ValueError, match="IMS_PER_BATCH is 4; .* number of processes, 3"):
        build_train_loader(config())


@pytest.mark.parametrize("is_train", [True, False])
def test_missing_clip_features_are_said_before_any_work(
    mini_lvis: MiniLvis, is_train: bool
) -> None:
    path = mini_lvis.root / "features.safetensors"
    with ImageEmbeddingWriter(path, {}) as writer:
        writer.add(["coco/train2017/000000000001.png"], torch.zeros(1, 4))
    key = "MODEL.MASK_FORMER.CLIP_IMAGE_PATH" + ("_TRAIN" if is_train else "")
    cfg = config(key, str(path), "MODEL.CLIP.EMBED_DIM", 4)
    count = 3 if is_train else 4
    with pytest.raises(KeyError, match=f"{count} images have no CLIP features"):
        build_train_loader(cfg) if is_train else build_test_loader(cfg, "lvis_v1_val")


def test_a_data_set_registered_by_somebody_else_works(mini_lvis: MiniLvis) -> None:
    """What detectron2 asks of a data set is enough."""
    polygons = {"category_id": 4, "segmentation": [corners(10, 5, 40, 30)]}
    annotation = {**polygons, "bbox": [10, 5, 40, 30], "bbox_mode": 0}
    record = {"file_name": str(train_images(mini_lvis)[0]), "image_id": "one"}
    record |= {"height": 40, "width": 60, "annotations": [annotation]}
    DatasetCatalog.register("somebodys", lambda: [record])
    try:
        batch = next(iter(build_train_loader(config("DATASETS.TRAIN", "('somebodys',)"))))
        assert batch[0]["instances"].gt_classes.tolist() == [4]
        assert len(list(build_test_loader(config(), "somebodys"))) == 1
    finally:
        DatasetCatalog.remove("somebodys")


def test_workers_of_any_start_method_get_the_data(mini_lvis: MiniLvis) -> None:
    """Python 3.14 no longer forks: what workers need has to be picklable."""
    extra = "['rotation', 'rotation90', 'brightness', 'contrast', 'saturation']"
    loader = build_train_loader(config("INPUT.AUGMENTATIONS", extra))
    copy = pickle.loads(pickle.dumps(loader.dataset))
    assert torch.equal(copy[3, 1]["image"], loader.dataset[3, 1]["image"])
