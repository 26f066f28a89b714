"""``python -m ovformer.ops.build`` compiles and links the CUDA source, or reports why it can't."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ovformer.ops import build, ms_deform_attn_cuda
from ovformer.ops.extension import BuildError, load_library

COMPILER = """#!/bin/sh
[ "$1" = --list-gpu-code ] && printf 'sm_%s\n' 70 75 80 90 100 120 90a
"""


@pytest.fixture
def nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A compiler of another age, which knows some GPUs but compiles nothing."""
    path = tmp_path / "cuda" / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text(COMPILER)
    path.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    return str(path)


def found_nvcc() -> bool:
    try:
        return bool(build.find_nvcc())
    except BuildError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not found_nvcc(), reason="needs nvcc, CUDA's compiler")
def test_the_cuda_source_compiles_and_links(tmp_path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    line = [sys.executable, "-m", "ovformer.ops.build", "--cuda", "--arch", "sm_90"]
    run = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    (path,) = Path(tmp_path, "ovformer").iterdir()
    assert str(path) in run.stdout and path.name == build.cuda_library_name()
    library = load_library(path)
    ms_deform_attn_cuda.declare_return_types(library)  # all functions are there
    assert library.ms_deform_attn_usable(99)  # no machine has 100 GPUs
    assert b"libcudart.so" not in path.read_bytes()


@pytest.mark.parametrize(
    ("architectures", "compiled", "newest"),
    [
        (["all"], (70, 75, 80, 90, 100), 100),  # from Volta to Blackwell, without 120 and 90a
        (["90", "sm_80", "12.0"], (80, 90, 120), 120),
    ],
)
def test_architectures(nvcc, architectures, compiled, newest) -> None:
    assert build.find_nvcc() == nvcc
    assert build.make_architecture_flags(nvcc, architectures) == [
        *(f"-gencode=arch=compute_{n},code=sm_{n}" for n in compiled),
        f"-gencode=arch=compute_{newest},code=compute_{newest}",
    ]
    assert build.make_architecture_flags(nvcc, ["native"]) == ["-arch=native"]


@pytest.mark.parametrize("wrong", ["sm_60", "9", "hopper", "sm_90a"])
def test_unknown_architectures_are_errors(wrong, nvcc) -> None:
    with pytest.raises(BuildError, match=rf"--arch: .*{wrong}.*all, native, sm_70, sm_7"):
        build.make_architecture_flags(nvcc, ["80", wrong])


@pytest.mark.parametrize("home", [None, "/no/such/cuda"])
def test_without_a_compiler_the_command_fails_and_says_so(home, monkeypatch, capsys) -> None:
    monkeypatch.delenv("CUDA_HOME", raising=False)
    if home:
        monkeypatch.setenv("CUDA_HOME", home)
    monkeypatch.setattr(build.shutil, "which", lambda place: None)
    with pytest.raises(SystemExit) as end:
        build.main(["--cuda"])
    assert end.value.code == 1
    printed = capsys.readouterr().out
    assert printed.startswith("cuda kernel: not built: ") and "set CUDA_HOME" in printed
    assert (home or "/usr/local/cuda") + "/bin/nvcc" in printed


def test_the_library_is_found_where_it_was_built(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "CUDA_SOURCE", tmp_path / "package" / "kernel.cu")
    build.CUDA_SOURCE.parent.mkdir()
    build.CUDA_SOURCE.write_text("one")
    assert build.find_cuda_library() is None
    kept = tmp_path / "ovformer" / build.cuda_library_name()
    kept.parent.mkdir()
    kept.touch()
    assert build.find_cuda_library() == kept
    packed = tmp_path / "package" / kept.name
    packed.touch()
    assert build.find_cuda_library() == packed
    build.CUDA_SOURCE.write_text("another")
    assert build.find_cuda_library() is None


def test_compiling_the_cuda_kernel_needs_no_torch() -> None:
    code = "import sys, ovformer.ops.build; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
