#!/usr/bin/env python
"""Write the map of the files in docs/architecture.md: the first sentence of each file.

python docs/file_map.py
"""

import argparse
import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
START, END = "<!-- map of the files -->\n", "<!-- end of the map -->\n"


def update(page: str) -> str:
    """Return the text of the page with a new map between its two marks."""
    before, rest = page.split(START)
    return f"{before}{START}{describe_files()}{END}{rest.split(END)[1]}"


def describe_files() -> str:
    """Return a table for each folder, with its own sentence above."""
    folders = [ROOT, *(p.parent for p in (ROOT / "ovformer").rglob("__init__.py")), ROOT / "tools"]
    folders += [p.parent for p in (ROOT / "tools").rglob("__init__.py")]
    parts = []
    for folder in sorted(folders):
        files = sorted(p for p in folder.glob("*.py") if p.name != "__init__.py")
        title = "**Scripts**" if folder == ROOT else f"**`{folder.relative_to(ROOT)}/`**"
        init = folder / "__init__.py"
        if init.exists():
            title += f" {first_sentence(init)}"
        parts.append(f"\n{title}\n")
        if files:
            rows = [f"| `{p.name}` | {first_sentence(p)} |" for p in files]
            parts.append("\n".join(["", "| file | |", "|---|---|", *rows, ""]))
    return "".join(parts) + "\n"


def first_sentence(path: Path) -> str:
    """Return the first paragraph of a file's docstring as one line of Markdown."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    line = " ".join(docstring.split("\n\n")[0].split())
    line = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", line)  # Sphinx's roles
    return line.replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.write_text(update(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
