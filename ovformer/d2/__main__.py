"""``python -m ovformer.d2``: print the back-end, the reason for it, and the origin of each name."""

import inspect
import os
import platform
import types
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import ovformer.d2 as d2

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "detectron2",
    "fvcore",
    "iopath",
    "yacs",
    "pycocotools",
)


def explain_choice() -> str:
    """Return why this back-end was chosen."""
    wanted = os.environ.get("OVFORMER_D2", "auto")
    if wanted != "auto":
        return f"OVFORMER_D2={wanted}"
    return "detectron2 is installed" if find_spec("detectron2") else "detectron2 is not installed"


def find_origin(value: object) -> str:
    """Return the module that an exported object comes from."""
    if isinstance(value, types.ModuleType):
        return value.__name__
    if inspect.isclass(value) or inspect.isroutine(value):
        return value.__module__
    if isinstance(value, str):
        return repr(value)
    return f"{type(value).__module__} (an instance of {type(value).__name__})"


def find_version(package: str) -> str:
    """Return the installed version of a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown version" if find_spec(package) else "not installed"


def main() -> None:
    """Print the report."""
    print(f"back-end: {d2.BACKEND} ({explain_choice()})")
    print(f"{'python':<12} {platform.python_version()}")
    for package in PACKAGES:
        print(f"{package:<12} {find_version(package)}")
    print()
    for name in d2.__all__:
        print(f"{name:<44} {find_origin(getattr(d2, name))}")


if __name__ == "__main__":
    main()
