"""Compile the CUDA kernel into the package, where ``$OVFORMER_BUILD_CUDA`` asks for it.

Everything else about installing stands in pyproject.toml. Imports no torch.
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# 1 compiles for all GPUs, names of architectures ("sm_80 sm_90") for those.
GPUS = os.environ.get("OVFORMER_BUILD_CUDA", "0")


class BuildWithKernel(build_py):
    """Copies the package, and compiles the CUDA kernel into it if that is asked for."""

    def run(self) -> None:
        """Copy the files, then call the compiler."""
        super().run()
        if GPUS not in ("", "0"):
            # An editable installation has no copy: the kernel goes beside its source.
            package = ROOT if self.editable_mode else Path(self.build_lib).resolve()
            arguments = ["--cuda", "--output", str(package / "ovformer/ops/csrc")]
            arguments += ["--arch", *("all" if GPUS == "1" else GPUS).split()]
            line = [sys.executable, "-m", "ovformer.ops.build", *arguments]
            subprocess.run(line, check=True, cwd=ROOT)


class MachineDistribution(Distribution):
    """A wheel with a compiled kernel is marked as one for a single kind of machine."""

    def has_ext_modules(self) -> bool:
        """Return whether the wheel holds compiled code."""
        return GPUS not in ("", "0")


setup(cmdclass={"build_py": BuildWithKernel}, distclass=MachineDistribution)
