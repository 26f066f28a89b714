"""Files and URLs, registries, random seeds, and a table of installed versions."""

import logging
import os
import platform
import random
import sys
from importlib import metadata

import numpy as np
import torch
from fvcore.common.registry import Registry
from iopath.common.file_io import HTTPURLHandler
from iopath.common.file_io import PathManager as _PathManager
from tabulate import tabulate

__all__ = ["PathManager", "Registry", "collect_env_info", "seed_all_rng"]

PathManager = _PathManager()
PathManager.register_handler(HTTPURLHandler())

_REPORTED_PACKAGES = (
    "torchvision",
    "numpy",
    "pillow",
    "opencv-python",
    "opencv-python-headless",
    "fvcore",
    "iopath",
    "pycocotools",
    "timm",
    "open_clip_torch",
)


def seed_all_rng(seed: int | None = None) -> None:
    """Seed the random number generators of Python, NumPy and PyTorch.

    Args:
        seed: the seed; None draws one from the operating system and logs it.
    """
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "big")
        logging.getLogger(__name__).info("Using a generated random seed %d", seed)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # of all devices
    os.environ["PYTHONHASHSEED"] = str(seed)


def collect_env_info() -> str:
    """Return a table of the versions and devices that matter in a bug report."""
    rows = [
        ("platform", platform.platform()),
        ("Python", sys.version.replace("\n", "")),
        ("detectron2", "built-in subset of ovformer"),
        ("PyTorch", f"{torch.__version__} @{os.path.dirname(torch.__file__)}"),
        ("CUDA of PyTorch", torch.version.cuda),
        *((name, _version(name)) for name in _REPORTED_PACKAGES),
        ("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", "not set")),
        ("GPUs", torch.cuda.device_count() if torch.cuda.is_available() else "none"),
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            rows.append((f"GPU {index}", torch.cuda.get_device_name(index)))
    return f"{tabulate(rows)}\n{torch.__config__.show()}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
