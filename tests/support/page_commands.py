"""The commands that the pages for readers show."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "INSTALL.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "datasets" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
# A line of an indented block that is a command.
_INDENTED = re.compile(r"^ {4}(?=(?:python|pip|pytest|torchrun|bash|ruff) )")


@dataclass(frozen=True)
class Command:
    """A command of a page.

    Attributes:
        page: the file, relative to the repository.
        words: the command and its arguments.
    """

    page: str
    words: tuple[str, ...]

    @property
    def script(self) -> str:
        """The Python script that it runs, or an empty text."""
        is_python = self.words[0] in ("python", "torchrun")
        return next((w for w in self.words if is_python and w.endswith(".py")), "")

    @property
    def subcommand(self) -> tuple[str, ...]:
        """The first argument, if it says which of several things the script does."""
        return tuple(w for w in self.arguments[:1] if re.fullmatch("[a-z]+(-[a-z]+)*", w))

    @property
    def arguments(self) -> list[str]:
        """What the script is told."""
        return list(self.words[self.words.index(self.script) + 1 :]) if self.script else []

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def commands() -> list[Command]:
    """Return the commands of all pages, in order: of ``bash`` blocks and of indented ones."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
        outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines()
        blocks.append(
            "\n".join(_INDENTED.sub("", line) for line in outside if _INDENTED.match(line))
        )
        for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
            for part in shell_parts(line):
                found.append(Command(str(page.relative_to(ROOT)), tuple(part)))
    return found


def shell_parts(line: str) -> list[list[str]]:
    """Split a line of shell at ``&&`` and ``;``, without its comment."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&;")
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("&;"):
            parts.append([])
        else:
            parts[-1].append(word)
    return [part for part in parts if part]


def python_blocks(page: str) -> list[str]:
    """Return the Python code of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
