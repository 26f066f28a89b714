"""The choice of the back-end, and its errors."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from ovformer.d2 import choice

ABSENT = ModuleNotFoundError("No module named 'detectron2'", name="detectron2")


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None, Exception | None], str]:
    """A function that sets $OVFORMER_D2 and what importing detectron2 raises, and chooses."""

    def run(wanted: str | None, error: Exception | None) -> str:
        def import_module(name: str) -> None:
            assert name == "detectron2.layers"  # loads the compiled extension, which may be broken
            if error is not None:
                raise error

        monkeypatch.delenv("OVFORMER_D2", raising=False)
        if wanted is not None:
            monkeypatch.setenv("OVFORMER_D2", wanted)
        monkeypatch.setattr(importlib, "import_module", import_module)
        return choice.choose_backend()

    return run


@pytest.mark.parametrize(
    ("wanted", "error", "chosen"),
    [
        (None, None, "detectron2"),
        ("auto", None, "detectron2"),
        ("detectron2", None, "detectron2"),
        (None, ABSENT, "builtin"),
        ("auto", ABSENT, "builtin"),
        ("builtin", None, "builtin"),
        ("builtin", ImportError("broken"), "builtin"),
    ],
)
def test_auto_takes_detectron2_where_it_is_installed(choose, wanted, error, chosen) -> None:
    assert choose(wanted, error) == chosen


@pytest.mark.parametrize(
    ("wanted", "error", "raised", "message"),
    [
        ("", None, ValueError, "''.*auto, detectron2, builtin"),
        ("Detectron2", None, ValueError, "'Detectron2'.*auto, detectron2, builtin"),
        ("detectron2", ABSENT, ImportError, r"INSTALL\.md.*OVFORMER_D2=builtin"),
    ],
)
def test_another_value_and_a_missing_back_end_are_errors(
    choose, wanted, error, raised, message
) -> None:
    with pytest.raises(raised, match=message):
        choose(wanted, error)


@pytest.mark.parametrize("wanted", ["auto", "detectron2"])
@pytest.mark.parametrize(
    "error",
    [
        ImportError("_C.so: undefined symbol"),
        OSError("libcudart.so: cannot open shared object file"),
        ModuleNotFoundError("No module named 'omegaconf'", name="omegaconf"),
        ModuleNotFoundError("No module named 'detectron2._C'", name="detectron2._C"),
    ],
)
def test_a_broken_installation_is_an_error_with_advice(choose, wanted, error) -> None:
    with pytest.raises(ImportError, match=r"INSTALL\.md.*OVFORMER_D2=builtin") as raised:
        choose(wanted, error)
    assert str(error) in str(raised.value) and raised.value.__cause__ is error


def test_forced_builtin_imports_nothing_of_detectron2() -> None:
    code = (
        "import sys, ovformer.d2 as d2; print(d2.BACKEND);"
        "print([m for m in sys.modules if m.split('.')[0] == 'detectron2'])"
    )
    line = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(
        line, env=os.environ | {"OVFORMER_D2": "builtin"}, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["builtin", "[]"], done.stderr
