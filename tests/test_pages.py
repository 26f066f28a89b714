"""Each command that a page shows runs, one after the other, as a newcomer would type them.

In a folder of its own, with data sets in the layout of datasets/README.md. The tests differ from
the pages in two ways: SMALLER is appended to the commands, since data, model and CLIP are tiny and
there is no GPU; and SKIPPED are the commands that do not run, with the reason.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import build_model
from ovformer.data.catalog.dataset_spec import load_categories
from ovformer.engine.checkpoint import Checkpointer, collect_metadata
from support.annotation_exports import cvat_video, draw, write_video, zip_of
from support.masks import compressed_rle, rectangle
from support.mini_lvis import make_lvis
from support.mini_videos import draw_frames, make_videos
from support.page_commands import (
    ROOT,
    SMALL_CLIP,
    Command,
    commands,
    python_blocks,
    save_files,
    small_model,
)
from support.scripts import run_script
from support.tiny_clip import make_clip
from support.video_models import TINY

CLIP_DIM = 512  # as the published text classifiers have it
MASK = rectangle((36, 64), 5, 5, 30, 20)
CONFIG = [
    *small_model(),
    *("MODEL.MASK_FORMER.FED_LOSS_NUM_CLASSES", "2"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()"),
    *("SOLVER.WARMUP_ITERS", "0", "SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.AMP.ENABLED", "False"),
    *("INPUT.IMAGE_SIZE", "64", "INPUT.CROP.ENABLED", "False"),
    *("INPUT.PSEUDO.MIN_SIZE_TRAIN", "(64,)", "TEST.EVAL_PERIOD", "0"),
]
SMALLER = {
    **dict.fromkeys(["train_net.py", "train_net_video.py", "train_net_lvvis.py"], CONFIG),
    **dict.fromkeys(["my_backbone.py", "my_decoder.py", "my_loss.py", "my_hook.py"], CONFIG),
    "tools/build_text_classifier.py": SMALL_CLIP,
    "tools/save_clip_features.py": [*SMALL_CLIP, "--num-workers", "0"],
    "tools/make_shapes.py": ["--train-images", "2", "--val-images", "2", "--train-videos", "1"]
    + ["--val-videos", "1", "--frames", "2"],
}
# Numbers of processes in place of those on the pages, which need several GPUs.
PROCESSES = {"--num-gpus": "1", "--nproc-per-node": "2"}
SKIPPED = {
    "--num-machines": "needs a second machine",
    "--nnodes": "needs a second machine",
    "--max-restarts": "tests/engine/test_resume.py restarts a training",
    "tools/check_setup.py": "tests/tools/test_check_setup.py runs it",
    "tools/export.py": "tests/tools/test_export_tool.py runs it",
    "tools/quickstart.py": "tests/tools/test_quickstart.py runs it, with --fast",
    "tools/benchmark.py": "takes minutes; tests/tools/test_benchmark.py runs each benchmark",
    "tools/app.py": "serves until it is stopped; tests/tools/test_app.py runs it",
    "tests/fuzz/run.py": "runs for minutes; tests/fuzz/test_properties.py is its short form",
    "tests/fault_injection.py": "runs for minutes; tests/test_fault_injection.py is its short form",
    "docs/file_map.py": "writes a page; tests/test_readme.py runs it",
    "ovformer.ops.build": "tests/ops/test_build.py compiles, where there is a compiler for GPUs",
}
# Programs that need a network or are not ours, and words of the shell.
OTHERS = {"pip", ".", "cd", "do", "done", "export", "for", "mkdir", "rm", "unzip", "wget"}
OTHERS |= {"[", "srun"}  # a script for Slurm
OTHERS |= {"HYPOTHESIS_MAX_EXAMPLES=2000"}  # the test suite, for longer

# What the Python code of a page needs before it.
PREAMBLE = {
    "docs/predict.md": """
import numpy as np
def camera():
    yield from np.random.default_rng(0).integers(0, 255, (3, 48, 64, 3), np.uint8)
""",
    "docs/distributed.md": f"""
from pathlib import Path
from ovformer.config import get_ovformer_cfg
cfg = get_ovformer_cfg("configs/lvis/ovformer_R50_bs8.yaml", {CONFIG})
Path("output").mkdir(exist_ok=True)
Path("output/config.yaml").write_text(cfg.dump())
""",
}


def is_ours(command: Command) -> bool:
    """Whether a command runs a script or module of this repository, other than the test suite."""
    if command.words[:2] == ("python", "-m"):
        return command.words[2].startswith("ovformer")
    return bool(command.script)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a clone with data sets and weights in it."""
    folder = tmp_path_factory.mktemp("workspace")
    for name in ("configs", "tools", "mAP.py", *(p.name for p in ROOT.glob("train_net*.py"))):
        (folder / name).symlink_to(ROOT / name)
    save_files(folder)
    root = folder / "datasets"
    make_lvis(root)
    for family in ("ytvis_2019", "ytvis_2021", "ovis", "lvvis"):
        make_videos(root, family)
    add_partitions(root / "LVVIS" / "train")
    make_burst(root / "burst")
    make_birds(root / "birds")
    annotated = draw("clip")
    write_video(folder / "videos", annotated)
    (folder / "exports").mkdir()
    export = zip_of({"annotations.xml": cvat_video(annotated)})
    (folder / "exports" / "clip.zip").write_bytes(export)
    (root / "metadata").mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for name, classes in (("lvis", 1203), ("lvvis", 1196), ("ytvis19", 40)):
        rows = rng.standard_normal((classes, CLIP_DIM), np.float32)
        np.save(root / "metadata" / f"fg_bg_5_10_{name}_ens.npy", rows)
    make_weights(folder)
    write_video(folder, draw("my", 4))
    return folder


