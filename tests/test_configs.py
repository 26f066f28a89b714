"""The configs: what they hold, what they inherit, and what a wrong key or value says."""

import json
from pathlib import Path

import pytest
import yaml

from ovformer.config import _WITHOUT_EFFECT, FIXED_KEYS, UnknownKeyError, get_ovformer_cfg
from ovformer.d2 import CfgNode

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
MODELS = [path for path in CONFIGS if not path.name.startswith("base_")]


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


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT)))
def test_loads(path: Path) -> None:
    assert get_ovformer_cfg(str(path)).is_frozen()


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


@pytest.mark.parametrize("name", ["ovformer_R50_bs8", "ovformer_SwinB_bs8"])
def test_published_values(reference, name: str) -> None:
    cfg = get_ovformer_cfg(str(ROOT / "configs" / "lvis" / f"{name}.yaml"))
    for key, value in published(reference, name).items():
        if key not in _WITHOUT_EFFECT:
            expected = CfgNode._decode_cfg_value(value)
            got = lookup(cfg, key)
            assert (list(got) if isinstance(got, tuple | list) else got) == (
                list(expected) if isinstance(expected, tuple | list) else expected
            ), key


@pytest.mark.parametrize("name", ["ovformer_R50_bs8", "ovformer_SwinB_bs8"])
def test_published_files_load_unchanged(reference, tmp_path: Path, name: str) -> None:
    tree: dict = {}
    for key, value in published(reference, name).items():
        *parents, last = key.split(".")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    path = tmp_path / "published.yaml"
    path.write_text(yaml.safe_dump(tree))
    ours = get_ovformer_cfg(str(ROOT / "configs" / "lvis" / f"{name}.yaml"))
    assert get_ovformer_cfg(str(path)) == ours


@pytest.mark.parametrize("key", FIXED_KEYS)
def test_fixed_keys_have_their_value_by_default(key: str) -> None:
    assert lookup(get_ovformer_cfg(), key) == FIXED_KEYS[key]


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


def test_all_unknown_keys_at_once() -> None:
    with pytest.raises(UnknownKeyError) as error:
        get_ovformer_cfg(None, ["SOLVER.BASELR", "1", "NOTHING.LIKE_IT", "1"])
    assert "'SOLVER.BASELR'" in str(error.value)
    assert "'NOTHING.LIKE_IT'" in str(error.value)


def test_a_value_of_the_wrong_type_names_its_key() -> None:
    with pytest.raises(ValueError, match=r"SOLVER\.BASE_LR"):
        get_ovformer_cfg(None, ["SOLVER.BASE_LR", "fast"])


def test_a_key_without_a_value() -> None:
    with pytest.raises(ValueError, match="pairs KEY VALUE"):
        get_ovformer_cfg(None, ["SOLVER.BASE_LR"])


def test_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml does not exist"):
        get_ovformer_cfg("nowhere.yaml")


def test_no_code_in_yaml(tmp_path: Path) -> None:
    path = tmp_path / "code.yaml"
    path.write_text("OUTPUT_DIR: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(yaml.constructor.ConstructorError):
        get_ovformer_cfg(str(path))
