"""The commands that the pages for readers show."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from support.video_models import TINY

ROOT = Path(__file__).parents[2]
# In the order in which tests run their commands: docs/train.md makes the results of other pages.
_DOCS = sorted((ROOT / "docs").glob("*.md"), key=lambda page: (page.stem != "train", page.stem))
PAGES = [
    ROOT / "README.md",
    *_DOCS[:1],
    ROOT / "INSTALL.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "datasets" / "README.md",
    *_DOCS[1:],
]
SMALL_CLIP = ["--clip", "local-dir:clip", "--pretrained", ""]
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


def small_model() -> list[str]:
    """Words with which the commands, which are for real models and GPUs, run on any CPU."""
    keys = {
        **TINY,
        "MODEL.DEVICE": "cpu",
        "MODEL.CLIP.NAME": "local-dir:clip",
        "MODEL.CLIP.PRETRAINED": "",
        "MODEL.CLIP.IMAGE_SIZE": 32,
        "INPUT.MIN_SIZE_TRAIN": (64,),
        "INPUT.MIN_SIZE_TEST": 64,
        "DATALOADER.NUM_WORKERS": 0,
    }
    return [str(word) for pair in keys.items() for word in pair]


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
        if word and set(word) <= set("&;"):
            parts.append([])
        else:
            parts[-1].append(word)
    return [part for part in parts if part]


def python_blocks(page: str) -> list[str]:
    """Return the Python code of a page that is no file and no example of something."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"(?<!-->\n)```python\n(.*?)```", text, flags=re.DOTALL)


def save_files(folder: Path) -> None:
    """Save the files that pages ask their readers to save; a base is in this repository."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name, content in re.findall(
            r"<!-- file (\S+) -->\n```\w+\n(.*?)```", text, flags=re.DOTALL
        ):
            content = content.replace("_BASE_: configs", f"_BASE_: {ROOT}/configs")
            (folder / name).write_text(content, encoding="utf-8")
