"""An evaluation by several processes has the results of one, also where some have nothing to do."""

import json
from pathlib import Path

import pytest
import torch

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import build_model
from ovformer.engine.stages import CLIPS, FRAMES, Stage
from support.interrupted_run import Script
from support.tiny_runs import FILES, make_run

pytestmark = pytest.mark.slow
RESULTS = ("results.json", "scores.json")


def evaluate(script: Script, folder: Path, name: str) -> dict[int, list[bytes]]:
    """Number of processes -> the content of the files of results."""
    found = {}
    for processes in (1, 2, 4):
        output = folder / str(processes)
        status = script.here(output, "--eval-only", processes=processes)
        assert status == 0, (folder / "log").read_text()
        results = output / "inference" / name
        found[processes] = [(results / file).read_bytes() for file in RESULTS]
        found[processes][1] = found[processes][1].replace(str(output).encode(), b"")
        assert not list(results.glob("*.part*"))
    return found


def test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three images: of two processes one has two of them, of four one has none."""
    run = make_run(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(run.root))
    weights = tmp_path / "untrained.pth"  # random ones would differ between processes
    torch.save({"model": build_model(get_ovformer_cfg(str(run.config))).state_dict()}, weights)
    path = run.root / "shapes" / FILES["val"]
    content = json.loads(path.read_text())
    content["images"] = content["images"][:3]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] <= 3]
    path.write_text(json.dumps(content))
    words = ["train_net.py", "--config-file", str(run.config)]
    script = Script(words, run.root, ["MODEL.WEIGHTS", str(weights)])
    found = evaluate(script, tmp_path, "shapes_val")
    assert found[2] == found[1] and found[4] == found[1]


@pytest.mark.parametrize("stage", [FRAMES, CLIPS])
def test_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Stage) -> None:
    """Three videos: of two processes one has two of them, of four one has none."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data sets"))
    run = make_run(tmp_path, stage)
    words = [stage.script, "--config-file", str(run.config)]
    found = evaluate(Script(words, run.data.root, []), tmp_path, f"{run.data.family}_val")
    assert found[2] == found[1] and found[4] == found[1]
