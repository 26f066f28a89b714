"""``python -m ovformer.ops.build``: compile the kernels of deformable attention before their use.

The CUDA kernel needs no torch here: its library has a plain C interface and works with any torch.
"""

import argparse
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from ovformer.ops.extension import BuildError, cache_folder, compile_library, writable_folder

CUDA_SOURCE = Path(__file__).parent / "csrc" / "ms_deform_attn_cuda.cu"
CUDA_FLAGS = (
    *("-O3", "-std=c++17", "-shared", "-cudart=static", "--threads=0"),
    *("-Xcompiler=-fPIC", "-Xcompiler=-fvisibility=hidden"),
)
OLDEST, NEWEST = 70, 100  # Volta to Blackwell: the compute capabilities, times ten, of `--arch all`


def cuda_library_name() -> str:
    """Return the file name of the CUDA kernel's library, with a hash of the source in it."""
    digest = hashlib.sha256(CUDA_SOURCE.read_bytes()).hexdigest()
    return f"{CUDA_SOURCE.stem}-{digest[:20]}.so"


def find_cuda_library() -> Path | None:
    """Return the CUDA kernel's library, from this package or the user's cache, or None."""
    folders = (CUDA_SOURCE.parent, cache_folder())
    paths = (folder / cuda_library_name() for folder in folders)
    return next((path for path in paths if path.exists()), None)


def find_nvcc() -> str:
    """Return the CUDA compiler of ``$CUDA_HOME``, on PATH, or in CUDA's usual folder.

    Raises:
        BuildError: there is none.
    """
    home = os.environ.get("CUDA_HOME")
    places = [f"{home}/bin/nvcc"] if home else ["nvcc", "/usr/local/cuda/bin/nvcc"]
    for place in places:
        if found := shutil.which(place):
            return found
    raise BuildError(f"there is no {' or '.join(places)}: install CUDA, or set CUDA_HOME")


def list_architectures(nvcc: str) -> list[int]:
    """Return the compute capabilities, times ten, that a compiler knows, in order.

    Raises:
        BuildError: the compiler does not list any.
    """
    run = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True)
    if not (known := re.findall(r"^sm_(\d+)$", run.stdout, re.MULTILINE)):
        raise BuildError(f"{nvcc} --list-gpu-code names none: {run.stdout}{run.stderr}")
    return sorted(map(int, known))


def make_architecture_flags(nvcc: str, wanted: Sequence[str]) -> list[str]:
    """Return flags for code of each architecture, and for PTX of the newest, which later GPUs run.

    Args:
        nvcc: the compiler.
        wanted: names as in ``sm_90``, ``9.0`` or ``90``; or ``all``; or ``native``, the GPUs here.

    Raises:
        BuildError: the compiler does not know one.
    """
    if list(wanted) == ["native"]:
        return ["-arch=native"]
    known = list_architectures(nvcc)
    numbers = {number for number in known if OLDEST <= number <= NEWEST}
    if list(wanted) != ["all"]:
        names = {name: re.fullmatch(r"(?:sm_)?(\d+)\.?(\d)", name) for name in wanted}
        if unknown := [n for n, m in names.items() if not m or int(m[1] + m[2]) not in known]:
            listed = ", ".join(f"sm_{number}" for number in known)
            raise BuildError(
                f"--arch: {nvcc} does not know {', '.join(unknown)}. Known: all, native, {listed}"
            )
        numbers = {int(match[1] + match[2]) for match in names.values()}
    # Code for each GPU starts at once; PTX of the newest is compiled by the driver of later GPUs.
    flags = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in sorted(numbers)]
    return [*flags, f"-gencode=arch=compute_{max(numbers)},code=compute_{max(numbers)}"]


def build_cuda(wanted: Sequence[str] = ("all",), folder: Path | None = None) -> Path:
    """Compile the CUDA kernel.

    Args:
        wanted: see :func:`make_architecture_flags`.
        folder: of the library; by default the user's cache, where the kernel is searched.

    Returns:
        The path of the library.

    Raises:
        BuildError: there is no compiler, or it failed.
    """
    nvcc = find_nvcc()
    command = [nvcc, *CUDA_FLAGS, *make_architecture_flags(nvcc, wanted)]
    folder = folder or writable_folder()
    folder.mkdir(parents=True, exist_ok=True)
    compile_library(CUDA_SOURCE, command, folder / cuda_library_name())
    return folder / cuda_library_name()


def build_cpu() -> None:
    """Compile the CPU kernel into the user's cache, unless it is there.

    Raises:
        BuildError: it can't be used.
    """
    import torch

    from ovformer.ops import ms_deform_attn_cpu

    if reason := ms_deform_attn_cpu.why_unavailable(torch.device("cpu")):
        raise BuildError(reason)


def main(argv: Sequence[str] | None = None) -> None:
    """Compile the kernels of the command line; exit with status 1 if one fails."""
    parser = argparse.ArgumentParser(prog="python -m ovformer.ops.build", description=__doc__)
    parser.add_argument("--cuda", action="store_true", help="only the CUDA kernel (needs nvcc)")
    parser.add_argument("--cpu", action="store_true", help="only the CPU kernel (needs g++)")
    parser.add_argument(
        "--arch",
        nargs="+",
        default=["all"],
        help="GPUs, as in `sm_80 sm_90`; `native`: those of this machine; `all` (default): "
        f"what nvcc knows from sm_{OLDEST} to sm_{NEWEST}, and PTX for later ones",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder of the CUDA library, for another machine; default: the user's cache",
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    both = arguments.cuda == arguments.cpu
    failures = []
    for name, chosen in (("cpu", arguments.cpu), ("cuda", arguments.cuda)):
        if not (chosen or both):
            continue
        start = perf_counter()
        try:
            path = build_cuda(arguments.arch, arguments.output) if name == "cuda" else build_cpu()
            place = f" ({path}, {path.stat().st_size / 1e6:.1f} MB)" if path else ""
            print(f"{name} kernel: ready after {perf_counter() - start:.0f} s{place}")
        except BuildError as error:
            failures.append(name)
            print(f"{name} kernel: not built: {error}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
