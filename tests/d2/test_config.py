"""Configs and @configurable, on the selected back-end."""

from pathlib import Path

import pytest
import yaml

from ovformer.d2 import CfgNode, configurable, get_cfg


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_defaults_are_detectron2s() -> None:
    cfg = get_cfg()
    assert cfg.VERSION == 2 and cfg.SEED == -1 and cfg.OUTPUT_DIR == "./output"
    assert cfg.INPUT.FORMAT == "BGR" and cfg.INPUT.MIN_SIZE_TRAIN == (800,)
    assert cfg.MODEL.PIXEL_MEAN == [103.53, 116.28, 123.675]
    assert cfg.SOLVER.WARMUP_ITERS == 1000 and cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE == 1.0
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 100 and cfg.DATALOADER.REPEAT_SQRT is True


def test_each_config_is_new() -> None:
    first = get_cfg()
    first.MODEL.PIXEL_MEAN[0] = 0.0
    first.TEST.AUG.FLIP = False
    second = get_cfg()
    assert second.MODEL.PIXEL_MEAN[0] == 103.53 and second.TEST.AUG.FLIP is True


def test_files_inherit_from_their_base(tmp_path: Path) -> None:
    (tmp_path / "child").mkdir()
    write(tmp_path / "base.yaml", "SEED: 3\nMODEL: {DEVICE: cpu}\nINPUT: {FORMAT: RGB}\n")
    child = "_BASE_: ../base.yaml\nSEED: 4\nDATASETS:\n  TEST: ('a', 'b')\nMODEL: {WEIGHTS: w}\n"
    cfg = get_cfg()
    cfg.merge_from_file(write(tmp_path / "child" / "child.yaml", child))
    assert (cfg.SEED, cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS) == (4, "cpu", "w")
    assert cfg.INPUT.FORMAT == "RGB" and cfg.DATASETS.TEST == ("a", "b")


def test_a_dumped_config_loads_again(tmp_path: Path) -> None:
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.STEPS", "(10, 20)", "MODEL.WEIGHTS", "x.pth", "SEED", "7"])
    again = get_cfg()
    again.merge_from_file(write(tmp_path / "config.yaml", cfg.dump()))
    assert again.SOLVER.STEPS == (10, 20) and again.SEED == 7
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())


def test_unknown_keys_are_errors(tmp_path: Path) -> None:
    cfg = get_cfg()
    with pytest.raises(KeyError, match="MODEL.NONSENSE"):
        cfg.merge_from_file(write(tmp_path / "a.yaml", "VERSION: 2\nMODEL: {NONSENSE: 1}\n"))
    with pytest.raises((KeyError, AssertionError), match="NONSENSE"):
        cfg.merge_from_list(["MODEL.NONSENSE", "1"])
    with pytest.raises(ValueError, match="SEED"):
        cfg.merge_from_file(write(tmp_path / "b.yaml", "VERSION: 2\nSEED: many\n"))


def test_deprecated_keys_are_dropped(tmp_path: Path) -> None:
    cfg = get_cfg()
    cfg.register_deprecated_key("INPUT.SIZE_DIVISIBILITY")
    text = "VERSION: 2\nSEED: 5\nINPUT: {SIZE_DIVISIBILITY: -1}\n"
    cfg.merge_from_file(write(tmp_path / "old.yaml", text))
    assert cfg.SEED == 5 and "SIZE_DIVISIBILITY" not in cfg.INPUT


def test_frozen_configs_do_not_change() -> None:
    cfg = get_cfg()
    cfg.freeze()
    with pytest.raises(AttributeError):
        cfg.SEED = 1
    clone = cfg.clone()
    clone.defrost()
    clone.SEED = 1
    assert cfg.SEED == -1


def test_missing_files_and_other_versions_are_errors(tmp_path: Path) -> None:
    with pytest.raises((FileNotFoundError, AssertionError), match="none.yaml"):
        get_cfg().merge_from_file(str(tmp_path / "none.yaml"))
    with pytest.raises(FileNotFoundError, match="none.yaml"):
        get_cfg().merge_from_file(write(tmp_path / "a.yaml", "_BASE_: none.yaml\n"))
    with pytest.raises((ValueError, AssertionError)):
        get_cfg().merge_from_file(write(tmp_path / "b.yaml", "VERSION: 3\n"))


class Head:
    @configurable
    def __init__(self, width: int, *, depth: int = 2, scale: float = 1.0) -> None:
        self.values = (width, depth, scale)

    @classmethod
    def from_config(cls, cfg: CfgNode, scale: float = 0.5) -> dict:
        return {"width": cfg.WIDTH, "depth": 9, "scale": scale * 10}


class WideHead(Head):
    @classmethod
    def from_config(cls, cfg: CfgNode, *args: object, **kwargs: object) -> dict:
        return {"width": 100 * cfg.WIDTH + len(args) + len(kwargs)}


def test_classes_are_built_from_arguments_and_from_configs() -> None:
    cfg = CfgNode({"WIDTH": 3})
    assert Head(7).values == (7, 2, 1.0)
    assert Head(width=7, depth=1).values == (7, 1, 1.0)
    assert Head(cfg).values == (3, 9, 5.0)
    assert Head(cfg=cfg).values == (3, 9, 5.0)
    # scale goes to from_config, which takes it; width and depth override what it returns
    assert Head(cfg, scale=2.0).values == (3, 9, 20.0)
    assert Head(cfg, 2.0, depth=4, width=8).values == (8, 4, 20.0)
    assert WideHead(cfg, 1, depth=2).values == (302, 2, 1.0)


def test_configurable_is_checked() -> None:
    class Without:
        @configurable
        def __init__(self, width: int) -> None:
            pass

    class NoClassMethod(Without):
        def from_config(self, cfg: CfgNode) -> dict:
            return {}

    class OtherName(Without):
        @classmethod
        def from_config(cls, config: CfgNode) -> dict:
            return {}

    cfg = CfgNode()
    with pytest.raises(AttributeError, match="from_config"):
        Without(cfg)
    with pytest.raises(TypeError, match="from_config"):
        NoClassMethod(cfg)
    with pytest.raises(TypeError, match="cfg"):
        OtherName(cfg)
    with pytest.raises((TypeError, AssertionError)):
        configurable(lambda width: width)
