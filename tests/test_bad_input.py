"""Bad input of a training script: one message, exit status 2, and no long work before that.

tests/preflight has the single errors of a config, machine or file.
"""

import pytest

from ovformer import run as training_script
from ovformer.engine.stages import IMAGE
from support.tiny_runs import TinyRun


def test_all_errors_at_once(refused) -> None:
    """Errors of reading the config, next to errors in the rest of it."""
    message = refused(
        *("MODEL.WEIGHTS", "none.pth", "SOLVER.OPTIMIZER", "ADAM", "DATASETS.TEST", "('none',)"),
        *("SOLVER.BASELR", "1", "SOLVER.MAX_ITER", "many", "SOLVER.REFERENCE_WORLD_SIZE", "3"),
        *("DATASETS.CUSTOM", "[{'name': 'mine'}, {'name': 'yours'}]"),
    )
    assert "8 thing(s)" in message
    for word in (
        *("none.pth", "'ADAM'", "DATASETS.TEST: ", "'SOLVER.BASELR'", "'many'"),
        *("REFERENCE_WORLD_SIZE is 3", "DATASETS.CUSTOM[0]: ", "DATASETS.CUSTOM[1]: "),
    ):
        assert word in message


def test_a_command_without_a_traceback(tiny_run: TinyRun) -> None:
    process = tiny_run.script("MODEL.WEIGHTS", "none.pth")
    assert process.returncode == 2 and process.stdout == ""
    assert process.stderr.startswith("train_net.py: error: ")
    assert "none.pth" in process.stderr and "Traceback" not in process.stderr


@pytest.mark.parametrize("words", [["--eval-only"], ["--config-file=none.yaml"]])
def test_no_config_file(capsys, words: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        training_script.main(IMAGE, words)
    assert stop.value.code == 2
    assert "--config-file" in capsys.readouterr().err


def test_missing_training_image(tiny_run: TinyRun) -> None:
    """Training images are looked for when the training reads its data set, not before."""
    (tiny_run.root / "shapes" / "train" / "002.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"shapes_train: 1 of 8 images.*002\.png"):
        tiny_run.here()


def test_an_evaluation_needs_no_file_of_the_training(tiny_run: TinyRun) -> None:
    (tiny_run.root / "shapes" / "shapes_train_norare.json").unlink()
    (tiny_run.root / "shapes" / "clip_train.safetensors").unlink()
    opts = ["DATASETS.TRAIN", "('lvis_v1_train',)", "MODEL.MASK_FORMER.CAT_INFO_PATH", "none.json"]
    opts += ["SOLVER.IMS_PER_BATCH", "3", "SOLVER.ACCUMULATION_STEPS", "2"]
    tiny_run.here("--eval-only", *opts)
    assert tiny_run.results()
