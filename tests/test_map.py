import csv
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import mAP  # noqa: E402


@pytest.fixture
def run(reference, tmp_path, capsys):
    """Call mAP.py on the recorded results of a run; gives what it printed."""
    results = tmp_path / "run" / "inference" / "lvvis_val" / "results.json"
    results.parent.mkdir(parents=True)
    results.write_bytes(reference("eval_small_dt.json").read_bytes())

    def call(*arguments: str) -> str:
        truth = ["--gt", str(reference("eval_small_gt.json"))]
        mAP.main(["--dt", str(tmp_path / "run"), *truth, *arguments])
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("lvvis", ["--et", "lvvis_val"]), ("burst", ["--et", "burst_val", "--protocol", "published"])],
)
def test_prints_the_published_table(reference, run, tmp_path, name, arguments) -> None:
    if name == "burst":  # the published place of BURST's results
        folder = tmp_path / "run" / "inference"
        (folder / "lvvis_val" / "results.json").rename(folder / "results.json")
    expected = json.loads(reference("eval_small_stats.json").read_text())[name]["printed"]
    assert "\n".join(expected) in run(*arguments)


def test_published_name_of_a_data_set(run) -> None:
    assert run("--et", '("lvvis_val",)') == run("--et", "lvvis_val")


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


def test_what_is_seldom_meant_is_told(run, tmp_path) -> None:
    assert "joined" not in run()
    path = tmp_path / "run" / "inference" / "lvvis_val" / "results.json"
    results = json.loads(path.read_text())
    ids = sorted({entry["video_id"] for entry in results})
    path.write_text(json.dumps([e for e in results if e["video_id"] != ids[0]]))
    assert "Note: no prediction for " in run()
    path.write_text(json.dumps(results + results[:3]))
    assert "Note: 3 predictions repeat earlier ones, with the same score and masks" in run()


def test_a_place_that_can_not_be_written_to(run, tmp_path) -> None:
    path = tmp_path / "run" / "inference" / "lvvis_val" / "results.json"
    with pytest.raises(SystemExit, match="results.json"):
        run("--out", str(path / "scores"))


def test_hota(run, tmp_path) -> None:
    pytest.importorskip("trackeval", reason="needs the extra [eval]")
    printed = run("--et", "burst_val", "--protocol", "hota", "--dt", str(_results(tmp_path)))
    assert [line.split()[0] for line in printed.splitlines()[1:6]] == [
        "Metric",
        "HOTA",
        "DetA",
        "AssA",
        "AP",
    ]
    content = json.loads((_results(tmp_path).parent / "scores_hota.json").read_text())
    assert set(content["groups"]) == {"all", "base", "novel", "common", "uncommon"}


def _results(tmp_path: Path) -> Path:
    return tmp_path / "run" / "inference" / "lvvis_val" / "results.json"


@pytest.mark.parametrize("name", ["ytvis_2019_val", "ytvis_2021_train", "ovis_val", "lvvis_train"])
def test_any_video_set(request, tmp_path, capsys, name) -> None:
    truth, predictions = request.getfixturevalue("make_video_set")(1)
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(predictions))
    mAP.main(["--dt", str(tmp_path), "--et", name, "--gt", str(tmp_path / "gt.json")])
    assert "AP @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0." in capsys.readouterr().out


def test_ground_truth_of_the_data_set(reference, run, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "sets"))
    with pytest.raises(SystemExit, match=r"LVVIS.val.val_instances_\.json"):
        mAP.main(["--dt", str(tmp_path / "run")])
    path = tmp_path / "sets" / "LVVIS" / "val" / "val_instances_.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(reference("eval_small_gt.json").read_bytes())
    mAP.main(["--dt", str(tmp_path / "run")])
    assert "APn @[" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--et", "lvis_val"], "--et: unknown dataset 'lvis_val'. Did you mean 'lvvis_val'"),
        (["--et", "lvis_v1_val"], "is not a video data set"),
        (["--protocol", "hota"], "lvvis_val has none"),
        (["--dt", "nowhere"], "No results of lvvis_val in nowhere"),
    ],
)
def test_errors_end_with_a_message(run, arguments, message) -> None:
    with pytest.raises(SystemExit, match=message):
        run(*arguments)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda entries: json.dumps(entries)[:-500], "is cut off"),
        (lambda entries: json.dumps([{**entries[0], "video_id": 777}]), "another data set"),
        (lambda entries: json.dumps([{**entries[0], "score": float("nan")}]), "score nan"),
        (lambda entries: json.dumps([{**entries[0], "segmentations": []}]), "has 0 segmentations"),
    ],
)
def test_damaged_results(run, tmp_path, damage, message) -> None:
    path = _results(tmp_path)
    path.write_text(damage(json.loads(path.read_text())))
    with pytest.raises(SystemExit, match=message):
        run()


def test_help(capsys) -> None:
    with pytest.raises(SystemExit):
        mAP.main(["--help"])
    assert "--protocol" in capsys.readouterr().out
