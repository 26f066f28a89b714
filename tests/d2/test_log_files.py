"""setup_logger: destinations and format of the lines."""

import logging
import re
import sys

import pytest

from ovformer.d2 import setup_logger


@pytest.fixture
def name(request: pytest.FixtureRequest):
    """A logger of this test's own, as loggers live as long as the process."""
    name = f"d2_test_{request.node.name}"
    yield name
    for handler in list(logging.getLogger(name).handlers):
        logging.getLogger(name).removeHandler(handler)


def test_console_shows_short_names_and_warnings(name, capsys) -> None:
    logger = setup_logger(name=name, abbrev_name="ov")
    assert logger is logging.getLogger(name)
    child = logging.getLogger(f"{name}.engine")
    child.info("plain %d", 1)
    child.warning("careful")
    child.error("broken")
    child.debug("detail")
    found = capsys.readouterr().out.splitlines()
    stamp = r"\[\d\d/\d\d \d\d:\d\d:\d\d ov\.engine\]: "
    for line, expected in zip(
        found,
        [f"{stamp}plain 1", f"WARNING {stamp}careful", f"ERROR {stamp}broken", f"{stamp}detail"],
        strict=True,
    ):
        assert re.fullmatch(expected, line)


@pytest.mark.parametrize(("abbreviation", "shown"), [("", "engine"), (None, "{name}.engine")])
def test_abbreviations(name, capsys, abbreviation, shown) -> None:
    setup_logger(name=name, abbrev_name=abbreviation)
    logging.getLogger(f"{name}.engine").info("line")
    assert f" {shown.format(name=name)}]: line" in capsys.readouterr().out


def test_plain_console(name, capsys) -> None:
    setup_logger(name=name, color=False).warning("line")
    stamp = r"\[\d\d/\d\d \d\d:\d\d:\d\d\]"
    assert re.fullmatch(rf"{stamp} {re.escape(name)} WARNING: line\n", capsys.readouterr().out)


def test_folder_and_file(name, tmp_path, capsys) -> None:
    setup_logger(str(tmp_path / "new" / "run"), name=name).info("to a folder")
    text = (tmp_path / "new" / "run" / "log.txt").read_text()
    assert re.fullmatch(rf"\[.{{14}}\] {re.escape(name)} INFO: to a folder\n", text)
    setup_logger(str(tmp_path / "file.log"), name=name, configure_stdout=False).info("to both")
    assert "to both" in (tmp_path / "file.log").read_text()
    assert "to both" in (tmp_path / "new" / "run" / "log.txt").read_text()


def test_other_ranks_get_a_file_and_no_console(name, tmp_path, capsys) -> None:
    setup_logger(str(tmp_path), distributed_rank=3, name=name).info("from rank 3")
    assert "from rank 3" in (tmp_path / "log.txt.rank3").read_text()
    assert capsys.readouterr().out == ""


def test_calling_twice_adds_nothing(name, tmp_path, capsys) -> None:
    for _ in range(2):
        setup_logger(str(tmp_path), name=name)
    logging.getLogger(name).info("once")
    assert capsys.readouterr().out.count("once") == 1
    assert (tmp_path / "log.txt").read_text().count("once") == 1


def test_propagation_is_off_unless_asked_for(name) -> None:
    assert setup_logger(name=name).propagate is False
    assert setup_logger(name=name, enable_propagation=True).propagate is True


def test_two_loggers_share_a_file(name, tmp_path) -> None:
    first = setup_logger(str(tmp_path), name=f"{name}_1", configure_stdout=False)
    second = setup_logger(str(tmp_path), name=f"{name}_2", configure_stdout=False)
    first.info("a")
    second.info("b")
    first.info("c")
    messages = [line[-1] for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert messages == ["a", "b", "c"]
    assert sys.stdout not in [getattr(h, "stream", None) for h in first.handlers + second.handlers]
