"""Data sets of DATASETS.CUSTOM."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import DatasetCatalog, MetadataCatalog
from ovformer.data.catalog.custom import register_custom
from ovformer.data.catalog.dataset_spec import check_class_count
from support.mini_lvis import MiniLvis
from support.mini_videos import MiniVideos

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def restored_catalogs() -> Iterator[None]:
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def coco(mini_lvis: MiniLvis) -> dict:
    """An entry for images in COCO's format: LVIS without its own fields, categories unsorted."""
    for image in mini_lvis.content["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    categories = [{"id": c["id"], "name": c["name"]} for c in mini_lvis.content["categories"]]
    mini_lvis.content["categories"] = categories[::-1]
    path = mini_lvis.write("mine.json")
    folder = str(mini_lvis.root / "coco")
    novel = ["aerosol_can", 14]
    return {"name": "mine", "annotations": str(path), "images": folder, "novel": novel}


def test_images(coco: dict) -> None:
    register_custom([coco])
    records = DatasetCatalog.get("mine")
    assert all(Path(record["file_name"]).is_file() for record in records)
    labels = [[a["category_id"] for a in record["annotations"]] for record in records]
    assert labels == [[0, 2], [1], [1, 3], [0, 1], []]
    metadata = MetadataCatalog.get("mine")
    assert metadata.thing_classes == ["aerosol_can", "airplane", "applesauce", "apricot"]
    assert metadata.class_groups == {"base": [1, 2], "novel": [0, 3]}
    assert metadata.evaluator_type == "lvis"
    register_custom([{**coco, "name": "without_novel", "novel": []}])
    assert MetadataCatalog.get("without_novel").class_groups == {}


def test_videos_named_in_a_yaml_or_on_the_command_line(
    mini_videos: MiniVideos, tmp_path: Path
) -> None:
    described = {
        "name": "my_videos",
        "annotations": "ytvis_2019/valid.json",  # below the dataset root
        "images": str(mini_videos.frames),
        "novel": [6],
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"DATASETS": {"CUSTOM": [described], "TEST": ["my_videos"]}}))
    in_file = get_ovformer_cfg(str(path))
    on_command_line = get_ovformer_cfg(None, ["DATASETS.CUSTOM", str([described])])
    assert in_file.DATASETS.CUSTOM == on_command_line.DATASETS.CUSTOM == [described]
    for cfg in (in_file, on_command_line):  # the second time nothing happens
        register_custom(cfg.DATASETS.CUSTOM)
    records, same = (DatasetCatalog.get(name) for name in ("my_videos", "ytvis_2019_val"))
    assert [r["file_names"] for r in records] == [r["file_names"] for r in same]
    assert records[0]["annotations"] == same[0]["annotations"]
    metadata = MetadataCatalog.get("my_videos")
    assert metadata.evaluator_type == "vis"
    assert metadata.class_groups["novel"] == [5] and len(metadata.class_groups["base"]) == 39
    counted = [
        [metadata.category_info[i][key] for key in ("image_count", "instance_count", "frequency")]
        for i in (0, 1)
    ]
    assert counted == [[6, 6, "b"], [0, 0, "n"]]


def test_the_example_of_the_readme(mini_videos: MiniVideos, tmp_path: Path) -> None:
    text = (ROOT / "datasets" / "README.md").read_text(encoding="utf-8")
    example = re.search(r"<!-- example custom -->\n```yaml\n(.*?)```", text, re.DOTALL)[1]
    path = tmp_path / "birds.yaml"
    path.write_text(example.replace("/path/to/ovformer", str(ROOT)))
    birds = mini_videos.root / "birds"
    birds.mkdir()
    mini_videos.frames.rename(birds / "frames")
    table = [{"id": 1, "name": "robin"}, {"id": 6, "name": "wren"}, {"id": 8, "name": "owl"}]
    (birds / "val.json").write_text(json.dumps({**mini_videos.content, "categories": table}))
    cfg = get_ovformer_cfg(str(path))
    register_custom(cfg.DATASETS.CUSTOM)
    assert cfg.DATASETS.TEST == ("birds_val",) and cfg.MODEL.META_ARCHITECTURE == "OVFormerVideo"
    check_class_count(cfg.DATASETS.TEST, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, "DATASETS.TEST")
    assert MetadataCatalog.get("birds_val").class_groups == {"base": [0, 2], "novel": [1]}
    assert Path(DatasetCatalog.get("birds_val")[0]["file_names"][0]).is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, r"DATASETS.CUSTOM\[0\]: expected name, annotations, images"),
        ({"name": "lvis_v1_val"}, "'lvis_v1_val' is registered twice"),
        ({"name": "theirs"}, "name 'theirs'"),
        ({"folder": "x"}, r"unknown \['folder'\]. Known: name, annotations, images, novel"),
        ({"novel": "parrot"}, "no category has the name or id 'parrot'. Names: .*airplane"),
        ({"novel": [8]}, "no category has the name or id 8"),
        ({"annotations": "nowhere.json"}, "nowhere.json: no such file"),
        ({"annotations": "nowhere.yaml"}, r"expected a \.json file"),
        ({"images": "nowhere"}, "images: no such folder: .*nowhere"),
    ],
)
def test_wrong_entries_are_named(coco: dict, changes: dict, message: str) -> None:
    DatasetCatalog.register("theirs", list)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        register_custom([{**coco, **changes}])


def test_entries_of_another_type(coco: dict, mini_lvis: MiniLvis) -> None:
    mini_lvis.write("mine.json", '{"categories": [{"id": 1, "name": "a"}]}')
    with pytest.raises(ValueError, match='"videos".* "images"'):
        register_custom([coco])
    with pytest.raises(ValueError, match=r"expected name, .* 'mine.yaml'"):
        register_custom(["mine.yaml"])
