"""The configs: what they hold, what they inherit, and what a wrong key or value says."""

import json
import re
from argparse import Namespace
from pathlib import Path

import pytest
import yaml

from ovformer.config import (
    UnknownKeyError,
    get_ovformer_cfg,
    read_config,
)
from ovformer.config.keys import WITHOUT_EFFECT
from ovformer.d2 import CfgNode
from ovformer.data.catalog.dataset_spec import check_class_count
from ovformer.engine.stages import CLIPS, FRAMES, STAGES
from ovformer.preflight.check_config import find_config_faults
from ovformer.preflight.model import build_without_memory
from ovformer.preflight.values import value_errors

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
MODELS = [path for path in CONFIGS if not path.name.startswith("base_")]


# Each takes about a second for Swin-B.
BUILT = [
    pytest.param(path, marks=pytest.mark.slow) if "SwinB" in path.name else path for path in MODELS
]
# All errors of a config that are allowed where there are neither data nor weights, and no GPU.
NO_FILES = (
    r"DATASETS\.(TRAIN|TEST): annotations .*\.json of '\w+' not found\..*",
    r"MODEL\.WEIGHTS: .*\.(pkl|pth) not found\..*",
    r"MODEL\.MASK_FORMER\.CLIP_TEXT_PATH: no text classifier .*",
    r"MODEL\.MASK_FORMER\.CLIP_IMAGE_PATH(_TRAIN)?: CLIP features .* not found\..*",
    r"MODEL\.MASK_FORMER\.CAT_INFO_PATH: no file .*",
)
NO_GPU = (r"MODEL\.DEVICE: cuda, but no GPU found.*",)

VIDEO_SETS = ("youtubevis_2019", "youtubevis_2021", "ovis", "burst", "lvvis")
# Of the published video configs: how images were trained, which says nothing about videos, and
# stored CLIP features, without which ours compute them.
NOT_OF_VIDEOS = (
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.SAMPLER_TRAIN",
    "DATASETS.TRAIN",
    "MODEL.MASK_FORMER.CLIP_IMAGE_PATH",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.MAX_ITER",
    "SOLVER.STEPS",
    "TEST.EVAL_PERIOD",
)


def lookup(cfg: CfgNode, key: str):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def leaves(values: dict, prefix: str = "") -> dict:
    found = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found.update(leaves(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = value
    return found


def published(reference, name: str) -> dict:
    """Key -> value of a published file and its bases; Swin-B's only hold what differs from R50."""
    values = json.loads(reference("published_image_configs.json").read_text())
    return {**values["ovformer_R50_bs8"], **values[name]}


def published_video(reference, folder: str, name: str) -> dict:
    """Key -> value of a published file; LV-VIS has none for Swin-B, and R50's adds to LVIS's."""
    values = json.loads(reference("published_video_configs.json").read_text())
    r50 = {**published(reference, "ovformer_R50_bs8"), **values[f"{folder}/ovformer_R50_bs8"]}
    return {**r50, **values.get(f"{folder}/{name}", {})}


def published_clip(reference, name: str) -> dict:
    """Key -> value of a published file of stage 3; Swin-B's only hold what differs from R50."""
    values = json.loads(reference("published_video_configs.json").read_text())
    return {**values["lvvis/video_ovformer_R50_bs8"], **values[f"lvvis/{name}"]}


def write_tree(path: Path, values: dict) -> Path:
    """Write key -> value as a YAML file."""
    tree: dict = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    path.write_text(yaml.safe_dump(tree))
    return path


def assert_same_value(got: object, value: object, key: str) -> None:
    expected = CfgNode._decode_cfg_value(value)
    assert (list(got) if isinstance(got, tuple | list) else got) == (
        list(expected) if isinstance(expected, tuple | list) else expected
    ), key


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT)))
def test_loads(path: Path) -> None:
    cfg = get_ovformer_cfg(str(path))
    stage = next(s for s in STAGES if s.meta_architecture == cfg.MODEL.META_ARCHITECTURE)
    assert cfg.is_frozen() and not list(value_errors(cfg, stage, eval_only=False))


