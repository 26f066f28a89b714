"""Registration: names, lazy paths, metadata, category tables, errors."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest

import ovformer.data.catalog.datasets
from ovformer.d2 import DatasetCatalog, MetadataCatalog
from ovformer.data.catalog import dataset_spec
from ovformer.data.catalog.dataset_spec import (
    CATEGORY_FOLDER,
    check_class_count,
    load_categories,
    load_dataset,
    register_dataset,
)
from ovformer.data.catalog.datasets import register_all
from ovformer_tools.shape_scenes import CATEGORY_NAMES, NOVEL_NAMES
from support.mini_lvis import MiniLvis

README = Path(__file__).parents[2] / "datasets" / "README.md"
OURS = ("lvis_v1_train", "lvis_v1_train_norare", "lvis_v1_val", "shapes_train", "shapes_val")


@pytest.mark.parametrize("name", OURS)
def test_metadata_is_complete(name: str) -> None:
    metadata = MetadataCatalog.get(name)
    info = metadata.category_info
    assert metadata.evaluator_type == "lvis"
    assert metadata.thing_classes == [category["name"] for category in info]
    ids = metadata.thing_dataset_id_to_contiguous_id
    assert [ids[category["id"]] for category in info] == list(range(len(info)))
    assert {"id", "name", "frequency", "image_count", "instance_count"} == set(info[0])
    groups = metadata.class_groups
    assert sorted(groups["base"] + groups["novel"]) == list(range(len(info)))
    assert {info[i]["frequency"] for i in groups["novel"]} == {"r"}


def test_tables_are_those_of_the_data_sets() -> None:
    lvis = load_categories("lvis_v1")
    assert [c["id"] for c in lvis] == list(range(1, 1204))
    frequencies = [c["frequency"] for c in lvis]
    assert {f: frequencies.count(f) for f in "rcf"} == {"r": 337, "c": 461, "f": 405}
    shapes = load_categories("shapes")
    assert [c["id"] for c in shapes] == list(range(1, 37))
    assert tuple(c["name"] for c in shapes) == CATEGORY_NAMES
    assert {c["name"] for c in shapes if c["frequency"] == "r"} == NOVEL_NAMES
    assert all(c["image_count"] for c in shapes if c["frequency"] == "f")
    for path in CATEGORY_FOLDER.glob("*.json"):  # one line per category, each with its own name
        categories = load_categories(path.stem)
        assert len({c["name"] for c in categories}) == len(categories)
        assert len(path.read_text().splitlines()) == len(categories) + 2


def test_paths_follow_the_environment(
    mini_lvis: MiniLvis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = MetadataCatalog.get("lvis_v1_val")
    assert metadata.json_file == str(mini_lvis.root / "lvis" / "lvis_v1_val.json")
    assert metadata.image_root == str(mini_lvis.root / "coco")
    assert len(DatasetCatalog.get("lvis_v1_val")) == 5
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert metadata.json_file == str(tmp_path / "lvis" / "lvis_v1_val.json")
    with pytest.raises(FileNotFoundError, match="lvis_v1_val.json not found"):
        DatasetCatalog.get("lvis_v1_val")


@pytest.mark.detectron2
def test_detectron2s_own_entries_are_replaced(mini_lvis: MiniLvis) -> None:
    # detectron2's own reader fails on RLEs, and its entry looks in ./datasets.
    assert len(DatasetCatalog.get("lvis_v1_train")) == 5
    assert MetadataCatalog.get("lvis_v1_train").thing_classes[0] == "aerosol_can"
    assert "coco_2017_val" in DatasetCatalog.list()
    from detectron2.data.detection_utils import get_fed_loss_cls_weights

    assert get_fed_loss_cls_weights("lvis_v1_train", 0.5)[0] == pytest.approx(64**0.5)


def test_registering_again_changes_nothing_and_another_spec_is_an_error() -> None:
    before = sorted(DatasetCatalog.list())
    register_all()
    assert sorted(DatasetCatalog.list()) == before
    spec = MetadataCatalog.get("shapes_val").spec
    with pytest.raises(ValueError, match="'shapes_val' is registered twice"):
        register_dataset(dataclasses.replace(spec, annotations="other.json"))
    bad = dataclasses.replace(spec, name="bad", groups={"base": ("partition", (0,))})
    with pytest.raises(ValueError, match="'partition', which not every category of shapes.json"):
        register_dataset(bad)
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.remove("bad")


def test_missing_annotations_say_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for name, hint in {
        "lvis_v1_train_norare": "tools/remove_lvis_rare.py",
        "lvis_v1_val": "datasets/README.md",
        "shapes_train": "tools/make_shapes.py",
    }.items():
        with pytest.raises(FileNotFoundError, match=f"{name}.*{hint}.*{tmp_path}.*DETECTRON2_DATA"):
            load_dataset(name)


def test_wrong_names_and_tables(mini_lvis: MiniLvis, tmp_path: Path) -> None:
    message = r"DATASETS.TEST: unknown dataset 'lvis_v1_vall'.*lvis_v1_val"
    with pytest.raises(ValueError, match=message):
        load_dataset("lvis_v1_vall", "DATASETS.TEST")
    mini_lvis.content.update(images=[], annotations=[])
    mini_lvis.write("lvis_v1_val.json")
    with pytest.raises(ValueError, match="DATASETS.TEST: data set 'lvis_v1_val' has no image"):
        load_dataset("lvis_v1_val", "DATASETS.TEST")
    with pytest.raises(FileNotFoundError, match=r"nope.json not found. Known: .*lvis_v1.*shapes"):
        load_categories("nope")
    (tmp_path / "table.json").write_text('[{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]')
    with pytest.raises(ValueError, match="table.json: category 3 is listed twice"):
        load_categories(str(tmp_path / "table"))


def test_class_counts_are_compared() -> None:
    DatasetCatalog.register("no_classes", list)
    try:
        check_class_count(["shapes_train", "shapes_val", "no_classes"], 36, "DATASETS.TEST")
    finally:
        DatasetCatalog.remove("no_classes")
        MetadataCatalog.remove("no_classes")
    message = r"NUM_CLASSES is 36, but 'lvis_v1_val' \(DATASETS.TEST\) has 1203 classes"
    with pytest.raises(ValueError, match=message):
        check_class_count(["shapes_val", "lvis_v1_val"], 36, "DATASETS.TEST")
    with pytest.raises(ValueError, match="DATASETS.TRAIN: unknown dataset 'x'"):
        check_class_count(["x"], 36, "DATASETS.TRAIN")


def test_the_readmes_example_adds_a_data_set(
    mini_lvis: MiniLvis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = README.read_text(encoding="utf-8")
    code, table = (
        re.search(rf"<!-- {mark} -->\n```\w+\n(.*?)```", text, re.DOTALL)[1]
        for mark in ("example", "example categories")
    )
    for folder in ("code", "categories"):
        (tmp_path / folder).mkdir()
    (tmp_path / "code" / "birds.py").write_text(code)
    (tmp_path / "categories" / "birds.json").write_text(table)
    for path in CATEGORY_FOLDER.glob("*.json"):
        (tmp_path / "categories" / path.name).symlink_to(path)
    monkeypatch.setattr(dataset_spec, "CATEGORY_FOLDER", tmp_path / "categories")
    package = ovformer.data.catalog.datasets
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / "code")])

    mini_lvis.content["categories"] = [{"id": 7, "name": "wren"}]
    for annotation in mini_lvis.content["annotations"]:
        annotation["category_id"] = 7
    for image in mini_lvis.content["images"]:
        image["file_name"] = image.pop("coco_url").split("/", 3)[3]
    (mini_lvis.root / "birds").mkdir()
    (mini_lvis.root / "coco").rename(mini_lvis.root / "birds" / "images")
    mini_lvis.write("../birds/train.json")
    try:
        register_all()
        records = load_dataset("birds_train")
        assert Path(records[0]["file_name"]).is_file()
        assert {a["category_id"] for r in records for a in r["annotations"]} == {2}
        groups = MetadataCatalog.get("birds_train").class_groups
        assert groups == {"base": [0, 1], "novel": [2]}
        with pytest.raises(FileNotFoundError, match="https://birds.example.org"):
            load_dataset("birds_val")
    finally:
        sys.modules.pop("ovformer.data.catalog.datasets.birds", None)
        for name in ("birds_train", "birds_val"):
            DatasetCatalog.pop(name, None)
            MetadataCatalog.pop(name, None)
