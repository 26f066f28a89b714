"""What the README says about files and commands is true."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from ovformer.config import get_ovformer_cfg
from support.page_commands import PAGES, ROOT, Command, commands

COMMANDS = [c for c in commands() if c.script]


def test_the_pages_have_commands() -> None:
    assert {c.page for c in COMMANDS} >= {"README.md", "datasets/README.md", "docs/predict.md"}
    assert len(COMMANDS) > 5


@pytest.mark.parametrize(
    "words", sorted({(c.script, *c.subcommand) for c in COMMANDS}), ids=" ".join
)
def test_options_in_the_pages_exist(words: tuple[str, ...], monkeypatch, capsys) -> None:
    script = words[0]
    if script == "tests/fuzz/run.py":
        pytest.skip("needs the package atheris, and takes libFuzzer's options")
    monkeypatch.setattr(sys, "argv", [*words, "--help"])
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / script), run_name="__main__")
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
    words = command.arguments
    index = words.index("--config-file")
    opts = words[index + 2 :]
    opts = opts[
        next((i for i, w in enumerate(opts) if re.match(r"[A-Z]+[A-Z_.]*$", w)), len(opts)) :
    ]
    config = ROOT / words[index + 1]
    if not config.exists():
        config = saved_config(config.name, tmp_path)
    get_ovformer_cfg(str(config), opts)


def saved_config(name: str, folder: Path) -> Path:
    """Save a config that a page shows, with the base in this repository."""
    block = rf"<!-- file {re.escape(name)} -->\n```yaml\n(.*?)```"
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    path = folder / name
    path.write_text(re.search(block, pages, re.DOTALL)[1].replace("_BASE_: ", f"_BASE_: {ROOT}/"))
    return path


def test_links_and_pictures_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_map_names_every_file() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    files = [*(ROOT / "ovformer").rglob("*.py"), *(ROOT / "tools").glob("*.py"), *ROOT.glob("*.py")]
    names = [str(f.relative_to(ROOT)) for f in files if f.name != "__init__.py"]
    assert not [name for name in names if f"`{name}`" not in text]


def test_continuous_integration_runs_the_readme() -> None:
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("<!-- test command -->\n")[1]
    assert "pytest" in block.split("```")[1]
    assert "README.md" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
