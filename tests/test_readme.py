"""What the README says about files and commands is true."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from ovformer.config import get_ovformer_cfg

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "INSTALL.md",
    ROOT / "datasets" / "README.md",
    ROOT / "docs" / "tutorial.md",
]


def commands() -> list[tuple[str, list[str]]]:
    """All ``python ...`` commands of the pages, as (page, argument list)."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                for part in line.split("#")[0].split("&&"):
                    words = shlex.split(part)
                    if words[:1] == ["torchrun"]:
                        script = next(i for i, w in enumerate(words) if w.endswith(".py"))
                        words = ["python", *words[script:]]
                    if words[:1] == ["python"] and words[1].endswith(".py"):
                        found.append((page.name, words[1:]))
    return found


COMMANDS = commands()


def test_the_pages_have_commands() -> None:
    assert {page for page, _ in COMMANDS} >= {"README.md"}
    assert len(COMMANDS) > 5


@pytest.mark.parametrize("script", sorted({words[0] for _, words in COMMANDS}))
def test_options_in_the_pages_exist(script: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert not end.value.code
    help_text = capsys.readouterr().out
    used = {w.split("=")[0] for _, words in COMMANDS if words[0] == script for w in words}
    missing = [o for o in used if o.startswith("--") and not re.search(rf"{o}\b", help_text)]
    assert not missing, f"{script} has no {missing}"


@pytest.mark.parametrize(
    "words", [w for _, w in COMMANDS if "--config-file" in w], ids=lambda w: " ".join(w)
)
def test_configs_and_keys_in_the_pages_exist(words: list[str], tmp_path: Path) -> None:
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
    (text,) = (
        found[1]
        for page in PAGES
        if (found := re.search(block, page.read_text("utf-8"), re.DOTALL))
    )
    path = folder / name
    path.write_text(text.replace("_BASE_: ", f"_BASE_: {ROOT}/"))
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
