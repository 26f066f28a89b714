"""tools/quickstart.py: finished steps are skipped, stale ones run again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ovformer_tools.shape_scenes import CATEGORY_NAMES

TOOL = "quickstart"
ROOT = Path(__file__).parents[2]


def step(tool, output: Path, text: str = "'x'"):
    """A step that appends to its output, which shows how often it ran."""
    code = f"import os, sys; open(sys.argv[1], 'a').write({text})"
    return tool.Step(f"write {output.name}", ["-c", code, str(output)], output)


def test_finished_steps_are_skipped(tool, tmp_path: Path, capsys) -> None:
    # The second command prints a setting, which it sees as an environment variable.
    steps = [step(tool, tmp_path / "a"), step(tool, tmp_path / "b", "os.environ['SETTING']")]
    record, settings = tmp_path / "steps.json", {"SETTING": "s"}
    for some in (steps[:1], steps, steps):
        tool.run_steps(some, record, settings)
    assert [s.output.read_text() for s in steps] == ["x", "s"]
    finished = [entry["command"] for entry in json.loads(record.read_text())]
    assert finished == [s.command for s in steps]
    assert capsys.readouterr().out.count("finished already") == 3


def test_a_changed_step_and_all_after_it_run_again(tool, tmp_path: Path) -> None:
    names, record = ("a", "b", "c"), tmp_path / "steps.json"
    tool.run_steps([step(tool, tmp_path / name) for name in names], record, {})
    (tmp_path / "b.parts").mkdir()
    (tmp_path / "b_of_mine").mkdir()
    texts = ("'x'", "'y'", "'x'")
    changed = [step(tool, tmp_path / name, text) for name, text in zip(names, texts, strict=True)]
    tool.run_steps(changed, record, {})
    assert [(tmp_path / name).read_text() for name in names] == ["x", "y", "x"]
    assert not (tmp_path / "b.parts").exists() and (tmp_path / "b_of_mine").exists()


def test_a_failed_step_stops_and_is_run_again(tool, tmp_path: Path) -> None:
    good, bad = step(tool, tmp_path / "a"), step(tool, tmp_path / "missing" / "b")
    record = tmp_path / "steps.json"
    with pytest.raises(SystemExit, match="Step 2 of 2 failed"):
        tool.run_steps([good, bad], record, {})
    (tmp_path / "missing").mkdir()
    tool.run_steps([good, bad], record, {})
    assert good.output.read_text() == bad.output.read_text() == "x"


def test_swapped_names_and_commands_of_the_steps(tool, tmp_path: Path) -> None:
    for made in tool.make_steps(tmp_path, 0, False):
        assert (ROOT / made.command[0]).is_file(), made.command[0]
    swapped = tool.write_swapped_names(tmp_path / "names.txt").read_text().splitlines()
    assert sorted(swapped) == sorted(CATEGORY_NAMES)
    for name, other in zip(CATEGORY_NAMES, swapped, strict=True):
        assert name.split()[0] == other.split()[0] and name.split()[1] != other.split()[1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_has_time_to_save_when_it_is_stopped(tmp_path: Path, number: int) -> None:
    saved = tmp_path / "saved"
    code = (
        "import pathlib, signal, sys, time\n"
        "def save(number, frame):\n"
        f"    time.sleep(1); pathlib.Path({str(saved)!r}).touch(); sys.exit(128 + number)\n"
        "signal.signal(signal.SIGINT, save); signal.signal(signal.SIGTERM, save)\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    driver = (
        "import os, sys; sys.path.insert(0, 'tools'); import quickstart\n"
        f"sys.exit(quickstart.run_command([sys.executable, '-c', {code!r}], dict(os.environ)))"
    )
    command = [sys.executable, "-c", driver]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout.readline() == b"ready\n"
    if number == signal.SIGINT:  # as a terminal sends it
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    assert process.wait(30) == 128 + number
    assert saved.exists()


@pytest.mark.slow
def test_from_nothing_to_a_report(tmp_path: Path) -> None:
    output = tmp_path / "quickstart"
    command = [sys.executable, "tools/quickstart.py", "--fast", "--output", str(output)]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    pictures = ("predictions.png", "films.png", "losses.png", "clip_losses.png")
    for name in ("report.html", *pictures, "train/model_final.pth", "clips/model_final.pth"):
        assert (output / name).stat().st_size > 0
    page = (output / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(pictures) and "http" not in page
    assert "data:video/mp4;base64," in page and "<th>of 9 names<th>of 36 names" in page
    for entry in json.loads((output / "steps.json").read_text())[:-1]:
        assert entry["command"][0] in first.stdout and entry["command"][0] in page
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert second.returncode == 0
    assert second.stdout.count("finished already") == 16
