"""Catalogs, data sets, samplers and image files, on the selected back-end."""

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from ovformer.d2 import (
    DatasetCatalog,
    DatasetFromList,
    InferenceSampler,
    MetadataCatalog,
    RepeatFactorTrainingSampler,
    TrainingSampler,
    check_image_size,
    collect_env_info,
    read_image,
    seed_all_rng,
)


def test_training_sampler_as_recorded(recorded: dict[str, Any]) -> None:
    wanted = recorded["training_sampler"]
    sampler = TrainingSampler(wanted["size"], seed=wanted["seed"])
    assert list(itertools.islice(sampler, 30)) == wanted["first30"]


def test_training_sampler_options() -> None:
    assert list(itertools.islice(TrainingSampler(3, shuffle=False), 7)) == [0, 1, 2, 0, 1, 2, 0]
    unseeded = itertools.islice(TrainingSampler(5), 5)
    assert sorted(unseeded) == [0, 1, 2, 3, 4]
    with pytest.raises(TypeError):
        TrainingSampler(3.0)
    with pytest.raises(ValueError):
        TrainingSampler(0)


def test_repeat_factors_as_recorded(recorded: dict[str, Any]) -> None:
    wanted = recorded["repeat_factor"]
    records = [
        {"annotations": [{"category_id": c} for c in categories]}
        for categories in wanted["categories"]
    ]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        records, wanted["threshold"]
    )
    np.testing.assert_allclose(factors, wanted["factors"], rtol=1e-7)
    sampler = RepeatFactorTrainingSampler(factors, seed=wanted["seed"])
    assert list(itertools.islice(sampler, 40)) == wanted["first40"]


def test_repeat_factors_without_root_and_of_empty_images() -> None:
    records = [{"annotations": [{"category_id": 4}]}] + [{"annotations": []}] * 9
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        records, 0.4, sqrt=False
    )
    np.testing.assert_allclose(factors, [4.0] + [1.0] * 9)
    sampler = RepeatFactorTrainingSampler(torch.tensor([2.0, 0.0, 1.0]), shuffle=False, seed=1)
    assert list(itertools.islice(sampler, 6)) == [0, 0, 2, 0, 0, 2]


def test_inference_sampler_as_recorded(recorded: dict[str, Any]) -> None:
    for name, wanted in recorded["inference_sampler"].items():
        size, processes = map(int, name.split("x"))
        parts = [
            list(InferenceSampler._get_local_indices(size, processes, rank))
            for rank in range(processes)
        ]
        assert parts == wanted
    sampler = InferenceSampler(4)
    assert list(sampler) == [0, 1, 2, 3] and len(sampler) == 4
    with pytest.raises(AssertionError):
        InferenceSampler(0)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_processes_share_one_stream(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    from ovformer.d2 import comm

    whole = list(itertools.islice(TrainingSampler(7, seed=3), 30))
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    assert list(itertools.islice(TrainingSampler(7, seed=3), 10)) == whole[rank::3]


@pytest.mark.parametrize("serialize", [True, False])
def test_records_are_given_out_as_copies(serialize: bool) -> None:
    records = [{"id": i, "list": [i] * i} for i in range(4)]
    dataset = DatasetFromList(records, serialize=serialize)
    assert len(dataset) == 4
    dataset[3]["list"].append("changed")
    assert [dataset[i] for i in range(4)] == records
    assert records[3] == {"id": 3, "list": [3, 3, 3]}


def test_records_are_given_out_themselves_if_asked_for() -> None:
    records = [{"id": 1}]
    assert DatasetFromList(records, copy=False, serialize=False)[0] is records[0]
    assert DatasetFromList(records, serialize=lambda records: [{"id": 2}])[0] == {"id": 2}
    with pytest.raises(TypeError):
        DatasetFromList(records, serialize="yes")


@pytest.fixture
def name() -> Any:
    """A name for a data set, free before and after the test."""
    name = "d2_test_data"
    yield name
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog:
            catalog.remove(name)


def test_dataset_catalog(name: str) -> None:
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


def test_metadata_catalog(name: str) -> None:
    metadata = MetadataCatalog.get(name)
    assert MetadataCatalog.get(name) is metadata and metadata.name == name
    assert metadata.set(thing_classes=["a"]) is metadata
    metadata.thing_classes = ["a"]
    with pytest.raises(AssertionError, match="thing_classes"):
        metadata.thing_classes = ["b"]
    with pytest.raises(AttributeError, match="json_file"):
        _ = metadata.json_file
    assert metadata.get("json_file", "none") == "none" and not hasattr(metadata, "json_file")
    assert metadata.as_dict() == {"name": name, "thing_classes": ["a"]}
    assert name in MetadataCatalog.list()
    with pytest.raises(AssertionError):
        MetadataCatalog.get("")


@pytest.fixture
def picture(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A PNG file and its pixels, RGB."""
    pixels = np.random.RandomState(0).randint(0, 256, (5, 7, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png", pixels


def test_images_are_read_in_any_format(picture: tuple[Path, np.ndarray]) -> None:
    file, pixels = picture
    np.testing.assert_array_equal(read_image(str(file)), pixels)
    np.testing.assert_array_equal(read_image(str(file), "RGB"), pixels)
    np.testing.assert_array_equal(read_image(str(file), format="BGR"), pixels[:, :, ::-1])
    grey = read_image(str(file), "L")
    assert grey.shape == (5, 7, 1) and grey.dtype == np.uint8
    yuv = read_image(str(file), "YUV-BT.601")
    luma = pixels / 255.0 @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(yuv[:, :, 0], luma, atol=1e-9)
    np.testing.assert_allclose(yuv[:, :, 2], 0.877 * (pixels[:, :, 0] / 255.0 - luma), atol=1e-3)


UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_images_are_turned_upright(picture: tuple[Path, np.ndarray], orientation: int) -> None:
    file, pixels = picture
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(file, exif=exif)
    np.testing.assert_array_equal(read_image(str(file), "RGB"), UPRIGHT[orientation](pixels))


def test_a_broken_exif_block_does_not_stop_reading(tmp_path: Path) -> None:
    pixels = np.full((4, 6, 3), 127, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00nonsense")
    assert read_image(str(tmp_path / "a.jpg"), "RGB").shape == (4, 6, 3)


def test_image_sizes_are_checked() -> None:
    image = np.zeros((5, 7, 3))
    record: dict[str, Any] = {"file_name": "a.png"}
    check_image_size(record, image)
    assert (record["height"], record["width"]) == (5, 7)
    check_image_size(record, image)
    with pytest.raises(ValueError, match=r"a\.png"):
        check_image_size({"file_name": "a.png", "height": 7, "width": 5}, image)


def test_seeding_repeats_all_random_numbers() -> None:
    def draw() -> list[float]:
        return [random.random(), np.random.rand(), torch.rand(1).item()]

    seed_all_rng(5)
    first = draw()
    seed_all_rng(5)
    assert draw() == first
    seed_all_rng()
    assert draw() != first


def test_environment_report_names_the_versions() -> None:
    report = collect_env_info()
    assert torch.__version__ in report and np.__version__ in report and "detectron2" in report
