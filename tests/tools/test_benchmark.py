"""tools/benchmark.py."""

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

TOOLS = Path(__file__).parents[2] / "tools"
SMALL = ["--size", "60", "90", "--repeats", "1", "--device", "cpu", "--frames", "3"]
TINY_OPTS = [
    str(word)
    for key, value in {
        **TINY,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 9,
        "MODEL.CLIP.EMBED_DIM": 16,
        "INPUT.MIN_SIZE_TEST": 60,
    }.items()
    for word in (key, value)
]


@pytest.fixture(scope="module")
def benchmark(load_tool):
    return load_tool("benchmark")


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


@pytest.mark.parametrize("name", ["", "ops", "train-step", "video", "eval"])
def test_help(benchmark, name, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        benchmark.main([*name.split(), "--help"])
    assert stop.value.code == 0 and (name or "eval") in capsys.readouterr().out


def test_commands_of_docs_performance_parse(benchmark, tmp_path) -> None:
    page = (TOOLS.parent / "docs" / "performance.md").read_text(encoding="utf-8")
    lines = [
        shlex.split(line.split("#")[0])
        for block in re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    commands = [words[2:] for words in lines if words[1:2] == ["tools/benchmark.py"]]
    assert {words[0] for words in commands} == set(benchmark.BENCHMARKS)
    for words in commands:
        args = benchmark.make_parser().parse_args(words)
        if hasattr(args, "config_file"):
            args.config_file = str(TOOLS.parent / args.config_file)
            for changes in ([], *(changes for _, *changes in args.variant)):
                benchmark.video_inference.synthetic.load_config(args, tmp_path, changes)


@pytest.mark.parametrize("config", ["ovformer_R50_bs8", "video_ovformer_R50_bs8"])
@pytest.mark.parametrize(
    "name, differences",
    [
        ("video", {"score difference", "same masks"}),
        ("train-step", {"loss difference", "gradient difference"}),
    ],
)
def test_whole_networks_equal_the_plain_one(
    benchmark, config, name, differences, tmp_path, capsys
) -> None:
    out = tmp_path / "figures" / "out.json"
    variant = ["--variant", "larger windows", "MODEL.MASK_FORMER.TEST.WINDOW_SIZE", "2"]
    file = ["--config-file", str(TOOLS.parent / "configs" / "lvvis" / f"{config}.yaml")]
    benchmark.main([name, *SMALL, *file, *variant, "--out", str(out), "--", *TINY_OPTS])
    figures = json.loads(out.read_text())
    assert figures["processor"] and figures["threads"] == torch.get_num_threads()
    rows = {row["way"]: row for row in figures["rows"]}
    assert list(rows) == ["plain", "ours, PyTorch kernel", "ours", "larger windows"]
    assert rows["plain"]["times faster"] == 1 and rows["plain"]["seconds"] > 0
    for row in rows.values():
        assert row["against"] == "plain" and row["peak MB"] >= 0
        assert row["way"] == "plain" or differences <= set(row)
    assert "larger windows" in capsys.readouterr().out


def test_a_network_that_differs_is_not_timed(benchmark, monkeypatch) -> None:
    plain = benchmark.video_inference.plain_video.PlainNetwork
    wrong = plain.forward
    monkeypatch.setattr(
        plain,
        "forward",
        lambda self, *a: (
            {k: -v for k, v in wrong(self, *a).items() if k[0] == "p"} | {"aux_outputs": []}
        ),
    )
    with pytest.raises(RuntimeError, match="do not agree"):
        benchmark.main(["video", *SMALL, "--", *TINY_OPTS])


@pytest.mark.parametrize(
    "config, frames",
    [
        ("lvis/ovformer_R50_bs8", 0),
        ("lvvis/ovformer_R50_bs8", 2),
        ("lvvis/video_ovformer_R50_bs8", 2),
    ],
)
def test_plain_losses_equal_ours(benchmark, config, frames, tmp_path) -> None:
    step = benchmark.train_step
    sizes = argparse.Namespace(
        config_file=str(TOOLS.parent / "configs" / f"{config}.yaml"),
        device="cpu",
        opts=TINY_OPTS,
        variant=[],
        seed=0,
    )
    models = step.synthetic.build_networks(sizes, tmp_path)
    ours, plain = models["ours"].train(), models["plain"].train()
    cfg = step.synthetic.load_config(sizes, tmp_path)
    batch = step.synthetic.training_batch(2, frames, (60, 90), 3, cfg, seed=1)
    torch.manual_seed(5)
    expected = step.plain_loss(plain, batch)
    torch.manual_seed(5)
    got = sum(ours(batch).values())
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)


def test_ops_compares_each_kernel_with_the_pytorch_one(benchmark, tmp_path) -> None:
    out = tmp_path / "out.json"
    arguments = ["--size", "64", "96", "--repeats", "1", "--device", "cpu", "--kernel", "torch"]
    benchmark.main(["ops", *arguments, "--dtype", "float32", "bfloat16", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [(row["what"], row["type"]) for row in rows] == [
        (what, dtype)
        for dtype in ("float32", "bfloat16")
        for what in ("forward", "forward+backward")
    ]
    assert all(row["way"] == "torch" and row["queries"] == 8 * 12 + 4 * 6 + 2 * 3 for row in rows)


def test_ops_refuses_a_kernel_that_is_wrong(benchmark, monkeypatch) -> None:
    ops = benchmark.attention_ops
    monkeypatch.setattr(ops, "KERNELS", {"torch": None, "wrong": None})
    monkeypatch.setattr(ops, "_unavailable_reason", lambda name, device: None)
    monkeypatch.setattr(
        ops,
        "_bind",
        lambda function, inputs, name: (
            lambda: [torch.ones(2) if name == "torch" else torch.zeros(2)]
        ),
    )
    with pytest.raises(RuntimeError, match="kernel wrong differs"):
        benchmark.main(["ops", "--size", "64", "96", "--repeats", "1", "--device", "cpu"])


@pytest.mark.parametrize("before", [None, "torch"])
def test_a_forced_kernel_is_reset(monkeypatch, before) -> None:
    monkeypatch.delenv(measure.KERNEL_VARIABLE, raising=False)
    if before:
        monkeypatch.setenv(measure.KERNEL_VARIABLE, before)
    with pytest.raises(ZeroDivisionError), measure.force_kernel("cpu"):
        assert measure.os.environ[measure.KERNEL_VARIABLE] == "cpu"
        raise ZeroDivisionError
    assert measure.os.environ.get(measure.KERNEL_VARIABLE) == before
