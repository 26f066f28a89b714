"""The compatibility layer exports what something imports, and little more."""

import ast
from pathlib import Path

from ovformer import d2

ROOT = Path(__file__).parents[2]
# Imported by nothing here: hooks, losses and evaluators of users record scalars with it.
PROMISED_TO_USERS = {"get_event_storage"}


def imported_names() -> set[str]:
    """Return what the package, the tools and the scripts import from `ovformer.d2`."""
    files = [
        *(ROOT / "ovformer").rglob("*.py"),
        *(ROOT / "tools").rglob("*.py"),
        *ROOT.glob("*.py"),
    ]
    nodes = [
        node
        for file in files
        if ROOT / "ovformer" / "d2" not in file.parents
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    ]
    imports = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.module == "ovformer.d2"]
    # `import ovformer.d2` is for what is read as `ovformer.d2.NAME`.
    read = [
        n for n in nodes if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "ovformer.d2"
    ]
    return {alias.name for node in imports for alias in node.names} | {node.attr for node in read}


def test_each_name_is_imported_or_promised() -> None:
    assert set(d2.__all__) - imported_names() == PROMISED_TO_USERS


def test_each_imported_name_is_exported() -> None:
    assert imported_names() <= set(d2.__all__)
