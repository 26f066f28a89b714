"""The layers of docs/architecture.md, checked on the import statements, and what a wheel holds."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovformer.config import FIXED_KEYS, add_ovformer_config
from ovformer.d2 import CfgNode, get_cfg

ROOT = Path(__file__).parents[1]

# Layer -> the layers that it may import, besides itself. Bottom layer first.
SMALL = {"d2", "paths", "files"}
ALLOWED = {
    **dict.fromkeys(["d2", "ops", "paths", "files", "arguments"], set()),
    "config": {"d2"},
    "data": SMALL,
    "modeling": SMALL | {"ops"},
    "evaluation": SMALL | {"data", "ops"},
    "engine": SMALL | {"data", "modeling", "evaluation", "ops"},
    "preflight": SMALL | {"config", "data", "modeling", "engine", "ops"},
    "predictor": SMALL | {"config", "data", "modeling", "evaluation", "engine", "ops", "arguments"},
    "run": SMALL | {"config", "data", "engine", "preflight", "arguments"},
    "demo": SMALL | {"data", "predictor"},
    "export": SMALL | {"modeling", "predictor", "ops"},
}
# The same for the folders of two layers.
ALLOWED_FOLDERS = {
    "data": {
        "files": set(),
        "catalog": {"files"},
        "samples": {"files"},
        "exports": {"files"},
        "loading": {"files", "catalog", "samples"},
    },
    "modeling": {
        **dict.fromkeys(["backbone", "language", "objective", "tracks"], set()),
        "decoders": {"language"},
        "meta_arch": {"language", "decoders", "objective", "tracks"},
    },
}
ONLY_IN_D2 = {"detectron2", "fvcore", "iopath", "yacs"}
# Names that other packages call: methods of classes of theirs.
OVERRIDES = {"_load_file"}
MODULES = sorted((ROOT / "ovformer").rglob("*.py"))
SCRIPTS = [*ROOT.glob("*.py"), *(ROOT / "tools").rglob("*.py")]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """All that a file imports anywhere in it, absolute: for ``from a import b`` a and a.b."""
    names = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names - {"ovformer.__version__"}


def module_name(path: Path) -> str:
    """``ovformer.engine.trainer`` for a file; an __init__.py has the name of its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = module_name(path).split(".")[1:]
    ours = [name.split(".")[1:] for name in imported(path) if name.startswith("ovformer.")]
    if not own:
        assert not ours
        return
    assert own[0] in ALLOWED, f"unknown layer {own[0]}: add it to ALLOWED and docs/architecture.md"
    forbidden = [parts for parts in ours if parts[0] not in ALLOWED[own[0]] | {own[0]}]
    folders = ALLOWED_FOLDERS.get(own[0])
    if folders and len(own) > 1:
        inside = [parts[1] for parts in ours if parts[0] == own[0] and len(parts) > 1]
        forbidden += [folder for folder in inside if folder not in folders[own[1]] | {own[1]}]
    assert not forbidden, f"{own} must not import these"


def test_no_circle_of_files() -> None:
    """Files can be read in an order in which each comes after all that it imports."""
    names = {module_name(path): path for path in MODULES}
    imports = {name: imported(path) & set(names) - {name} for name, path in names.items()}
    # Take away files whose imports are all taken away; what is left is in a circle or above one.
    while free := {name for name, needed in imports.items() if not needed & set(imports)}:
        imports = {name: needed for name, needed in imports.items() if name not in free}
    assert not imports


def test_only_d2_imports_detectron2() -> None:
    assert "torch" not in imported(ROOT / "setup.py")  # which pip runs before torch is there
    outside = [p for p in MODULES + SCRIPTS if ROOT / "ovformer" / "d2" not in p.parents]
    for path in outside:
        found = {name.split(".")[0] for name in imported(path)} & ONLY_IN_D2
        assert not found, f"{path}: import these from ovformer.d2: {found}"


def test_the_package_uses_what_it_defines() -> None:
    """No function, method or class of the package is there for tests alone.

    What a registry calls by name counts as used, and so does what d2 has of detectron2's interface.
    """
    used, defined = set(OVERRIDES), {}
    for path in MODULES + SCRIPTS:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Name):
                used.add(node.id)
            elif isinstance(node, ast.Attribute):
                used.add(node.attr)
            elif isinstance(node, ast.alias):
                used.add(node.name.split(".")[-1])
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)) and path in MODULES:
                registered = any("regist" in ast.unparse(d) for d in node.decorator_list)
                if not (registered or node.name.startswith("__") or "d2" in path.parts):
                    defined[node.name] = path.relative_to(ROOT)
    assert not {name: path for name, path in defined.items() if name not in used}


def test_wheels_hold_all_files() -> None:
    """What is not Python stands in pyproject.toml's package-data."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 can't read pyproject.toml")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    package_data = settings["tool"]["setuptools"]["package-data"]
    held = {
        path
        for package, patterns in package_data.items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    files = {p for p in (ROOT / "ovformer").rglob("*") if p.is_file() and p not in MODULES}
    assert {p for p in files if "__pycache__" not in p.parts} == held


def test_every_key_of_ours_is_read() -> None:
    """A key that no code reads would be set in vain; Swin's are the names of arguments."""
    ours = get_cfg()
    add_ovformer_config(ours)
    added = set(key_names(ours)) - set(key_names(get_cfg())) - set(FIXED_KEYS)
    text = "\n".join(p.read_text(encoding="utf-8") for p in MODULES if p.name != "keys.py")
    for key in added:
        name = key.rsplit(".", 1)[1]
        argument = key.startswith("MODEL.SWIN.") and re.search(rf"\b{name.lower()}\b: ", text)
        assert argument or re.search(rf"\b{name}\b", text), key


def key_names(node: CfgNode, prefix: str = "") -> Iterator[str]:
    """The full names of all values in a config."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from key_names(value, f"{prefix}{key}.")
        else:
            yield prefix + key
