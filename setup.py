"""Install OVFormer from the package registry alone. Imports no torch.

Nothing is compiled, unless ``$OVFORMER_BUILD_CUDA`` asks for the CUDA kernel: 1, or some GPUs.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
GPUS = os.environ.get("OVFORMER_BUILD_CUDA", "0")


class BuildWithKernel(build_py):
    """Copies the package, and compiles the CUDA kernel into it if that is wanted."""

    def run(self) -> None:
        """Do so."""
        super().run()
        if GPUS not in ("", "0"):
            package = ROOT if self.editable_mode else Path(self.build_lib).resolve()
            arguments = ["--cuda", "--output", str(package / "ovformer/ops/csrc")]
            arguments += ["--arch", *("all" if GPUS == "1" else GPUS).split()]
            line = [sys.executable, "-m", "ovformer.ops.build", *arguments]
            subprocess.run(line, check=True, cwd=ROOT)


class MachineDistribution(Distribution):
    """A wheel with a compiled kernel fits to one kind of machine only."""

    def has_ext_modules(self) -> bool:
        """Return whether there is something compiled."""
        return GPUS not in ("", "0")


EXTRAS = {
    "eval": ["faster-coco-eval>=1.6.5", "trackeval>=1.3"],
    "demo": ["av>=14", "defusedxml>=0.7", "gradio>=6.31", "matplotlib>=3.8"]
    + ["supervision>=0.25"],
    "export": ["onnx>=1.18", "onnxscript>=0.5", "onnxruntime>=1.22"],
    "test": ["pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "playwright>=1.45"]
    + ["ruff>=0.6"],
}
EXTRAS["test"] += EXTRAS["eval"] + EXTRAS["demo"] + EXTRAS["export"]

setup(
    cmdclass={"build_py": BuildWithKernel},
    distclass=MachineDistribution,
    name="ovformer",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "ovformer/__init__.py").read_text())[1],
    description="Open-vocabulary video instance segmentation",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["ovformer", "ovformer.*"]),
    package_data={"ovformer.data": ["categories/*.json"], "ovformer.ops": ["csrc/*"]},
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "open_clip_torch>=3.0",
        "timm>=1.0.9",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.9",
        "yacs>=0.1.8",
        "pycocotools>=2.0.8",
        "numpy>=1.26",
        "scipy>=1.11",
        "shapely>=2",
        "opencv-python>=4.10",
        "packaging>=22",
        "pillow>=10",
        "pyyaml>=6",
        "safetensors>=0.4.5",
        "tensorboard>=2.17",
        "tqdm>=4.66",
    ],
    extras_require=EXTRAS,
)
