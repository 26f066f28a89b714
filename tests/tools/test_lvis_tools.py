"""tools/remove_lvis_rare.py and tools/get_lvis_cat_info.py."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from ovformer.d2 import DatasetCatalog
from support.lvis_fixture import CATEGORIES, MiniLvis

TOOLS = Path(__file__).parents[2] / "tools"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


remove_lvis_rare, get_lvis_cat_info = map(load, ("remove_lvis_rare", "get_lvis_cat_info"))
TOOL_MODULES = [remove_lvis_rare, get_lvis_cat_info]


def test_rare_annotations_go_and_all_else_stays(
    mini_lvis: MiniLvis,
    capsys: pytest.CaptureFixture,
) -> None:
    target = mini_lvis.root / "lvis" / "lvis_v1_train_norare.json"
    target.unlink()
    remove_lvis_rare.main([])  # by default LVIS's training set under the dataset root
    assert "5 of 7 annotations kept" in capsys.readouterr().out
    kept = json.loads(target.read_text())
    expected = [a for a in mini_lvis.content["annotations"] if a["category_id"] not in (13, 14)]
    assert kept == {**mini_lvis.content, "annotations": expected}
    records = DatasetCatalog.get("lvis_v1_train_norare")
    assert {a["category_id"] for record in records for a in record["annotations"]} == {0, 2}


def test_out_names_another_file(mini_lvis: MiniLvis, tmp_path: Path) -> None:
    source = mini_lvis.write("mine.json")
    remove_lvis_rare.main(["--ann", str(source), "--out", str(tmp_path / "new" / "out.json")])
    assert len(json.loads((tmp_path / "new" / "out.json").read_text())["annotations"]) == 5
    remove_lvis_rare.main(["--ann", str(source)])
    assert (source.parent / "mine_norare.json").is_file()


def test_counts(mini_lvis: MiniLvis, tmp_path: Path) -> None:
    get_lvis_cat_info.main([])
    found = json.loads((mini_lvis.root / "metadata" / "lvis_v1_train_cat_info.json").read_text())
    counts = {1: (2, 2), 3: (3, 3), 13: (1, 1), 14: (1, 1)}
    assert found == [
        {**c, "image_count": counts[c["id"]][0], "instance_count": counts[c["id"]][1]}
        for c in CATEGORIES
    ]
    mini_lvis.content["annotations"].append(dict(mini_lvis.content["annotations"][0], id=1))
    source = mini_lvis.write("mine.json")
    out = tmp_path / "out.json"
    arguments = ["--ann", str(source), "--out", str(out)]
    get_lvis_cat_info.main([*arguments, "--add_freq", "--r_thresh", "2", "--c_thresh", "3"])
    found = json.loads(out.read_text())
    assert [c["frequency"] for c in found] == ["c", "f", "r", "r"]
    assert (found[0]["image_count"], found[0]["instance_count"]) == (2, 3)


def test_the_published_thresholds() -> None:
    found = [get_lvis_cat_info.frequency(n, 10, 100) for n in (0, 9, 10, 99, 100)]
    assert found == ["r", "r", "c", "c", "f"]


def test_counts_of_categories_without_annotation() -> None:
    content = {"annotations": [], "categories": [{"id": 4, "name": "a"}]}
    assert get_lvis_cat_info.count_categories(content) == [
        {"id": 4, "name": "a", "image_count": 0, "instance_count": 0}
    ]


@pytest.mark.parametrize("tool", TOOL_MODULES, ids=lambda tool: tool.__name__)
def test_bad_files_are_named(mini_lvis: MiniLvis, tool: ModuleType) -> None:
    with pytest.raises(FileNotFoundError, match="none.json: no such file"):
        tool.main(["--ann", str(mini_lvis.root / "none.json")])
    path = mini_lvis.write(text='{"annotations": [')
    with pytest.raises(ValueError, match="lvis_v1_train.json: not valid JSON.*truncated"):
        tool.main(["--ann", str(path)])
    mini_lvis.write(text='{"images": []}')
    with pytest.raises(ValueError, match="no 'annotations' and no 'categories'"):
        tool.main([])


def test_rareness_has_to_be_known(mini_lvis: MiniLvis) -> None:
    mini_lvis.content["categories"] = [{"id": c["id"], "name": c["name"]} for c in CATEGORIES]
    mini_lvis.write()
    with pytest.raises(ValueError, match="has a frequency.*--add_freq"):
        remove_lvis_rare.main([])
