"""Data sets of DATASETS.CUSTOM."""

import json
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import DatasetCatalog, MetadataCatalog
from ovformer.data.catalog.custom import register_custom
from ovformer.data.catalog.dataset_spec import check_class_count
from support.masks import compressed_rle, rectangle
from support.mini_videos import MiniVideos

ROOT = Path(__file__).parents[2]

BIRDS = [{"id": 7, "name": "wren"}, {"id": 2, "name": "robin"}, {"id": 9, "name": "owl"}]


@pytest.fixture
def forget():
    """Leave the catalogs as they were."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """The annotation file of two images in COCO's format."""
    (tmp_path / "pictures").mkdir()
    images = [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in (4, 5)]
    for image in images:
        Image.new("RGB", (30, 20)).save(tmp_path / "pictures" / image["file_name"])
    mask = rectangle((20, 30), 2, 3, 12, 13)
    annotations = [
        {
            "id": number,
            "image_id": 4,
            "category_id": category_id,
            "bbox": [2, 3, 10, 10],
            "area": 100,
            "iscrowd": 0,
            "segmentation": compressed_rle(mask),
        }
        for number, category_id in enumerate((2, 2, 9), start=1)
    ]
    path = tmp_path / "birds.json"
    content = {"images": images, "annotations": annotations, "categories": BIRDS}
    path.write_text(json.dumps(content))
    return path


def entry(coco: Path, **changes: object) -> dict:
    plain = {
        "name": "my_birds",
        "annotations": str(coco),
        "images": str(coco.parent / "pictures"),
        "novel": ["wren", 9],
    }
    return {**plain, **changes}


def test_images(coco: Path, forget: None) -> None:
    register_custom([entry(coco)])
    records = DatasetCatalog.get("my_birds")
    assert [Path(record["file_name"]).name for record in records] == ["4.png", "5.png"]
    assert [a["category_id"] for a in records[0]["annotations"]] == [0, 0, 2]
    metadata = MetadataCatalog.get("my_birds")
    assert metadata.thing_classes == ["robin", "wren", "owl"]
    assert metadata.class_groups == {"base": [0], "novel": [1, 2]}
    assert metadata.evaluator_type == "lvis"
    counts = [
        (c["image_count"], c["instance_count"], c["frequency"]) for c in metadata.category_info
    ]
    assert counts == [(1, 2, "b"), (0, 0, "n"), (1, 1, "b")]
    register_custom([entry(coco, name="without_novel", novel=[])])
    assert MetadataCatalog.get("without_novel").class_groups == {}


def test_videos_named_in_a_yaml_or_on_the_command_line(
    mini_videos: MiniVideos, tmp_path: Path, forget: None
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
    records = DatasetCatalog.get("my_videos")
    same = DatasetCatalog.get("ytvis_2019_val")
    assert [r["file_names"] for r in records] == [r["file_names"] for r in same]
    assert records[0]["annotations"] == same[0]["annotations"]
    metadata = MetadataCatalog.get("my_videos")
    assert metadata.evaluator_type == "vis"
    assert metadata.class_groups["novel"] == [5] and len(metadata.class_groups["base"]) == 39
    person = metadata.category_info[0]
    assert (person["image_count"], person["instance_count"]) == (6, 6)


def test_the_example_of_the_readme(mini_videos: MiniVideos, tmp_path: Path, forget: None) -> None:
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
        ({"folder": "x"}, r"unknown \['folder'\]. Known: name, annotations, images, novel"),
        ({"novel": "parrot"}, "no category has the name or id 'parrot'. Names: robin, wren, owl"),
        ({"novel": [8]}, "no category has the name or id 8"),
        ({"name": "lvis_v1_val"}, "'lvis_v1_val' is registered twice"),
        ({"annotations": "nowhere.json"}, "nowhere.json: no such file"),
        ({"annotations": "nowhere.yaml"}, r"expected a \.json file"),
        ({"images": "nowhere"}, "images: no such folder: .*nowhere"),
    ],
)
def test_wrong_entries_are_named(coco: Path, forget: None, changes: dict, message: str) -> None:
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        register_custom([entry(coco, **changes)])


def test_other_entries_that_are_wrong(coco: Path, forget: None) -> None:
    DatasetCatalog.register("theirs", lambda: [])
    with pytest.raises(ValueError, match="name 'theirs'"):
        register_custom([entry(coco, name="theirs")])
    coco.write_text(json.dumps({"categories": BIRDS}))
    with pytest.raises(ValueError, match='"videos".* "images"'):
        register_custom([entry(coco)])
    with pytest.raises(ValueError, match=r"expected name, .* 'birds.yaml'"):
        register_custom(["birds.yaml"])