def make_weights(folder: Path) -> None:
    """Write the weights that the commands start from, all of them random and tiny."""
    (folder / "models").mkdir()
    make_clip(folder / "clip", width=CLIP_DIM)
    kwargs = yaml.safe_load(TINY["MODEL.TIMM.KWARGS"])
    backbone = timm.create_model(TINY["MODEL.TIMM.BASE_NAME"], **kwargs)
    torch.save(backbone.state_dict(), folder / "resnet50_miil_21k.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # the config's paths are relative
        patch.setenv("DETECTRON2_DATASETS", str(folder / "datasets"))
        cfg = get_ovformer_cfg("configs/lvis/ovformer_R50_bs8.yaml", CONFIG)
        saver = Checkpointer(build_model(cfg), str(folder), metadata=collect_metadata(cfg))
    saver.save("model")
    shutil.copy(folder / "model.pth", folder / "models" / "ovformer_r50_lvis.pth")


def add_partitions(folder: Path) -> None:
    """Write LV-VIS's training annotations as they are downloaded, with novel ones."""
    content = json.loads((folder / "train_instances_nonovel.json").read_text())
    partitions = {c["id"]: c["partition"] for c in load_categories("lvvis")}
    for category in content["categories"]:
        category["partition"] = partitions[category["id"]]
    (folder / "train_instances_.json").write_text(json.dumps(content))


def make_burst(folder: Path) -> None:
    """Write two frames and BURST's annotations of one object."""
    video = {"id": 1, "height": 36, "width": 64, "file_names": ["0001.png", "0031.png"]}
    draw_frames(folder / "val" / "YFCC100M" / "v_1", [video])
    categories = [{"id": c["id"], "name": c["name"]} for c in load_categories("burst")]
    label = categories[0]["id"]
    sequence = {
        "id": 1,
        "dataset": "YFCC100M",
        "seq_name": "v_1",
        "width": 64,
        "height": 36,
        "annotated_image_paths": video["file_names"],
        "neg_category_ids": [],
        "not_exhaustive_category_ids": [],
        "track_category_ids": {"1": label},
        "segmentations": [{"1": {"rle": compressed_rle(MASK)["counts"], "is_gt": True}}] * 2,
    }
    content = {"sequences": [sequence], "categories": categories, "split": "val"}
    (folder / "val" / "all_classes.json").write_text(json.dumps(content))
    (folder / "info").mkdir()
    split = {"common": [label], "uncommon": []}
    (folder / "info" / "class_split.json").write_text(json.dumps(split))


def make_birds(folder: Path) -> None:
    """Write the data set that datasets/README.md has as an example: 3 classes, a video."""
    video = {"id": 1, "height": 36, "width": 64, "length": 2}
    video["file_names"] = ["a/0.png", "a/1.png"]
    draw_frames(folder / "frames", [video])
    annotation = {"id": 1, "video_id": 1, "category_id": 4, "iscrowd": 0}
    annotation["segmentations"] = [compressed_rle(MASK), None]
    names = ("blackbird", "robin", "wren")
    categories = [{"id": i, "name": name} for i, name in zip((1, 4, 7), names, strict=True)]
    content = {"videos": [video], "annotations": [annotation], "categories": categories}
    (folder / "val.json").write_text(json.dumps(content))


def run(workspace: Path, words: list[str]) -> None:
    """Run Python in the workspace, with its data sets; the exit status has to be 0."""
    environment = {**os.environ, "DETECTRON2_DATASETS": str(workspace / "datasets")}
    log = workspace / "log"
    assert run_script(words, workspace, environment, log) == 0, log.read_text()[-6000:]


def commands_to_run() -> list[Command]:
    """Our commands of all pages but the tutorial; what several pages show runs for the first."""
    first: dict[tuple[str, ...], Command] = {}
    for command in commands():
        # tests/test_tutorial.py runs those of the tutorial, which belong together.
        if is_ours(command) and command.page != "docs/tutorial.md":
            first.setdefault(command.words, command)
    return list(first.values())


def test_every_other_command_is_known() -> None:
    """A command that is not ours is one of OTHERS."""
    others = {c.words[0] for c in commands() if not is_ours(c)} - {"python"}
    assert others <= OTHERS


@pytest.mark.slow
@pytest.mark.parametrize("command", commands_to_run(), ids=str)
def test_command(workspace: Path, command: Command) -> None:
    for name, reason in SKIPPED.items():
        if name in command.words:
            pytest.skip(reason)
    root = str(workspace / "datasets")
    words = [word.replace("$DETECTRON2_DATASETS", root) for word in command.words]
    if words[0] == "torchrun":
        words = ["python", "-m", "torch.distributed.run", "--standalone", *words[1:]]
    for option, number in PROCESSES.items():
        if option in words:
            words[words.index(option) + 1] = number
    run(workspace, [*words[1:], *SMALLER.get(command.script, [])])


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", ["README.md", "docs/predict.md", "docs/distributed.md", "docs/extend.md"]
)
def test_python(workspace: Path, page: str) -> None:
    code = "\n".join([PREAMBLE.get(page, ""), *python_blocks(page)])
    (workspace / "page.py").write_text(code)
    run(workspace, ["page.py"])
