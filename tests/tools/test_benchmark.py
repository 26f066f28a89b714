import argparse
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from ovformer_tools.benchmarks import measure
from support.video_models import TINY

TOOL = "benchmark"
ROOT = Path(__file__).parents[2]
SMALL = ["--size", "60", "90", "--repeats", "1", "--device", "cpu"]
TINY_MODEL = {
    **TINY,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 9,
    "MODEL.CLIP.EMBED_DIM": 16,
    "INPUT.MIN_SIZE_TEST": 60,
}
TINY_OPTS = ["--", *(str(word) for pair in TINY_MODEL.items() for word in pair)]
SCORING = ["--videos", "6", "--predictions", "20", "--frames", "2", "--classes", "9"]


def test_scorers_agree(tool, reference, tmp_path) -> None:
    scoring = tool.video_scoring
    expected = json.loads(reference("eval_small_stats.json").read_text())["lvvis"]["stats"]
    files = reference("eval_small_gt.json"), reference("eval_small_dt.json")
    np.testing.assert_allclose(scoring.plain_scorer.score(*files), expected, rtol=0, atol=1e-12)
    files = tmp_path / "truth.json", tmp_path / "results.json"
    scoring._generate(tool.make_parser().parse_args(["eval", *SCORING]), *files)
    assert len(json.loads(files[1].read_text())) == 6 * 20
    ours = scoring.score_with_ours(*files)
    np.testing.assert_allclose(ours, scoring.plain_scorer.score(*files), rtol=0, atol=1e-12)
    assert 0.1 < ours[0] < 0.9


@pytest.mark.slow
def test_eval_reports_times_and_memory(tool, tmp_path, capsys) -> None:
    tool.main(["eval", *SCORING, "--repeats", "1", "--out", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["times faster"] > 0 and figures["plain, MB"] >= 0
    assert "times faster:" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", "ops", "train-step", "video", "eval"])
def test_help(tool, name, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        tool.main([*name.split(), "--help"])
    assert stop.value.code == 0 and (name or "eval") in capsys.readouterr().out


def test_commands_of_docs_performance_parse(tool, tmp_path) -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    lines = [
        shlex.split(line.split("#")[0])
        for block in re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    commands = [words[2:] for words in lines if words[1:2] == ["tools/benchmark.py"]]
    documented_elsewhere = {"identities"}
    assert {words[0] for words in commands} == set(tool.BENCHMARKS) - documented_elsewhere
    for words in commands:
        args = tool.make_parser().parse_args(words)
        if hasattr(args, "config_file"):
            args.config_file = str(ROOT / args.config_file)
            for changes in ([], *(changes for _, *changes in args.variant)):
                tool.video_inference.synthetic.load_config(args, tmp_path, changes)


VIDEO, TRAIN_STEP = ["video", "--frames", "3"], ["train-step", "--batch", "2"]


@pytest.mark.parametrize(
    ("words", "config", "figures"),
    [
        (VIDEO, "lvvis/ovformer_R50_bs8", {"score difference", "same masks"}),
        (VIDEO, "lvvis/video_ovformer_R50_bs8", {"score difference", "same masks"}),
        (TRAIN_STEP, "lvis/ovformer_R50_bs8", {"loss difference", "gradient difference"}),
        (TRAIN_STEP, "lvvis/ovformer_R50_bs8", {"loss difference", "gradient difference"}),
        (TRAIN_STEP, "lvvis/video_ovformer_R50_bs8", {"loss difference", "gradient difference"}),
    ],
)
def test_whole_networks_equal_the_plain_one(tool, words, config, figures, tmp_path, capsys) -> None:
    out = tmp_path / "figures" / "out.json"
    words = [*words, *SMALL, "--config-file", str(ROOT / "configs" / f"{config}.yaml")]
    words += ["--variant", "larger windows", "MODEL.MASK_FORMER.TEST.WINDOW_SIZE", "2"]
    tool.main([*words, "--out", str(out), *TINY_OPTS])
    content = json.loads(out.read_text())
    assert content["processor"] and content["threads"] == torch.get_num_threads()
    rows = {row["way"]: row for row in content["rows"]}
    assert list(rows) == ["plain", "ours, PyTorch kernel", "ours", "larger windows"]
    assert rows["plain"]["times faster"] == 1 and rows["plain"]["seconds"] > 0
    assert all(row["against"] == "plain" and row["peak MB"] >= 0 for row in rows.values())
    assert all(figures <= set(row) for way, row in rows.items() if way != "plain")
    # Rounding is much smaller than what the tool allows.
    assert rows["ours"].get("loss difference", 0) < 1e-5
    assert "larger windows" in capsys.readouterr().out


def test_ops_compares_each_kernel_with_the_pytorch_one(tool, tmp_path) -> None:
    words = ["ops", "--size", "64", "96", *SMALL[3:], "--kernel", "torch"]
    words += ["--dtype", "float32", "bfloat16", "--out", str(tmp_path / "out.json")]
    tool.main(words)
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    directions = ("forward", "forward+backward")
    expected = [(what, dtype) for dtype in ("float32", "bfloat16") for what in directions]
    assert [(row["what"], row["type"]) for row in rows] == expected
    assert all(row["way"] == "torch" and row["queries"] == 8 * 12 + 4 * 6 + 2 * 3 for row in rows)


def test_nothing_is_timed_that_computes_something_else(tool, monkeypatch) -> None:
    def measure_scorer(name: str, *_: object) -> dict:
        return {"seconds": 1.0, "scores": [0.5 if name == "ours" else 0.6]}

    scoring, ops = tool.video_scoring, tool.attention_ops
    monkeypatch.setattr(scoring, "_generate", lambda args, truth, results: results.touch())
    monkeypatch.setattr(scoring, "_measure_in_process", measure_scorer)
    with pytest.raises(RuntimeError, match="do not agree"):
        scoring.run(argparse.Namespace(repeats=1))

    monkeypatch.setattr(ops, "KERNELS", {"torch": None, "wrong": None})
    monkeypatch.setattr(ops, "_unavailable_reason", lambda name, device: None)
    monkeypatch.setattr(ops, "_bind", lambda f, x, name: lambda: [torch.ones(2) * ord(name[0])])
    with pytest.raises(RuntimeError, match="kernel wrong differs"):
        tool.main(["ops", *SMALL])

    predict = tool.video_inference.plain_video.PlainNetwork.forward

    def negate_masks(*args: object) -> dict:
        outputs = predict(*args)
        return {**outputs, "pred_masks": -outputs["pred_masks"]}

    plain_network = tool.video_inference.plain_video.PlainNetwork
    monkeypatch.setattr(plain_network, "forward", negate_masks)
    with pytest.raises(RuntimeError, match="do not agree"):
        tool.main(["video", "--frames", "3", *SMALL, *TINY_OPTS])


@pytest.mark.parametrize("before", [None, "torch"])
def test_a_forced_kernel_is_reset(monkeypatch, before) -> None:
    monkeypatch.delenv(measure.KERNEL_VARIABLE, raising=False)
    if before:
        monkeypatch.setenv(measure.KERNEL_VARIABLE, before)
    with pytest.raises(ZeroDivisionError), measure.force_kernel("cpu"):
        assert measure.os.environ[measure.KERNEL_VARIABLE] == "cpu"
        raise ZeroDivisionError
    assert measure.os.environ.get(measure.KERNEL_VARIABLE) == before
