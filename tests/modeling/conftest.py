"""Fixtures for tests against numbers recorded from the published system."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

from support.video_models import RECORDED, build_small_model


@pytest.fixture(scope="session")
def fill_weights(reference: Callable[[str], Path]) -> ModuleType:
    """The rule that made the weights of the recorded files; see ``fill_state_dict`` in it."""
    spec = importlib.util.spec_from_file_location("fill_weights", reference("fill_weights.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def build_recorded_model(tmp_path_factory, fill_weights: ModuleType) -> Callable[..., nn.Module]:
    """A function from classes' frequencies and config keys to the model of a recorded file."""

    def build(frequencies: str = "f", **options: object) -> nn.Module:
        folder = tmp_path_factory.mktemp("vocabulary")
        model = build_small_model(folder, 100, 512, RECORDED, frequencies, **options)
        fill_weights.fill_state_dict(model.state_dict())
        return model

    return build
