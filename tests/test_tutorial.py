"""The commands of docs/tutorial.md, run in order by a shell as a user runs them, on drawn videos.

What differs from the page is stated here, and nothing else: the first command (pip) is left out,
and words are appended to commands (``APPENDED``) that make the model tiny, the training short, and
CLIP a tiny model on disk instead of a download. The files that the page speaks of are made first.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ovformer.d2 import build_model
from ovformer.data.files.video_files import VideoSource
from support.annotation_exports import check_equal, cvat_video, draw, write_video, zip_of
from support.predictor_fixture import make_cfg
from support.tiny_clip import make_clip

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
TINY_CLIP = "local-dir:tiny_clip"
# Sizes of the model, and what it takes to run it here.
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.TIMM.BASE_NAME": "resnet18",
    "MODEL.TIMM.KWARGS": "{layers: [1, 1, 1, 1], channels: [8, 8, 16, 16], stem_width: 8}",
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD": "32",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": "1",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": "32",
    "MODEL.SEM_SEG_HEAD.MASK_DIM": "16",
    "MODEL.MASK_FORMER.HIDDEN_DIM": "32",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": "6",
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": "32",
    "MODEL.MASK_FORMER.DEC_LAYERS": "3",
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": "64",
    "MODEL.CLIP.NAME": TINY_CLIP,
    "MODEL.CLIP.PRETRAINED": "",
    "MODEL.CLIP.EMBED_DIM": "16",
    "MODEL.CLIP.IMAGE_SIZE": "32",
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MIN_SIZE_TEST": "64",
    "DATALOADER.NUM_WORKERS": "0",
}
SHORT = {"SOLVER.MAX_ITER": "4", "SOLVER.STEPS": "(3,)", "SOLVER.CHECKPOINT_PERIOD": "2"}
APPENDED = {
    "tools/build_text_classifier.py": ["--clip", TINY_CLIP, "--pretrained", ""],
    "train_net_lvvis.py": [word for pair in (TINY | SHORT).items() for word in pair],
}


def commands() -> list[str]:
    """The commands of the page; a long one is several lines."""
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^\*\*\d+\.\*\*.*?```bash\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    return [block.strip() for block in blocks]


def config() -> tuple[str, str]:
    """Name and content of the file that the page asks to save."""
    text = PAGE.read_text(encoding="utf-8")
    return re.search(r"<!-- file (\S+) -->\n```yaml\n(.*?)```", text, re.DOTALL).groups()


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
    make_clip(tmp_path / "tiny_clip")
    model = build_model(make_cfg(tmp_path, f"local-dir:{tmp_path}/tiny_clip"))
    (tmp_path / "models").mkdir()
    torch.save({"model": model.state_dict()}, tmp_path / "models" / "ovformer_r50_lvvis.pth")
    name, content = config()
    (tmp_path / name).write_text(content)
    return tmp_path


VIDEOS = [draw(f"clip {number}", 5, number) for number in range(4)]


def test_there_are_ten_commands() -> None:
    found = commands()
    assert len(found) == 10
    assert found[0] == "pip install -e '.[eval,demo]'"
    assert all(command.startswith("python ") for command in found[1:])
    unused = set(APPENDED) - {command.split()[1] for command in found[1:]}
    assert not unused


@pytest.mark.slow
def test_the_commands_in_order(place: Path) -> None:
    path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "PYTHONWARNINGS": "ignore",
    }
    environment.pop("DETECTRON2_DATASETS", None)
    for command in commands()[1:]:
        words = [f"'{word}'" for word in APPENDED.get(command.split()[1], [])]
        line = " ".join([command, *words])
        process = subprocess.run(
            ["bash", "-c", line],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert process.returncode == 0, f"{line}\n{process.stdout}\n{process.stderr}"
    data, output = place / "datasets" / "birds", place / "output" / "birds"
    check_equal(data / "annotations.json", VIDEOS)
    assert len(list((data / "visualization").glob("*.mp4"))) == 3
    assert (place / "output/birds_before/inference/birds_val/scores.json").is_file()
    assert (output / "inference/birds_val/scores.csv").is_file()
    film = VideoSource(place / "out" / "new_objects.mp4")
    assert sum(1 for _ in film) == 5
    assert (place / "out" / "index.html").is_file()
