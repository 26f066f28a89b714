"""Fixtures for the tests of the compatibility layer."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def recorded(reference: Callable[[str], Path]) -> dict[str, Any]:
    """What real detectron2 gave, by name; arrays and plain values together."""
    values = json.loads(reference("d2_contract.json").read_text(encoding="utf-8"))
    with np.load(reference("d2_contract.npz")) as arrays:
        return values | dict(arrays)


@pytest.fixture
def lines(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], list[str]]:
    """A function that returns the lines logged so far, with single spaces."""
    for name in ("detectron2", "ovformer", "fvcore"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    caplog.set_level(logging.INFO)
    return lambda: [" ".join(record.getMessage().split()) for record in caplog.records]
