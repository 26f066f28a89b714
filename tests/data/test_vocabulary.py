import json
from pathlib import Path

import pytest

from ovformer.data.catalog.dataset_spec import load_categories
from ovformer.data.catalog.vocabulary import list_tables, parse_vocabulary


def test_words() -> None:
    assert parse_vocabulary("dog, red ball ,a cat") == ["dog", "red ball", "a cat"]
    assert parse_vocabulary(["salt, pepper", "dog"]) == ["salt, pepper", "dog"]
    assert parse_vocabulary("Dog,dog,,DOG, red_ball,red  ball") == ["Dog", "red ball"]
    assert parse_vocabulary("犬, красный мяч, 🐕") == ["犬", "красный мяч", "🐕"]
    assert parse_vocabulary("x" * 100_000) == ["x" * 100_000]


def test_tables_by_name() -> None:
    counts = {"lvis": 1203, "lvvis": 1196, "coco": 80, "ytvis_2019": 40, "ovis": 25, "burst": 482}
    assert counts.keys() <= {*list_tables()}
    assert {name: len(parse_vocabulary(name)) for name in counts} == counts
    assert parse_vocabulary("coco")[:2] == ["person", "bicycle"]
    assert parse_vocabulary("ytvis_2019")[1] == "giant panda"
    assert [c["id"] for c in load_categories("coco")][-2:] == [89, 90]


def test_files_and_combinations(tmp_path: Path) -> None:
    file = tmp_path / "my, words.txt"
    file.write_text("\ufeffowl\n\n giant panda \nowl\n", encoding="utf-8")
    assert parse_vocabulary(str(file)) == parse_vocabulary(file) == ["owl", "giant panda"]
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"categories": [{"id": 2, "name": "b"}, {"id": 1, "name": "a"}]}))
    names = parse_vocabulary(f"zebra crossing,coco,{other},mine", {"mine": ["a", "m"]})
    assert names == ["zebra crossing", *parse_vocabulary("coco"), "a", "b", "m"]
    assert parse_vocabulary([file, "coco"])[:3] == ["owl", "giant panda", "person"]


def test_wrong_vocabularies(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file words\.txt"):
        parse_vocabulary("dog,words.txt")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x01")
    for words, message in [
        ("", r"no name in .*burst, coco"),
        (["", " "], "no name"),
        (tmp_path / "empty.txt", "no name"),
        (tmp_path / "binary.txt", "UTF-8"),
        (tmp_path / "words.csv", r"expected a \.txt or \.json file"),
    ]:
        with pytest.raises(ValueError, match=message):
            parse_vocabulary(words)
