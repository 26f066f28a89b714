"""Several processes, micro-batches and recomputed activations have the gradient of the plain step.

With the real models and losses; images and clips have different numbers of instances.
"""

import pytest
import torch

from support import one_step
from support.tiny_runs import TinyRun, make_run

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# Stage and norm of the class loss, and how many instances the targets of the whole batch have:
# images, frames, or clips.
KINDS = {
    "image:queries": [0, 1, 2, 3],
    "image:instances": [0, 1, 2, 3],
    "video:instances": [0, 0, 1, 1, 1, 1, 2, 3],
    "clip:queries": [0, 1, 2, 3],
    "clip:instances": [0, 1, 2, 3],
    "clip of one:instances": [0, 0, 0, 1],  # in one of several parts
}
# Of each kind a plain step, and the same one of two micro-batches.
CASES = [f"{kind}:{steps}" for kind in KINDS for steps in (1, 2)]
MORE = ["image:instances:4", "image:instances:1r", "video:instances:1r", "clip:queries:1r"]
MORE += ["clip:queries:2r"]
# Clips of different sizes; one process pads them all to the largest height and width.
SIZES = ["sizes:queries:2", "sizes:queries:4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    made = make_run(tmp_path_factory.mktemp("whole batch"))
    made.output.mkdir()
    return made


def results(run: TinyRun) -> dict[str, dict]:
    """Case "stage:norm:steps:processes" -> losses and gradients."""
    return {path.stem: torch.load(path) for path in run.output.glob("*.pth")}


@pytest.fixture(scope="module")
def one_process(run: TinyRun) -> dict[str, dict]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(run.root))
        one_step.set_up(patch.setattr)
        sizes = ["sizes:queries:1", *SIZES]
        one_step.work(str(run.config), str(run.output), CASES + MORE + sizes)
    return results(run)


@pytest.fixture(scope="module")
def two_processes(run: TinyRun, one_process: dict) -> dict[str, dict]:
    cases = [*CASES, "clip:queries:2r"]
    command = [*TORCHRUN, one_step.__file__, str(run.config), str(run.output), *cases]
    run.python(*command).check_returncode()
    return results(run)


def check_gradient(results: dict[str, dict], kind: str, parts: str) -> None:
    """Compare the step of a split batch with that of the whole batch."""
    whole, cut = results[f"{kind}:1:1"], results[f"{kind}:{parts}"]
    assert cut["counts"] == whole["counts"] == KINDS.get(kind, [0, 1, 2, 3])
    assert cut["losses"] == pytest.approx(whole["losses"], rel=1e-10)
    for name, expected in whole["gradients"].items():
        difference = (cut["gradients"][name] - expected).norm() / expected.norm().clamp(min=1e-3)
        assert difference < 1e-10, name


@pytest.mark.parametrize("case", [*CASES[1::2], *MORE, *SIZES])
def test_one_process(one_process: dict[str, dict], case: str) -> None:
    """With accumulation, recomputed activations, or both."""
    kind, steps = case.rsplit(":", 1)
    check_gradient(one_process, kind, f"{steps}:1")


@pytest.mark.slow
@pytest.mark.parametrize("case", [*CASES, "clip:queries:2r"])
def test_two_processes(two_processes: dict[str, dict], case: str) -> None:
    """Without and with accumulation."""
    kind, steps = case.rsplit(":", 1)
    check_gradient(two_processes, kind, f"{steps}:2")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "of one" not in kind])
def test_every_parameter_has_a_gradient(one_process: dict[str, dict], kind: str) -> None:
    gradients = one_process[f"{kind}:1:1"]["gradients"]
    zero = [name for name, gradient in gradients.items() if gradient.norm() < 1e-9]
    # Norms that follow take biases off, and deformable attention starts with the same offsets and
    # weights everywhere.
    decoder = "sem_seg_head.pixel_decoder"
    biases = [f"{decoder}.input_proj.{level}.0.bias" for level in range(3)]
    assert sorted(zero) == [*biases, f"{decoder}.transformer.level_embed"]
