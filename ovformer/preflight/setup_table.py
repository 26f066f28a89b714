"""The table of tools/check_setup.py: rows in sections, printed one by one, or as JSON."""

import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

# Status of a row -> its mark, and the mark for output that can't show the first one.
MARKS = {"ok": ("✓", "ok"), "bad": ("✗", "NO"), "warning": ("!", "! "), "note": ("-", "- ")}
NAME_WIDTH = 20


@dataclass(frozen=True)
class Row:
    """One result of the check.

    Attributes:
        status: "ok"; "bad", which makes the whole check fail; "warning"; or "note".
        name: of the thing that was checked.
        detail: what was found, and for "bad" the next step.
    """

    status: str
    name: str
    detail: str


class Table:
    """Collects rows in sections.

    Args:
        is_printed: print each row as soon as it is added.
    """

    def __init__(self, is_printed: bool = True) -> None:
        self.is_printed = is_printed
        self.sections: dict[str, list[Row]] = {}
        encoding = sys.stdout.encoding or "ascii"
        marks = "".join(pretty for pretty, _ in MARKS.values())
        self._plain = marks.encode(encoding, "ignore").decode(encoding) != marks
        self._width = max(80, shutil.get_terminal_size((100, 24)).columns)

    def add(self, section: str, rows: Iterable[Row]) -> None:
        """Add a section with its rows."""
        found = self.sections.setdefault(section, [])
        if self.is_printed:
            print(f"\n{section}" if len(self.sections) > 1 else section)
        for row in rows:
            is_repeated = row.status == "ok" and bool(found) and found[-1].name == row.name
            found.append(row)
            if self.is_printed:
                print(self._text(row, "" if is_repeated else row.name), flush=True)

    @property
    def is_good(self) -> bool:
        """Whether no row is bad."""
        return all(row.status != "bad" for rows in self.sections.values() for row in rows)

    def to_json(self) -> list[dict[str, str]]:
        """Return all rows as dicts with ``section``, ``status``, ``name`` and ``detail``."""
        return [
            {"section": section, **asdict(row)}
            for section, rows in self.sections.items()
            for row in rows
        ]

    def _text(self, row: Row, name: str) -> str:
        start = f"  {MARKS[row.status][self._plain]} {name:<{NAME_WIDTH}} "
        # Words stay whole, so that paths and commands can be copied.
        text = textwrap.fill(
            row.detail,
            self._width,
            initial_indent=start,
            subsequent_indent=" " * (NAME_WIDTH + 5),
            break_long_words=False,
            break_on_hyphens=False,
        )
        encoding = sys.stdout.encoding or "ascii"
        return text.encode(encoding, "replace").decode(encoding)


def add_error_row(name: str, rows: Iterable[Row]) -> Iterator[Row]:
    """Yield rows; if an error of bad input ends them, yield it as a bad row of that name."""
    try:
        yield from rows
    except KeyError as error:
        yield Row("bad", name, str(error.args[0]))
    except (OSError, ValueError) as error:
        yield Row("bad", name, str(error))
