"""Loads tools by name; they are scripts, not a package."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from predictor_fixture import make_frames, trained  # noqa: F401

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="session")
def load_tool() -> Callable[[str], ModuleType]:
    """Function from a tool's name to its module, which has ``main(argv)``."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name.replace("-", "_"), TOOLS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