@pytest.mark.parametrize("path", BUILT, ids=lambda p: str(p.relative_to(ROOT)))
def test_builds_without_memory_and_lacks_nothing_but_files(
    path: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    cfg = get_ovformer_cfg(str(path))
    stage = next(s for s in STAGES if s.meta_architecture == cfg.MODEL.META_ARCHITECTURE)
    args = Namespace(eval_only=not cfg.DATASETS.TRAIN, resume=False, num_gpus=1, num_machines=1)
    model = build_without_memory(cfg)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    monkeypatch.setattr("ovformer.preflight.model.build_without_memory", lambda cfg: model)
    faults = find_config_faults(cfg, stage, args)
    allowed = [*NO_FILES, *NO_GPU]
    assert not [e for e in faults.errors if not any(re.fullmatch(a, e, re.S) for a in allowed)]
    assert not faults.warnings
    assert any("DATASETS.TEST: annotations" in error for error in faults.errors)


@pytest.mark.parametrize("path", MODELS, ids=lambda p: str(p.relative_to(ROOT)))
def test_children_hold_only_what_differs(path: Path) -> None:
    own = yaml.safe_load(path.read_text())
    base = get_ovformer_cfg(str(path.parent / own.pop("_BASE_")))
    cfg = get_ovformer_cfg(str(path))
    repeated = [key for key in leaves(own) if lookup(cfg, key) == lookup(base, key)]
    assert not repeated


@pytest.mark.parametrize("path", MODELS, ids=lambda p: str(p.relative_to(ROOT)))
def test_header_says_how_long_and_what_to_expect(path: Path) -> None:
    header = path.read_text().split("_BASE_")[0]
    for words in ("--config-file", "Time", "xpected result", str(path.relative_to(ROOT))):
        assert words in header


@pytest.mark.parametrize("folder", VIDEO_SETS)
@pytest.mark.parametrize("name", ["ovformer_R50_bs8", "ovformer_SwinB_bs8"])
def test_published_values_of_videos(reference, folder: str, name: str) -> None:
    cfg = get_ovformer_cfg(str(ROOT / "configs" / folder / f"{name}.yaml"))
    if folder == "lvvis" and name == "ovformer_SwinB_bs8":
        # Not published: as the Swin-B of the other data sets.
        expected = published_video(reference, "ovis", name)
        of_lvvis = published_video(reference, "lvvis", name)
        expected.update({key: of_lvvis[key] for key in of_lvvis if key.startswith("DATASETS")})
        for key in ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "MODEL.MASK_FORMER.CLIP_TEXT_PATH"):
            expected[key] = of_lvvis[key]
        expected["TEST.DETECTIONS_PER_IMAGE"] = of_lvvis["TEST.DETECTIONS_PER_IMAGE"]
    else:
        expected = published_video(reference, folder, name)
    for key, value in expected.items():
        if key not in (*WITHOUT_EFFECT, *NOT_OF_VIDEOS):
            assert_same_value(lookup(cfg, key), value, key)


@pytest.mark.parametrize("folder", VIDEO_SETS)
def test_data_sets_of_a_video_config_fit_its_classes(folder: str) -> None:
    cfg = get_ovformer_cfg(str(ROOT / "configs" / folder / "ovformer_R50_bs8.yaml"))
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    check_class_count(names, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, "DATASETS")
    assert {FRAMES.evaluator_type(name) for name in cfg.DATASETS.TEST} <= {"vis", "burst"}


@pytest.mark.parametrize("name", ["ovformer_R50_bs8", "ovformer_SwinB_bs8"])
def test_published_files_load_unchanged(reference, tmp_path: Path, name: str) -> None:
    path = write_tree(tmp_path / "published.yaml", published(reference, name))
    ours = get_ovformer_cfg(str(ROOT / "configs" / "lvis" / f"{name}.yaml"))
    assert get_ovformer_cfg(str(path)) == ours


@pytest.mark.parametrize("name", ["video_ovformer_R50_bs8", "video_ovformer_SwinB_bs8"])
def test_published_values_of_clips(reference, tmp_path: Path, name: str) -> None:
    """Each value is the published one, except for a few that change nothing."""
    path = write_tree(tmp_path / "published.yaml", published_clip(reference, name))
    theirs = leaves(get_ovformer_cfg(str(path)))
    ours = leaves(get_ovformer_cfg(str(ROOT / "configs" / "lvvis" / f"{name}.yaml")))
    different = {key for key in ours if ours[key] != theirs[key]}
    assert different == {
        "MODEL.MASK_FORMER.CAT_INFO_PATH",  # a path in their code
        "MODEL.MASK_FORMER.CLIP_IMAGE_PATH",  # stored features, without which ours compute them
        "DATALOADER.REPEAT_THRESHOLD",  # of a sampler that neither uses
        "MODEL.BACKBONE.FREEZE_AT",  # of detectron2's backbones
    }
    assert ours["DATALOADER.SAMPLER_TRAIN"] == "TrainingSampler"


