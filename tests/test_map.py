import csv
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import mAP  # noqa: E402


@pytest.fixture
def files(reference, tmp_path) -> list[str]:
    """Options that name the recorded results, as those of a run, and their ground truth."""
    _results(tmp_path).parent.mkdir(parents=True)
    _results(tmp_path).write_bytes(reference("eval_small_dt.json").read_bytes())
    return ["--dt", str(tmp_path / "run"), "--gt", str(reference("eval_small_gt.json"))]


@pytest.fixture
def run(files, capsys):
    """A function that calls mAP.py on these files and returns what it prints."""

    def call(*arguments: str) -> str:
        mAP.main([*files, *arguments])
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("lvvis", ["--et", '("lvvis_val",)']),  # the published name of a data set
        ("burst", ["--et", "burst_val", "--protocol", "published"]),
    ],
)
def test_prints_the_published_table(reference, run, tmp_path, name, arguments) -> None:
    if name == "burst":  # the published place of BURST's results
        folder = tmp_path / "run" / "inference"
        (folder / "lvvis_val" / "results.json").rename(folder / "results.json")
    expected = json.loads(reference("eval_small_stats.json").read_text())[name]["printed"]
    assert "\n".join(expected) in run(*arguments)


def test_published_protocol_is_marked(run, tmp_path) -> None:
    out = tmp_path / "scores"
    burst = ["--et", "burst_val", "--dt", str(_results(tmp_path))]
    printed = run(*burst, "--protocol", "published", "--out", str(out))
    assert "protocol published" in printed and "many predictions" in printed
    content = json.loads((out / "scores_published.json").read_text())
    assert content["protocol"] == "published" and "many predictions" in content["note"]
    assert "many predictions" not in run(*burst)


def test_files(run, reference, tmp_path) -> None:
    run()
    folder = tmp_path / "run" / "inference" / "lvvis_val"
    content = json.loads((folder / "scores.json").read_text())
    expected = json.loads(reference("eval_small_stats.json").read_text())["lvvis"]
    assert content["groups"]["all"]["AP50"] == pytest.approx(expected["stats"][1], abs=1e-12)
    assert content["groups"]["novel"]["APm"] is None
    assert [c["AP"] for c in content["per_class"]] == pytest.approx(expected["per_category_AP"])
    assert content["dataset"] == "lvvis_val" and content["results"].endswith("results.json")
    rows = list(csv.DictReader((folder / "scores.csv").open()))
    assert [row["name"] for row in rows[:4]] == ["all", "base", "novel", "c0"]
    assert float(rows[0]["AP"]) == pytest.approx(expected["stats"][0], abs=1e-6)
    assert rows[0]["APm"] == "" and len(rows) == 15


def test_notes_about_unusual_results(run, tmp_path) -> None:
    assert "Note" not in run()
    path = _results(tmp_path)
    results = json.loads(path.read_text())
    kept = [entry for entry in results if entry["video_id"] != results[0]["video_id"]]
    path.write_text(json.dumps(kept + kept[:3]))
    printed = run()
    assert "Note: no prediction for " in printed
    assert "Note: 3 predictions repeat earlier ones, with the same score and masks" in printed


def test_identities(run, tmp_path) -> None:
    pytest.importorskip("trackeval", reason="needs the extra [eval]")
    groups = {"all", "base", "novel", "class_agnostic"}
    for options, name in (((), "scores_hota"), (("--merge-tracks",), "scores_hota_merged")):
        run("--protocol", "hota", *options)
        content = json.loads((_results(tmp_path).parent / f"{name}.json").read_text())
        assert set(content["groups"]) == groups
        assert set(content["groups"]["all"]) == {"HOTA", "DetA", "AssA", "IDSW"}


def test_hota_of_burst(run, tmp_path) -> None:
    pytest.importorskip("trackeval", reason="needs the extra [eval]")
    printed = run("--et", "burst_val", "--protocol", "hota", "--dt", str(_results(tmp_path)))
    words = [line.split()[0] for line in printed.splitlines()[1:6]]
    assert words == ["Metric", "HOTA", "DetA", "AssA", "AP"]
    content = json.loads((_results(tmp_path).parent / "scores_hota.json").read_text())
    assert set(content["groups"]) == {"all", "base", "novel", "common", "uncommon"}


def _results(tmp_path: Path) -> Path:
    return tmp_path / "run" / "inference" / "lvvis_val" / "results.json"


def test_ground_truth_of_the_data_set(
    reference, run, tmp_path, monkeypatch, capsys, user_error
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "sets"))
    assert "val_instances_.json" in user_error(mAP.main, "--dt", tmp_path / "run")
    path = tmp_path / "sets" / "LVVIS" / "val" / "val_instances_.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(reference("eval_small_gt.json").read_bytes())
    mAP.main(["--dt", str(tmp_path / "run")])
    assert "APn @[" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["--et", "lvis_val"], ["--et", "'lvis_val'", "'lvvis_val'"]),
        (["--et", "lvis_v1_val"], ["--et", "train_net.py"]),
        (["--score-threshold", "2"], ["--score-threshold", "2"]),
        (["--dt", "nowhere"], ["nowhere"]),
        (["--out", "{results}/scores"], ["results.json"]),
    ],
)
def test_wrong_arguments(files, user_error, tmp_path, arguments, keys) -> None:
    words = [word.format(results=_results(tmp_path)) for word in arguments]
    message = user_error(mAP.main, *files, *words)
    assert all(key in message for key in keys)


@pytest.mark.parametrize(
    ("damage", "key"),
    [
        (lambda entries: json.dumps(entries)[:-500], "cut off"),
        (lambda entries: json.dumps([{**entries[0], "video_id": 777}]), "video 777"),
    ],
)
def test_damaged_results(files, user_error, tmp_path, damage, key) -> None:
    path = _results(tmp_path)
    path.write_text(damage(json.loads(path.read_text())))
    message = user_error(mAP.main, *files)
    assert "results.json" in message and key in message
