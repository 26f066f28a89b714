"""Libraries are compiled once, cached, and compiled again only for a reason."""

import ctypes
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ovformer.ops import ms_deform_attn_cpu
from ovformer.ops.extension import (
    BuildError,
    build_on_first_use,
    cache_folder,
    compile_library,
    load_library,
)

SOURCE = 'extern "C" int answer() { return NUMBER; }\n'
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def command(number: int = 42) -> list[str]:
    return ["g++", "-shared", "-fPIC", f"-DNUMBER={number}"]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source file, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "answer.cpp"
    path.write_text(SOURCE)
    return path


def test_it_is_compiled_once_for_each_source_and_flag_and_compiler(
    source, tmp_path, caplog
) -> None:
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert build_on_first_use(source, command()).answer() == 42
    (path,) = cache_folder().iterdir()
    assert [str(path) in record.message for record in caplog.records] == [True]
    assert build_on_first_use(source, command(43)).answer() == 43
    source.write_text(SOURCE.replace("NUMBER", "-NUMBER"))
    assert build_on_first_use(source, command()).answer() == -42
    newer = tmp_path / "newer"
    newer.write_text('#!/bin/sh\n[ "$1" = --version ] && echo 99 || exec g++ "$@"\n')
    newer.chmod(0o755)
    assert build_on_first_use(source, [str(newer), *command()[1:]]).answer() == -42
    assert len(list(cache_folder().iterdir())) == 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:100] + bytes([whole[100] ^ 1]) + whole[101:],
        lambda whole: b"",
    ],
)
def test_a_damaged_library_is_compiled_again(damage, source, caplog) -> None:
    build_on_first_use(source, command())
    (path,) = cache_folder().iterdir()
    whole = path.read_bytes()
    path.unlink()  # as it is in use
    path.write_bytes(damage(whole))
    with pytest.raises(BuildError, match=re.escape(str(path))):
        load_library(path)
    assert build_on_first_use(source, command()).answer() == 42
    assert str(path) in caplog.text
    assert path.read_bytes()[:1000] == whole[:1000]


def test_without_a_writable_cache_it_compiles_to_a_temporary_folder(
    source, caplog, monkeypatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(source))  # a file, where no folder can be made
    assert build_on_first_use(source, command()).answer() == 42
    assert "XDG_CACHE_HOME" in caplog.text


@pytest.mark.parametrize("writable", [True, False])
def test_the_compiler_output_is_in_the_named_file(source, writable, monkeypatch) -> None:
    source.write_text("int broken(\n")
    if not writable:
        monkeypatch.setenv("XDG_CACHE_HOME", str(source))
    with pytest.raises(BuildError, match=r"g\+\+ failed \(.*error: .*\), see /") as caught:
        build_on_first_use(source, command())
    report = Path(str(caught.value).rsplit("see ", 1)[1])
    text = report.read_text()
    assert text.startswith("g++ -shared") and "error" in text and "answer.cpp:1" in text
    if writable:
        assert list(cache_folder().iterdir()) == [report]
    else:
        report.unlink()


def test_several_processes_may_compile_at_once(source, tmp_path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom ovformer.ops.extension import *\n"
        "sys.stdin.readline()\n"
        "sys.exit(build_on_first_use(Path(sys.argv[1]), sys.argv[2:]).answer())"
    )
    line = [sys.executable, "-c", code, str(source), *command()]
    processes = [subprocess.Popen(line, stdin=subprocess.PIPE) for _ in range(6)]
    for process in processes:
        process.stdin.write(b"go\n")
        process.stdin.close()
    assert [process.wait(60) for process in processes] == [42] * 6
    assert len(list(cache_folder().iterdir())) == 1


def test_the_cpu_kernel_compiles_without_a_warning(tmp_path) -> None:
    output = tmp_path / "kernel.so"
    line = ["g++", *ms_deform_attn_cpu.FLAGS, "-Wall", "-Wextra", "-Werror"]
    compile_library(ms_deform_attn_cpu.SOURCE, line, output)
    assert isinstance(load_library(output), ctypes.CDLL)
    assert os.listdir(tmp_path) == ["kernel.so"]
