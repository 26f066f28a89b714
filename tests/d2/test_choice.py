"""The choice of the back-end, and its errors."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ovformer.d2 import choice


def import_fails_with(error: Exception) -> object:
    def fail(name: str) -> None:
        raise error

    return fail


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> object:
    """A function that sets $OVFORMER_D2 and what importing detectron2 raises, and chooses."""

    def choose(wanted: str | None, error: Exception | None = None) -> str:
        if wanted is None:
            monkeypatch.delenv("OVFORMER_D2", raising=False)
        else:
            monkeypatch.setenv("OVFORMER_D2", wanted)
        fail = import_fails_with(error) if error else lambda name: None
        monkeypatch.setattr(importlib, "import_module", fail)
        return choice.choose_backend()

    return choose


ABSENT = ModuleNotFoundError("No module named 'detectron2'", name="detectron2")


def test_auto_takes_detectron2_where_it_is_installed(asked) -> None:
    assert asked(None) == asked("auto") == asked("detectron2") == "detectron2"
    assert asked(None, ABSENT) == asked("auto", ABSENT) == "builtin"


def test_builtin_can_be_forced_even_over_a_broken_installation(asked) -> None:
    assert asked("builtin") == asked("builtin", ImportError("broken")) == "builtin"


@pytest.mark.parametrize("value", ["", "yes", "Detectron2"])
def test_another_value_is_an_error_that_lists_the_three(asked, value: str) -> None:
    with pytest.raises(ValueError, match="auto, detectron2, builtin") as error:
        asked(value)
    assert repr(value) in str(error.value)


def test_detectron2_forced_but_absent_is_an_error(asked) -> None:
    with pytest.raises(ImportError, match=r"INSTALL\.md.*OVFORMER_D2=builtin"):
        asked("detectron2", ABSENT)


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
def test_a_broken_installation_is_an_error_with_advice(asked, wanted: str, error) -> None:
    with pytest.raises(ImportError, match="OVFORMER_D2=builtin") as raised:
        asked(wanted, error)
    message = str(raised.value)
    assert str(error) in message and "INSTALL.md" in message
    assert raised.value.__cause__ is error


def run_code(code: str, path: Path | str = "", **environment: str) -> subprocess.CompletedProcess:
    kept = {key: value for key, value in os.environ.items() if key != "OVFORMER_D2"}
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [str(path), kept["PYTHONPATH"]]))
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=kept | environment,
        capture_output=True,
        text=True,
    )


def test_a_package_that_breaks_at_import_is_not_absent(tmp_path: Path) -> None:
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text("")
    (tmp_path / "detectron2" / "layers.py").write_text("raise ImportError('undefined symbol')")
    script = str(Path(choice.__file__))
    done = run_code(f"import runpy; runpy.run_path({script!r})['choose_backend']()", tmp_path)
    assert done.returncode != 0
    assert "ImportError" in done.stderr and "undefined symbol" in done.stderr


def test_forced_builtin_imports_nothing_of_detectron2() -> None:
    code = (
        "import sys, ovformer.d2 as d2; print(d2.BACKEND);"
        "print([m for m in sys.modules if m.split('.')[0] == 'detectron2']);"
        "print([n for n in d2.__all__ if not hasattr(d2, n)])"
    )
    done = run_code(code, OVFORMER_D2="builtin")
    assert done.stdout.splitlines() == ["builtin", "[]", "[]"], done.stderr


@pytest.mark.detectron2
def test_with_detectron2_the_names_are_its_own() -> None:
    import detectron2.data
    import detectron2.modeling
    import detectron2.structures

    from ovformer import d2

    assert d2.META_ARCH_REGISTRY is detectron2.modeling.META_ARCH_REGISTRY
    assert d2.DatasetCatalog is detectron2.data.DatasetCatalog
    assert d2.Instances is detectron2.structures.Instances
