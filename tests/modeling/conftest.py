"""Fixtures for tests against numbers recorded from the published system."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="session")
def fill_weights(reference: Callable[[str], Path]) -> ModuleType:
    """The rule that made the weights of the recorded files; see ``fill_state_dict`` in it."""
    spec = importlib.util.spec_from_file_location("fill_weights", reference("fill_weights.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def normalise() -> Callable[[torch.Tensor], torch.Tensor]:
    """The published normalisation of an RGB image (..., 3, H, W)."""
    mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    return lambda image: (image.float() - mean) / std
