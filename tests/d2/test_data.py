"""Catalogs, data sets, samplers and image files, on the selected back-end."""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from ovformer.d2 import (
    DatasetCatalog,
    DatasetFromList,
    InferenceSampler,
    MetadataCatalog,
    RepeatFactorTrainingSampler,
    TrainingSampler,
    check_image_size,
    collect_env_info,
    comm,
    read_image,
    seed_all_rng,
)


def first(count: int, sampler: TrainingSampler | RepeatFactorTrainingSampler) -> list[int]:
    return list(itertools.islice(sampler, count))


def test_training_sampler(recorded) -> None:
    wanted = recorded["training_sampler"]
    assert first(30, TrainingSampler(wanted["size"], seed=wanted["seed"])) == wanted["first30"]
    assert first(7, TrainingSampler(3, shuffle=False)) == [0, 1, 2, 0, 1, 2, 0]
    assert sorted(first(5, TrainingSampler(5))) == [0, 1, 2, 3, 4]
    with pytest.raises(TypeError):
        TrainingSampler(3.0)
    with pytest.raises(ValueError):
        TrainingSampler(0)


def test_repeat_factors(recorded) -> None:
    wanted, kind = recorded["repeat_factor"], RepeatFactorTrainingSampler
    records = [
        {"annotations": [{"category_id": c} for c in categories]}
        for categories in wanted["categories"]
    ]
    factors = kind.repeat_factors_from_category_frequency(records, wanted["threshold"])
    np.testing.assert_allclose(factors, wanted["factors"], rtol=1e-7)
    sampler = RepeatFactorTrainingSampler(factors, seed=wanted["seed"])
    assert first(40, sampler) == wanted["first40"]

    rare = [{"annotations": [{"category_id": 4}]}] + [{"annotations": []}] * 9
    factors = kind.repeat_factors_from_category_frequency(rare, 0.4, sqrt=False)
    np.testing.assert_allclose(factors, [4.0] + [1.0] * 9)
    sampler = RepeatFactorTrainingSampler(torch.tensor([2.0, 0.0, 1.0]), shuffle=False, seed=1)
    assert first(6, sampler) == [0, 0, 2, 0, 0, 2]


def test_inference_sampler_as_recorded(recorded) -> None:
    for name, wanted in recorded["inference_sampler"].items():
        size, processes = map(int, name.split("x"))
        for rank in range(processes):
            part = InferenceSampler._get_local_indices(size, processes, rank)
            assert list(part) == wanted[rank]
    sampler = InferenceSampler(4)
    assert list(sampler) == [0, 1, 2, 3] and len(sampler) == 4
    with pytest.raises(AssertionError):
        InferenceSampler(0)


def test_processes_share_one_stream(monkeypatch) -> None:
    whole = first(30, TrainingSampler(7, seed=3))
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        assert first(10, TrainingSampler(7, seed=3)) == whole[rank::3]


@pytest.mark.parametrize("serialize", [True, False])
def test_records_are_copies_unless_asked_for_themselves(serialize) -> None:
    records = [{"id": i, "list": [i] * i} for i in range(4)]
    dataset = DatasetFromList(records, serialize=serialize)
    assert len(dataset) == 4
    dataset[3]["list"].append("changed")
    assert [dataset[i] for i in range(4)] == records
    assert records[3] == {"id": 3, "list": [3, 3, 3]}
    assert DatasetFromList(records, copy=False, serialize=False)[0] is records[0]
    assert DatasetFromList(records, serialize=lambda records: [{"id": 2}])[0] == {"id": 2}
    with pytest.raises(TypeError):
        DatasetFromList(records, serialize="yes")


@pytest.fixture
def name() -> Iterator[str]:
    """A name for a data set, free before and after the test."""
    yield "d2_test_data"
    for catalog in (DatasetCatalog, MetadataCatalog):
        if "d2_test_data" in catalog:
            catalog.remove("d2_test_data")


def test_dataset_catalog(name) -> None:
    DatasetCatalog.register(name, lambda: [{"image_id": 1}])
    assert name in DatasetCatalog and name in DatasetCatalog.list()
    assert DatasetCatalog.get(name) == [{"image_id": 1}]
    with pytest.raises(AssertionError, match=name):
        DatasetCatalog.register(name, lambda: [])
    DatasetCatalog.remove(name)
    with pytest.raises(KeyError, match=name):
        DatasetCatalog.get(name)
    with pytest.raises(AssertionError):
        DatasetCatalog.register(name, "no function")


def test_metadata_catalog(name) -> None:
    metadata = MetadataCatalog.get(name)
    assert MetadataCatalog.get(name) is metadata and metadata.name == name
    assert metadata.set(thing_classes=["a"]) is metadata
    metadata.thing_classes = ["a"]
    with pytest.raises(AssertionError, match="thing_classes"):
        metadata.thing_classes = ["b"]
    with pytest.raises(AttributeError, match="json_file"):
        _ = metadata.json_file
    assert metadata.get("json_file", "none") == "none"
    assert metadata.as_dict() == {"name": name, "thing_classes": ["a"]}
    assert name in MetadataCatalog.list()
    with pytest.raises(AssertionError):
        MetadataCatalog.get("")


PIXELS = np.random.RandomState(0).randint(0, 256, (5, 7, 3)).astype(np.uint8)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    """The path of a PNG file with PIXELS, RGB."""
    Image.fromarray(PIXELS).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


def test_images_are_read_in_any_format(picture) -> None:
    np.testing.assert_array_equal(read_image(picture), PIXELS)
    np.testing.assert_array_equal(read_image(picture, "RGB"), PIXELS)
    np.testing.assert_array_equal(read_image(picture, format="BGR"), PIXELS[:, :, ::-1])
    grey = read_image(picture, "L")
    assert grey.shape == (5, 7, 1) and grey.dtype == np.uint8
    yuv = read_image(picture, "YUV-BT.601")
    luma = PIXELS / 255.0 @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(yuv[:, :, 0], luma, atol=1e-9)
    np.testing.assert_allclose(yuv[:, :, 2], 0.877 * (PIXELS[:, :, 0] / 255.0 - luma), atol=1e-3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(picture, orientation) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(PIXELS).save(picture, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(picture)))
    np.testing.assert_array_equal(read_image(picture, "RGB"), upright)


def test_a_broken_exif_block_does_not_stop_reading(picture) -> None:
    Image.fromarray(PIXELS).save(picture, "JPEG", exif=b"Exif\x00\x00nonsense")
    assert read_image(picture, "RGB").shape == PIXELS.shape


def test_image_sizes_are_checked() -> None:
    record: dict[str, Any] = {"file_name": "a.png"}
    for _ in range(2):
        check_image_size(record, PIXELS)
        assert (record["height"], record["width"]) == (5, 7)
    with pytest.raises(ValueError, match=r"a\.png"):
        check_image_size({"file_name": "a.png", "height": 7, "width": 5}, PIXELS)


def test_seeding_repeats_all_random_numbers() -> None:
    draws = []
    for seed in (5, 5, None):
        seed_all_rng(seed)
        draws.append([random.random(), np.random.rand(), torch.rand(1).item()])
    assert draws[0] == draws[1] != draws[2]


def test_environment_report_names_the_versions() -> None:
    report = collect_env_info()
    assert torch.__version__ in report and np.__version__ in report and "detectron2" in report
