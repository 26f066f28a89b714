"""The tool that a test file is about."""

from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def tool(request: pytest.FixtureRequest, load_tool: Callable[[str], ModuleType]) -> ModuleType:
    """The tool that the test file names in ``TOOL``."""
    return load_tool(request.module.TOOL)
