"""The four tools that count or remove annotations by category."""

import json
from pathlib import Path

import numpy as np
import pytest

from ovformer.d2 import DatasetCatalog
from ovformer_tools import category_files
from support.masks import compressed_rle
from support.mini_lvis import CATEGORIES, MiniLvis

LVVIS = [
    {"id": 1, "name": "accordion", "partition": 3},
    {"id": 3, "name": "aerosol_can", "partition": 1},
    {"id": 6, "name": "airplane", "partition": 0},
]


@pytest.fixture
def lvvis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The training annotations of LV-VIS: two videos, of 3 and 5 frames, in a dataset root."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    lengths = {4: 3, 9: 5}
    videos = [
        {"id": number, "height": 8, "width": 10, "length": length}
        | {"file_names": [f"{number:05d}/{t}.jpg" for t in range(length)]}
        for number, length in lengths.items()
    ]
    mask = compressed_rle(np.eye(8, 10, dtype=bool))
    annotations = [
        {"id": i, "video_id": v, "category_id": c, "segmentations": [mask] * lengths[v]}
        for i, (v, c) in enumerate([(4, 3), (4, 3), (9, 3), (9, 1)], start=1)
    ]
    path = tmp_path / "LVVIS" / "train" / "train_instances_.json"
    path.parent.mkdir(parents=True)
    content = {"videos": videos, "annotations": annotations, "categories": LVVIS}
    path.write_text(json.dumps(content))
    return path


def test_rare_annotations_are_removed(load_tool, mini_lvis: MiniLvis, tmp_path, capsys) -> None:
    tool = load_tool("remove_lvis_rare")
    target = mini_lvis.root / "lvis" / "lvis_v1_train_norare.json"
    target.unlink()
    tool.main([])  # by default LVIS's training set in the dataset root
    assert "5 of 7 annotations kept" in capsys.readouterr().out
    expected = [a for a in mini_lvis.content["annotations"] if a["category_id"] not in (13, 14)]
    assert json.loads(target.read_text()) == {**mini_lvis.content, "annotations": expected}
    records = DatasetCatalog.get("lvis_v1_train_norare")
    assert {a["category_id"] for record in records for a in record["annotations"]} == {0, 2}
    source, out = mini_lvis.write("mine.json"), tmp_path / "new" / "out.json"
    tool.main(["--ann", str(source), "--out", str(out)])
    tool.main(["--ann", str(source)])
    assert out.read_bytes() == source.with_name("mine_norare.json").read_bytes()


def test_counts_of_images(load_tool, mini_lvis: MiniLvis, tmp_path: Path) -> None:
    tool = load_tool("get_lvis_cat_info")
    tool.main([])
    found = json.loads((mini_lvis.root / "metadata" / "lvis_v1_train_cat_info.json").read_text())
    counts = {1: 2, 3: 3, 13: 1, 14: 1}
    assert found == [
        {**c, "image_count": counts[c["id"]], "instance_count": counts[c["id"]]} for c in CATEGORIES
    ]
    mini_lvis.content["annotations"].append(dict(mini_lvis.content["annotations"][0], id=1))
    source, out = mini_lvis.write("mine.json"), tmp_path / "out.json"
    words = ["--ann", str(source), "--out", str(out), "--add_freq"]
    tool.main([*words, "--r_thresh", "2", "--c_thresh", "3"])
    found = json.loads(out.read_text())
    assert [c["frequency"] for c in found] == ["c", "f", "r", "r"]
    assert (found[0]["image_count"], found[0]["instance_count"]) == (2, 3)
    # The published thresholds are 10 and 100 images.
    counts = enumerate((9, 10, 99, 100), start=1)
    annotations = [
        {"id": 1000 * c + i, "image_id": i, "category_id": c} for c, n in counts for i in range(n)
    ]
    categories = [{"id": c} for c in range(1, 5)]
    source.write_text(json.dumps({"annotations": annotations, "categories": categories}))
    tool.main(words)
    assert [c["frequency"] for c in json.loads(out.read_text())] == ["r", "c", "c", "f"]


def test_novel_annotations_are_removed(load_tool, lvvis: Path, capsys, user_error) -> None:
    tool = load_tool("remove_lvvis_novel")
    tool.main([])
    assert "3 of 4 annotations kept" in capsys.readouterr().out
    before = json.loads(lvvis.read_text())
    after = json.loads((lvvis.parent / "train_instances_nonovel.json").read_text())
    assert after == {**before, "annotations": before["annotations"][:3]}
    before["categories"][0].pop("partition")
    lvvis.write_text(json.dumps(before))
    message = user_error(tool.main, "--ann", lvvis)
    assert str(lvvis) in message and "'accordion'" in message and "partition" in message


def test_counts_of_frames(load_tool, lvvis: Path, tmp_path: Path) -> None:
    load_tool("remove_lvvis_novel").main([])
    load_tool("get_lvvis_cat_info").main(["--add_freq"])
    found = json.loads((tmp_path / "metadata" / "lvvis_train_cat_info.json").read_text())
    counts = {c["id"]: (c["image_count"], c["instance_count"], c["frequency"]) for c in found}
    # A video counts once for a category, with all its frames.
    assert counts == {1: (0, 0, "n"), 3: (8, 11, "b"), 6: (0, 0, "n")}
    out = tmp_path / "out.json"
    load_tool("get_lvvis_cat_info").main(["--ann", str(lvvis), "--out", str(out)])
    found = json.loads(out.read_text())
    assert [c["image_count"] for c in found] == [5, 8, 0] and "frequency" not in found[0]


@pytest.mark.parametrize("name", ["remove_lvis_rare", "get_lvis_cat_info"])
def test_missing_keys(load_tool, mini_lvis: MiniLvis, user_error, name: str) -> None:
    mini_lvis.write(text='{"images": []}')
    message = user_error(load_tool(name).main)
    assert "'annotations'" in message and "'categories'" in message


@pytest.mark.parametrize(
    ("select", "changes", "key"),
    [
        (category_files.without_rare, {"categories": [{"id": 1, "name": "a"}]}, "--add_freq"),
        (category_files.without_rare, {"annotations": [{"category_id": 77}]}, "77"),
        (category_files.without_novel, {"annotations": [{"category_id": "1"}]}, "category_id"),
    ],
)
def test_incomplete_entries(select, changes: dict, key: str) -> None:
    categories = [{"id": 1, "name": "a", "frequency": "r", "partition": 0}]
    with pytest.raises(ValueError, match=key):
        select({"annotations": [], "categories": categories, **changes})
