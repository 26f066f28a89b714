"""Files, links, options, config keys and names that the pages mention exist."""

import pkgutil
import re
import runpy
import sys
from itertools import dropwhile
from pathlib import Path

import pytest

from ovformer.config import get_ovformer_cfg
from support.page_commands import PAGES, ROOT, Command, commands, save_files

COMMANDS = [c for c in commands() if c.script]


@pytest.mark.parametrize(
    "words", sorted({(c.script, *c.subcommand) for c in COMMANDS}), ids=" ".join
)
def test_options_in_the_pages_exist(
    words: tuple[str, ...], tmp_path: Path, monkeypatch, capsys
) -> None:
    script = words[0]
    if script == "tests/fuzz/run.py":
        pytest.skip("needs the package atheris, and takes libFuzzer's options")
    monkeypatch.setattr(sys, "argv", [*words, "--help"])
    save_files(tmp_path)
    path = ROOT / script if (ROOT / script).exists() else tmp_path / script
    monkeypatch.syspath_prepend(str(path.parent))
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert not end.value.code
    help_text = capsys.readouterr().out
    used = {
        w.split("=")[0] for c in COMMANDS if (c.script, *c.subcommand) == words for w in c.arguments
    }
    missing = [o for o in used if o.startswith("--") and not re.search(rf"{o}\b", help_text)]
    assert not missing, f"{script} has no {missing}"


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if "--config-file" in c.arguments], ids=str
)
def test_configs_and_keys_in_the_pages_exist(command: Command, tmp_path: Path) -> None:
    words = iter(command.arguments[command.arguments.index("--config-file") + 1 :])
    config = ROOT / next(words)
    keys = dropwhile(lambda word: not re.match(r"[A-Z]+[A-Z_.]*$", word), words)
    save_files(tmp_path)
    get_ovformer_cfg(str(config if config.exists() else tmp_path / config.name), list(keys))


def test_links_and_images_exist() -> None:
    """Files that pages link to, and headings in them."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text):
            target = page.parent / name if name else page
            assert target.exists(), f"{page}: {name}"
            assert not heading or heading in headings(target), f"{page}: {name}#{heading}"


def headings(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_paths_and_modules_exist() -> None:
    """Paths and dotted names of ours; <name> in a path stands for any, birds are an example."""
    folders = r"(?<![\w/.-])(?:ovformer|tools|tests|configs|docs)/[\w./*<>-]*"
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for path in re.findall(folders, text):
            if "<" not in path and "birds" not in path:
                assert list(ROOT.glob(path.rstrip("./"))), f"{page.name}: {path}"
        for name in re.findall(r"\bovformer(?:\.[a-z_0-9]\w*)+", text):
            pkgutil.resolve_name(name)  # raises ImportError or AttributeError


def test_the_map_of_files_is_new() -> None:
    """docs/architecture.md has the first sentence of each file, as docs/file_map.py writes it."""
    file_map = runpy.run_path(str(ROOT / "docs" / "file_map.py"))
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert file_map["update"](page) == page, "run python docs/file_map.py"


def test_continuous_integration_runs_the_readme() -> None:
    assert {c.page for c in COMMANDS} >= {"README.md", "datasets/README.md", "docs/predict.md"}
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("<!-- test command -->\n")[1]
    assert "pytest" in block.split("```")[1]
    assert "README.md" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
