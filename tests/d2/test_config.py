"""Configs and @configurable, on the selected back-end."""

import pytest
import yaml

from ovformer.d2 import CfgNode, configurable, get_cfg


def test_each_config_starts_with_detectron2s_defaults() -> None:
    changed = get_cfg()
    changed.MODEL.PIXEL_MEAN[0] = 0.0
    changed.TEST.AUG.FLIP = False
    cfg = get_cfg()
    assert cfg.VERSION == 2 and cfg.SEED == -1 and cfg.OUTPUT_DIR == "./output"
    assert cfg.INPUT.FORMAT == "BGR" and cfg.INPUT.MIN_SIZE_TRAIN == (800,)
    assert cfg.MODEL.PIXEL_MEAN == [103.53, 116.28, 123.675] and cfg.TEST.AUG.FLIP is True
    assert cfg.SOLVER.WARMUP_ITERS == 1000 and cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE == 1.0
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 100 and cfg.DATALOADER.REPEAT_SQRT is True


def test_a_file_follows_its_base_and_a_dumped_config_loads_again(tmp_path) -> None:
    (tmp_path / "base.yaml").write_text("SEED: 3\nMODEL: {DEVICE: cpu, OLD: -1}\n")
    child = "_BASE_: base.yaml\nSEED: 4\nSOLVER:\n  STEPS: (10, 20)\n"
    (tmp_path / "child.yaml").write_text(child)
    cfg, again = get_cfg(), get_cfg()
    cfg.register_deprecated_key("MODEL.OLD")
    cfg.merge_from_file(str(tmp_path / "child.yaml"))
    assert (cfg.SEED, cfg.MODEL.DEVICE, cfg.SOLVER.STEPS) == (4, "cpu", (10, 20))
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again.merge_from_file(str(tmp_path / "config.yaml"))
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("VERSION: 2\nMODEL: {NONSENSE: 1}\n", KeyError, "MODEL.NONSENSE"),
        ("VERSION: 2\nSEED: many\n", ValueError, "SEED"),
        ("VERSION: 3\n", (ValueError, AssertionError), None),
        ("_BASE_: none.yaml\n", FileNotFoundError, "none.yaml"),
        (None, (FileNotFoundError, AssertionError), "wrong.yaml"),
    ],
)
def test_wrong_files_and_unknown_keys_are_errors(tmp_path, text, error, message) -> None:
    path = tmp_path / "wrong.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=message):
        get_cfg().merge_from_file(str(path))
    with pytest.raises((KeyError, AssertionError), match="NONSENSE"):
        get_cfg().merge_from_list(["MODEL.NONSENSE", "1"])


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
    assert Head(cfg).values == Head(cfg=cfg).values == (3, 9, 5.0)
    # scale goes to from_config, which takes it; width and depth override what it returns
    assert Head(cfg, scale=2.0).values == (3, 9, 20.0)
    assert Head(cfg, 2.0, depth=4, width=8).values == (8, 4, 20.0)
    assert WideHead(cfg, 1, depth=2).values == (302, 2, 1.0)


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


def test_configurable_needs_a_constructor_and_a_class_method_that_takes_cfg() -> None:
    with pytest.raises(AttributeError, match="from_config"):
        Without(CfgNode())
    with pytest.raises(TypeError, match="from_config"):
        NoClassMethod(CfgNode())
    with pytest.raises(TypeError, match="cfg"):
        OtherName(CfgNode())
    with pytest.raises((TypeError, AssertionError)):
        configurable(lambda width: width)
