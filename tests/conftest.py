"""Fixtures shared by all tests."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest

# A busy machine is no fault of a test's.
hypothesis.settings.register_profile("ovformer", deadline=None)
hypothesis.settings.load_profile("ovformer")

# One thread adds up in one order, so that trainings can be compared bit by bit; and models as small
# as those of the tests are no slower. Set before torch is imported, and for all subprocesses.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Subprocesses import what tests import, from this checkout (pyproject.toml: pythonpath).
ROOT = Path(__file__).parents[1]
_FOLDERS = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tools"), os.environ.get("PYTHONPATH")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _FOLDERS))

import torch  # noqa: E402

# Triton decides between interpreter and compiler when it is imported, which many a package does.
with pytest.MonkeyPatch.context() as environment:
    if not torch.cuda.is_available():
        environment.setenv("TRITON_INTERPRET", "1")
    import ovformer.ops.ms_deform_attn_triton  # noqa: E402, F401
from ovformer.d2 import BACKEND  # noqa: E402
from support.scripts import restore_loggers  # noqa: E402

REFERENCE = ROOT / "tests/reference"
TOOLS = ROOT / "tools"

# Modules of fixtures.
pytest_plugins = [
    f"support.{name}" for name in ("mini_lvis", "mini_videos", "predictor_fixture", "tiny_runs")
]


@pytest.fixture(scope="session")
def reference() -> Callable[[str], Path]:
    """A function from the name of a recorded file to its path under ``tests/reference``."""
    return lambda name: REFERENCE / name


@pytest.fixture(scope="session")
def load_tool() -> Callable[[str], ModuleType]:
    """A function from a tool's name to its module, which has ``main(argv)``.

    Tools are scripts, not a package. Their folder is where they import from, as when they are run.
    """

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name.replace("-", "_"), TOOLS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(TOOLS)
            spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def user_error(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """A function that runs ``main(words)`` of a script, and returns the message it ends with."""

    def run(main: Callable, *words: object) -> str:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        assert end.value.code == 2
        return capsys.readouterr().err

    return run


@pytest.fixture(autouse=True)
def restored_loggers() -> Iterator[None]:
    """Scripts that run in this process configure loggers, which others look at."""
    with restore_loggers():
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU or real detectron2 where there is none, and say so."""
    missing = {
        "gpu": None if torch.cuda.is_available() else "needs a CUDA device",
        "detectron2": None if BACKEND == "detectron2" else "needs an installed detectron2",
    }
    for item in items:
        for marker, reason in missing.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
