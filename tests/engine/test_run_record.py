"""The record of a run: what is in it, and that the run can be repeated from it."""

import json
import shlex
import subprocess
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import BACKEND
from ovformer.engine import run_record
from ovformer.engine.run_record import read_code_state
from ovformer.engine.stages import IMAGE
from ovformer.files import sha256
from ovformer.run import main
from support.tiny_runs import TinyRun

SHORT = ["SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "0", "DATASETS.TEST", "()"]


def records(run: TinyRun) -> list[dict]:
    paths = sorted(run.output.glob("runs/*/run.json"))
    assert [path.parent.name for path in paths] == [f"{n + 1:03d}" for n in range(len(paths))]
    return [json.loads(path.read_text()) for path in paths]


@pytest.mark.slow
def test_a_training_is_repeated_from_its_record(tiny_run: TinyRun, monkeypatch) -> None:
    """With a seed that was drawn, to the bit."""
    monkeypatch.setenv("OVFORMER_ANYTHING", "recorded")
    monkeypatch.setenv("SECRET_TOKEN", "not recorded")
    tiny_run.here(*SHORT, "SEED", "-1")
    (record,) = records(tiny_run)
    first = tiny_run.output / "runs" / "001"
    assert record["outcome"] == "finished" and record["started"] <= record["ended"]
    assert record["command"] == ["train_net.py", *tiny_run.command(*SHORT, "SEED", "-1")]
    assert record["detectron2's names come from"] == BACKEND
    assert record["deformable attention"] and record["processes"] == 1 and record["threads"] >= 1
    assert record["torch"]["version"] == torch.__version__
    annotations = tiny_run.root / "shapes" / "shapes_train_norare.json"
    assert record["data"]["shapes_train"]["annotations"]["sha256"] == sha256(annotations)
    assert record["data"]["shapes_train"]["images"] == 8
    classifier = record["files"]["CLIP_TEXT_PATH"]
    assert classifier["sha256"] == sha256(Path(classifier["path"]))
    assert record["environment"]["OVFORMER_ANYTHING"] == "recorded"
    assert record["environment"]["DETECTRON2_DATASETS"] == str(tiny_run.root)
    assert not any("not recorded" in path.read_text() for path in first.iterdir())
    assert f"torch=={torch.__version__.split('+')[0]}" in (first / "packages.txt").read_text()

    words = shlex.split(record["repeat"])
    assert words[:2] == ["python", "train_net.py"]
    main(IMAGE, words[2:])
    folders = (tiny_run.output, Path(f"{tiny_run.output}-repeated"))
    first, second = (torch.load(f / "model_final.pth", weights_only=True) for f in folders)
    torch.testing.assert_close(second["model"], first["model"], rtol=0, atol=0)


@pytest.mark.slow
def test_each_start_has_one(tiny_run: TinyRun, monkeypatch) -> None:
    tiny_run.here(*SHORT)
    tiny_run.here(*SHORT, "--resume", "SOLVER.MAX_ITER", "4")
    weights = str(tiny_run.output / "model_final.pth")
    tiny_run.here("--eval-only", "--resume")
    image = tiny_run.root / "shapes" / "val" / "002.png"
    image.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"002\.png"):
        tiny_run.here("--eval-only", "MODEL.WEIGHTS", weights)
    first, second, third, fourth = records(tiny_run)
    assert first["repeat"] and second["repeat"] is None
    assert second["weights"]["path"] == third["weights"]["path"] == weights
    assert f"--eval-only MODEL.WEIGHTS {weights}" in third["repeat"]
    assert list(third["data"]) == ["shapes_val"] and third["data"]["shapes_val"]["images"] == 4
    assert fourth["outcome"].startswith("SampleError: ") and str(image) in fourth["outcome"]


def test_the_weights_that_a_training_resumes_from(tmp_path: Path) -> None:
    """Also where there is no ``last_checkpoint``."""
    cfg = get_ovformer_cfg(None, ["OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", "start.pth"])
    starts = [Namespace(resume=resume) for resume in (False, True)]
    assert [run_record._find_weights(cfg, args) for args in starts] == ["start.pth"] * 2
    last = tmp_path / "model_0000003.pth"
    last.touch()
    assert [run_record._find_weights(cfg, args) for args in starts] == ["start.pth", str(last)]


def test_what_can_not_be_written_stops_no_run(tiny_run: TinyRun, caplog) -> None:
    tiny_run.output.mkdir()
    (tiny_run.output / "runs").write_text("in the way")
    tiny_run.here(*SHORT)
    assert (tiny_run.output / "model_final.pth").is_file()
    assert "The record of this run is not written" in (tiny_run.output / "log.txt").read_text()


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


def test_the_state_of_the_code(tmp_path: Path, monkeypatch) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("a = 1\n")
    assert read_code_state(package) is None  # git tracks no such file
    git(tmp_path, "init")
    assert read_code_state(package) is None  # not in its files: installed below a checkout
    git(tmp_path, "add", "package")
    git(tmp_path, "commit", "-m", "first")
    state = read_code_state(package)
    assert len(state.commit) == 40 and state.patch == b"" and state.untracked == []
    (package / "__init__.py").write_text("a = 2\n")
    (package / "new.py").write_text("b = 1\n")
    state = read_code_state(package)
    assert b"-a = 1\n+a = 2\n" in state.patch and state.untracked == ["package/new.py"]
    monkeypatch.setenv("PATH", str(tmp_path))  # without git
    assert read_code_state(package) is None


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    found = run_record._describe_file(str(tmp_path / "absent"))
    assert found["path"] == str(tmp_path / "absent") and "No such file" in found["error"]
