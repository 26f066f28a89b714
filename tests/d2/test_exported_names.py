"""The compatibility layer exports what something imports, and little more."""

import ast
from pathlib import Path

from ovformer import d2

ROOT = Path(__file__).parents[2]
# Imported by nothing here: hooks, losses and evaluators of users record scalars with it.
PROMISED_TO_USERS = {"get_event_storage"}


def test_each_exported_name_is_imported_or_promised_and_each_import_is_exported() -> None:
    folders = (ROOT / "ovformer", ROOT / "tools")
    files = [*ROOT.glob("*.py"), *(file for folder in folders for file in folder.rglob("*.py"))]
    imported = set()
    for file in files:
        if ROOT / "ovformer" / "d2" in file.parents:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "ovformer.d2":
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "ovformer.d2":
                imported.add(node.attr)
    assert imported | PROMISED_TO_USERS == set(d2.__all__)
    assert not imported & PROMISED_TO_USERS
