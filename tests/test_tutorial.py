"""The commands of docs/tutorial.md, run in order by a shell as a user runs them, on drawn videos.

The tests differ from the page in two ways: the first command (pip) is skipped, and words are
appended to commands (``APPENDED``) that make model, CLIP and training tiny. The files that the page
expects are made first.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ovformer.d2 import build_model
from ovformer.data.files.video_files import VideoSource
from support.annotation_exports import check_equal, cvat_video, draw, write_video, zip_of
from support.page_commands import ROOT, SMALL_CLIP, save_files, small_model
from support.predictor_fixture import make_cfg
from support.tiny_clip import make_clip

OPTIONS = ["MODEL.CLIP.EMBED_DIM", "16", "SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "(3,)"]
OPTIONS += ["SOLVER.CHECKPOINT_PERIOD", "2"]
APPENDED = {
    "tools/build_text_classifier.py": SMALL_CLIP,
    "train_net_lvvis.py": [*small_model(), *OPTIONS],
}
VIDEOS = [draw(f"clip {number}", 5, number) for number in range(4)]


def commands() -> list[str]:
    """The numbered commands of the page; a long one is several lines."""
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^\*\*\d+\.\*\*.*?```bash\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    return [block.strip() for block in blocks]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder like the repository's, with exports, videos and starting weights."""
    for name in ("configs", "tools", "train_net_lvvis.py", "mAP.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    for number, video in enumerate(VIDEOS):
        write_video(tmp_path / "videos", video)
        (tmp_path / "exports").mkdir(exist_ok=True)
        content = zip_of({"annotations.xml": cvat_video(video)})
        (tmp_path / "exports" / f"task_{number}.zip").write_bytes(content)
    write_video(tmp_path, draw("new", 5, 9))
    make_clip(tmp_path / "clip")
    model = build_model(make_cfg(tmp_path, f"local-dir:{tmp_path}/clip"))
    (tmp_path / "models").mkdir()
    torch.save({"model": model.state_dict()}, tmp_path / "models" / "ovformer_r50_lvvis.pth")
    save_files(tmp_path)
    return tmp_path


def test_there_are_ten_commands() -> None:
    found = commands()
    assert len(found) == 10
    assert found[0] == "pip install -e '.[eval,demo]'"
    assert all(command.startswith("python ") for command in found[1:])
    assert set(APPENDED) <= {command.split()[1] for command in found[1:]}


@pytest.mark.slow
def test_the_commands_in_order(place: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONWARNINGS": "ignore"}
    environment.pop("DETECTRON2_DATASETS", None)
    for command in commands()[1:]:
        line = f"{command} {shlex.join(APPENDED.get(command.split()[1], []))}"
        done = subprocess.run(
            ["bash", "-c", line], cwd=place, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    data, output = place / "datasets" / "birds", place / "output" / "birds"
    check_equal(data / "annotations.json", VIDEOS)
    assert len(list((data / "visualization").glob("*.mp4"))) == 3
    assert (place / "output/birds_before/inference/birds_val/scores.json").is_file()
    assert (output / "inference/birds_val/scores.csv").is_file()
    assert len(list(VideoSource(place / "out" / "new_objects.mp4"))) == 5
    assert (place / "out" / "index.html").is_file()