def test_clip_configs_are_of_stage_3() -> None:
    for path in (ROOT / "configs").rglob("video_*.yaml"):
        cfg = get_ovformer_cfg(str(path))
        assert cfg.MODEL.META_ARCHITECTURE == CLIPS.meta_architecture
        names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
        check_class_count(names, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, "DATASETS")
        assert {CLIPS.evaluator_type(name) for name in cfg.DATASETS.TEST} == {"vis"}


def test_the_recipe_for_a_small_gpu_changes_no_result() -> None:
    folder = ROOT / "configs" / "lvvis"
    whole, small = (
        leaves(get_ovformer_cfg(str(folder / f"video_ovformer_R50_{name}.yaml")))
        for name in ("bs8", "24gb")
    )
    assert {key for key in whole if whole[key] != small[key]} == {
        "MODEL.ACTIVATION_CHECKPOINTING",
        "SOLVER.ACCUMULATION_STEPS",
        "SOLVER.AMP.PRECISION",
    }
    assert small["SOLVER.IMS_PER_BATCH"] % small["SOLVER.ACCUMULATION_STEPS"] == 0


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("SOLVER.BASELR", "SOLVER.BASE_LR"),
        ("MODEL.NUM_OBJECT_QUERIES", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"),
        ("SOLVER.PRECISION", "SOLVER.AMP.PRECISION"),
    ],
)
def test_unknown_key_names_the_nearest(tmp_path: Path, key: str, suggestion: str) -> None:
    with pytest.raises(UnknownKeyError) as on_command_line:
        get_ovformer_cfg(None, ["SOLVER.MAX_ITER", "1", key, "1"])
    path = tmp_path / "wrong.yaml"
    section, name = key.rsplit(".", 1)
    path.write_text(yaml.safe_dump({section: {name: 1}}))
    with pytest.raises(UnknownKeyError) as in_file:
        get_ovformer_cfg(str(path))
    for error, source in ((on_command_line, "command line"), (in_file, str(path))):
        message = str(error.value)
        assert repr(key) in message
        assert suggestion in message
        assert source in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.BASE_LR", "fast"),
        ("SOLVER.STEPS", "('3',)"),
        ("SOLVER.STEPS", "3"),
        ("SOLVER.MAX_ITER", "None"),
        ("DATASETS.TRAIN", "shapes_train"),
    ],
)
def test_a_value_of_the_wrong_type(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"{key}: expected .*, got ") as error:
        get_ovformer_cfg(None, [key, value])
    assert value in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("SOLVER.STEPS", [], ()),
        ("SOLVER.BASE_LR", "1", 1.0),
        ("MODEL.WEIGHTS", None, None),  # an empty line in YAML
        ("MODEL.SWIN.QK_SCALE", "0.5", 0.5),  # None by default
        ("INPUT.CROP.SIZE", "(600, 720)", [600, 720]),
    ],
)
def test_values_of_a_convertible_type(key: str, value: object, expected: object) -> None:
    got = lookup(get_ovformer_cfg(None, [key, value]), key)
    assert got == expected and type(got) is type(expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("_BASE_: none.yaml", r"none\.yaml"),
        ("VERSION: 1", "VERSION: 1 can't be read, only 2"),
        ("SOLVER:", "'SOLVER' is a section"),
        ("SOLVER: {BASE_LR: {X: 1}}", "BASE_LR: expected a number"),
    ],
)
def test_wrong_content_of_a_file(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises((ValueError, UnknownKeyError), match=words) as error:
        get_ovformer_cfg(str(path))
    assert str(path) in str(error.value)


def test_what_can_be_read_is_read(tmp_path: Path) -> None:
    path = tmp_path / "half.yaml"
    path.write_text("SOLVER: {BASELR: 1, MAX_ITER: 7, STEPS: x}")
    cfg, errors = read_config(str(path), ["SOLVER.GAMMA", "x", "SEED", "5"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SEED, cfg.SOLVER.GAMMA) == (7, 5, 0.1)
    assert [type(error) for error in errors] == [UnknownKeyError, ValueError, ValueError]


def test_a_key_without_a_value() -> None:
    with pytest.raises(ValueError, match="pairs KEY VALUE"):
        get_ovformer_cfg(None, ["SOLVER.BASE_LR"])


def test_an_option_after_the_keys() -> None:
    with pytest.raises(UnknownKeyError, match=r"'--num-gpus' is no config key\. Options .* before"):
        get_ovformer_cfg(None, ["SEED", "1", "--num-gpus", "2"])


def test_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml does not exist"):
        get_ovformer_cfg("nowhere.yaml")
