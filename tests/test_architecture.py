"""The layers of CONTRIBUTING.md, read off the import statements."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovformer.config import FIXED_KEYS, add_ovformer_config
from ovformer.d2 import CfgNode, get_cfg

ROOT = Path(__file__).parents[1]

# Package -> the packages of ours that it may import, besides itself. Bottom layer first.
SMALL = {"d2", "paths", "files"}
ALLOWED = {
    **dict.fromkeys(["d2", "ops", "paths", "files", "arguments"], set()),
    "config": {"d2"},
    "data": SMALL,
    "modeling": SMALL | {"ops"},
    "evaluation": SMALL | {"data", "ops"},
    "engine": SMALL | {"config", "data", "modeling", "evaluation", "ops"},
    "preflight": SMALL | {"config", "data", "modeling", "engine", "ops"},
    "predictor": SMALL | {"config", "data", "modeling", "evaluation", "engine", "ops", "arguments"},
    "run": SMALL | {"config", "data", "engine", "preflight"},
    "demo": SMALL | {"data", "predictor", "ops"},
    "export": SMALL | {"modeling", "predictor", "ops"},
}
BEHIND_THE_DOOR = {"detectron2", "fvcore", "iopath", "yacs"}
MODULES = sorted((ROOT / "ovformer").rglob("*.py"))
SCRIPTS = [*ROOT.glob("*.py"), *(ROOT / "tools").rglob("*.py")]
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def imported_modules(path: Path) -> list[str]:
    """All modules that a file imports anywhere in it, absolute."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.append(node.module)
            if node.module == "ovformer":
                names += [f"ovformer.{a.name}" for a in node.names if a.name != "__version__"]
    return names


def layer(path: Path) -> str:
    """``engine`` for ovformer/engine/x.py and ``config`` for ovformer/config/keys.py."""
    return path.relative_to(ROOT / "ovformer").with_suffix("").parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    own = layer(path)
    if own == "__init__":
        assert imported_modules(path) == []
        return
    assert own in ALLOWED, (
        f"ovformer/{own} is no known layer; add it to ALLOWED and CONTRIBUTING.md"
    )
    for name in imported_modules(path):
        parts = name.split(".")
        if parts[0] == "ovformer" and len(parts) > 1:
            assert parts[1] in ALLOWED[own] | {own}, f"{own} must not import {name}"


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_door_imports_detectron2(path: Path) -> None:
    if (ROOT / "ovformer" / "d2") in path.parents:
        return
    found = {name.split(".")[0] for name in imported_modules(path)} & BEHIND_THE_DOOR
    assert not found, f"import these from ovformer.d2: {sorted(found)}"


@pytest.mark.parametrize("path", MODULES + SCRIPTS + TESTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_grows_too_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450


def test_installing_needs_no_torch() -> None:
    assert "torch" not in {name.split(".")[0] for name in imported_modules(ROOT / "setup.py")}


def test_every_key_of_ours_is_read() -> None:
    """A key that no code reads would be set in vain; Swin's are the names of arguments."""
    theirs, ours = get_cfg(), get_cfg()
    add_ovformer_config(ours)
    added = set(key_names(ours)) - set(key_names(theirs)) - set(FIXED_KEYS)
    text = "\n".join(p.read_text(encoding="utf-8") for p in MODULES if p.stem != "config")
    names = {key: key.rsplit(".", 1)[1] for key in added}
    unread = [key for key, name in names.items() if not re.search(rf"\b{name}\b", text)]
    assert not [k for k in unread if not re.search(rf"\b{names[k].lower()}\b: ", text)]
    assert all(key.startswith("MODEL.SWIN.") for key in unread)


def key_names(node: CfgNode, prefix: str = "") -> Iterator[str]:
    """The full names of all values in a config."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from key_names(value, f"{prefix}{key}.")
        else:
            yield prefix + key
