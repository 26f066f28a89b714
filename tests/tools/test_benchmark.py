"""tools/benchmark.py."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def benchmark(load_tool, monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    yield load_tool("benchmark")
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]


def test_plain_scorer_equals_the_recorded_one(benchmark, reference, tmp_path) -> None:
    plain = benchmark.video_scoring.plain_scorer
    files = reference("eval_small_gt.json"), reference("eval_small_dt.json")
    expected = json.loads(reference("eval_small_stats.json").read_text())["lvvis"]["stats"]
    np.testing.assert_allclose(plain.score(*files), expected, rtol=0, atol=1e-12)


def test_generated_data_score_the_same_both_ways(benchmark, tmp_path) -> None:
    scoring = benchmark.video_scoring
    sizes = argparse.Namespace(videos=6, predictions=20, frames=2, classes=9, seed=1)
    files = tmp_path / "truth.json", tmp_path / "results.json"
    scoring._generate(sizes, *files)
    assert len(json.loads(files[1].read_text())) == 6 * 20
    ours = scoring.score_with_ours(*files)
    np.testing.assert_allclose(ours, scoring.plain_scorer.score(*files), rtol=0, atol=1e-12)
    assert 0.1 < ours[0] < 0.9


@pytest.mark.slow
def test_eval_reports_times_and_memory(benchmark, tmp_path, capsys) -> None:
    out = tmp_path / "figures.json"
    sizes = ["--videos", "4", "--predictions", "20", "--frames", "2", "--classes", "9"]
    benchmark.main(["eval", *sizes, "--repeats", "1", "--out", str(out)])
    figures = json.loads(out.read_text())
    assert figures["times faster"] > 0 and figures["plain, MB"] >= 0
    assert "times faster:" in capsys.readouterr().out


def test_disagreement_is_an_error(benchmark, monkeypatch) -> None:
    scoring = benchmark.video_scoring
    monkeypatch.setattr(scoring, "_generate", lambda args, truth, results: results.write_text("[]"))
    figures = {"seconds": 1.0, "scores": [0.5]}
    monkeypatch.setattr(
        scoring,
        "_measure_in_process",
        lambda name, *_: {**figures, "scores": [0.5 if name == "ours" else 0.6]},
    )
    with pytest.raises(RuntimeError, match="do not agree"):
        scoring.run(argparse.Namespace(repeats=1))


@pytest.mark.parametrize("arguments", [["--help"], ["eval", "--help"]])
def test_help(benchmark, arguments, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        benchmark.main(arguments)
    assert stop.value.code == 0 and "eval" in capsys.readouterr().out
