"""setup_logger: destinations and format of the lines."""

import logging
import re
from collections.abc import Iterator

import pytest

from ovformer.d2 import setup_logger

TIME = r"\d\d/\d\d \d\d:\d\d:\d\d"


@pytest.fixture
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """A logger of this test's own, as loggers live as long as the process."""
    name = f"d2_test_{request.function.__name__}"
    yield name
    logging.getLogger(name).handlers.clear()


def test_console_shows_short_names_and_warnings(name, capsys) -> None:
    assert setup_logger(name=name, abbrev_name="ov") is logging.getLogger(name)
    child = logging.getLogger(f"{name}.engine")
    child.info("plain %d", 1)
    child.warning("careful")
    child.error("broken")
    child.debug("detail")
    found = re.sub(TIME, "TIME", capsys.readouterr().out).splitlines()
    levels = {"plain 1": "", "careful": "WARNING ", "broken": "ERROR ", "detail": ""}
    assert found == [f"{level}[TIME ov.engine]: {text}" for text, level in levels.items()]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "WARNING [TIME NAME.engine]: line"),
        ({"abbrev_name": ""}, "WARNING [TIME engine]: line"),
        ({"color": False}, "[TIME] NAME.engine WARNING: line"),
    ],
)
def test_console_lines(name, capsys, options, expected) -> None:
    assert setup_logger(name=name, **options).propagate is False
    assert setup_logger(name=f"{name}.child", enable_propagation=True).propagate is True
    logging.getLogger(f"{name}.engine").warning("line")
    found = re.sub(TIME, "TIME", capsys.readouterr().out).replace(name, "NAME")
    assert found == expected + "\n"


def test_folder_and_file(name, tmp_path) -> None:
    folder, file = tmp_path / "new" / "run", tmp_path / "file.log"
    setup_logger(str(folder), name=name).info("to a folder")
    assert re.fullmatch(rf"\[{TIME}\] {name} INFO: to a folder\n", (folder / "log.txt").read_text())
    setup_logger(str(file), name=name, configure_stdout=False).info("to both")
    assert "to both" in file.read_text() and "to both" in (folder / "log.txt").read_text()


def test_other_ranks_get_a_file_and_no_console(name, tmp_path, capsys) -> None:
    setup_logger(str(tmp_path), distributed_rank=3, name=name).info("from rank 3")
    assert "from rank 3" in (tmp_path / "log.txt.rank3").read_text()
    assert capsys.readouterr().out == ""


def test_two_loggers_share_a_file_without_the_console(name, tmp_path, capsys) -> None:
    for part in "abab":
        setup_logger(str(tmp_path), name=f"{name}_{part}", configure_stdout=False).info(part)
    text = (tmp_path / "log.txt").read_text()
    assert [line[-1] for line in text.splitlines()] == ["a", "b", "a", "b"]
    assert capsys.readouterr().out == ""
