"""tools/check_setup.py: what its table says, and its exit status."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ovformer.d2 import BACKEND
from ovformer.engine.stages import CLIPS
from support.scripts import restore_loggers
from support.tiny_runs import ROOT, TinyRun, make_run

TOOL = "check_setup"
SCRIPT = str(ROOT / "tools" / "check_setup.py")


@pytest.fixture
def check(tool, monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """A function that runs the tool in this process and returns its status and output."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))

    def run(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop, restore_loggers():
            tool.main(words)
        printed = capsys.readouterr()
        text = printed.err if stop.value.code == 2 else printed.out
        return stop.value.code, " ".join(text.split())

    return run


def bad(output: str) -> list[str]:
    return [row["detail"] for row in json.loads(output)["rows"] if row["status"] == "bad"]


def test_the_environment(check) -> None:
    status, output = check("--json")
    found = {row["name"]: row for row in json.loads(output)["rows"]}
    assert status == 0
    assert found["torch"]["status"] == "ok" and "torch" in found["packages"]["detail"]
    assert found["detectron2's names"]["detail"].startswith(f"from {BACKEND}")
    assert "(deformable attention)" in found["kernel on cpu"]["detail"]
    assert {"Python", "ovformer", "CPU", "extra [eval]", "extra [test]"} <= found.keys()


def test_a_run_without_faults(check, tiny_run: TinyRun) -> None:
    status, output = check(*tiny_run.command("--decode"))
    assert status == 0, output
    for words in (
        "✓ script train_net.py, which runs OVFormer",
        "8 images, 12 annotations of",
        "of 36 categories (27 base, 9 novel)",
        "4 of 4 image files are there",
        "4 images decoded",
        "MODEL.WEIGHTS is empty",
        "36 classes of width 16, 'red circle' to",
        "all 8 images have theirs",
        "and there will be 3",
        "✓ faults none",
        "All is well.",
    ):
        assert words in output
    assert "✗" not in output and not tiny_run.output.exists()


def test_missing_files(check, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "none"))
    config = str(ROOT / "configs" / "lvvis" / "video_ovformer_R50_bs8.yaml")
    status, output = check("--config-file", config, "--json", "OUTPUT_DIR", str(tmp_path / "out"))
    assert status == 1 and "train_net_lvvis.py" in output
    for words in (
        "$DETECTRON2_DATASETS names another",
        "tools/remove_lvvis_novel.py makes it",
        "tools/build_text_classifier.py",
        "MODEL.WEIGHTS: models/ovformer_r50_lvis.pth not found",
        "MODEL.MASK_FORMER.CAT_INFO_PATH: no file",
    ):
        assert words in "\n".join(bad(output))


def test_a_missing_image_a_broken_one_and_one_of_another_size(check, tiny_run: TinyRun) -> None:
    folder = tiny_run.root / "shapes" / "train"
    (folder / "003.png").write_bytes((folder / "003.png").read_bytes()[:500])
    (folder / "005.png").write_bytes(b"")
    words = tiny_run.command("--json")
    status, output = check(*words)
    assert status == 1
    (fault,) = bad(output)
    assert fault.startswith(f"2 of 8 images are broken: {folder / '003.png'}: the image can't be")
    (folder / "002.png").unlink()
    fault = bad(check(*words)[1])[0]
    assert f"1 of 8 images not found, the first is {folder / '002.png'}" in fault
    for name in ("002.png", "003.png", "005.png"):
        Image.new("RGB", (64, 32)).save(folder / name)
    fault = bad(check(*words)[1])[0]
    assert "3 of 8 images are broken" in fault
    assert "002.png has 32 x 64 pixels, its annotations say 64 x 64" in fault
    assert check(*tiny_run.command("--json", "--eval-only"))[0] == 0  # reads no training set


def test_errors_of_the_config(check, tiny_run: TinyRun) -> None:
    words = ["SOLVER.BASELR", "1", "SOLVER.IMS_PER_BATCH", "3", "MODEL.META_ARCHITECTURE", "Mine"]
    status, output = check(*tiny_run.command("--num-gpus=2", *words))
    assert status == 1
    for text in (
        "unknown config key 'SOLVER.BASELR'",
        "3 images can't be split evenly",
        "unknown 'Mine'",
        "What train_net.py says before it starts",
    ):
        assert text in output
    status, output = check(*tiny_run.command("--script=train_net_video.py"))
    assert status == 1 and "train_net.py runs OVFormer" in output


def test_clip_is_loaded_on_demand(check, tiny_run: TinyRun, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no network")

    name = "ovformer.preflight.vocabulary.CLIPEncoder.from_pretrained"
    monkeypatch.setattr(name, refuse)
    words = ["--json", "MODEL.MASK_FORMER.CLIP_IMAGE_PATH", ""]
    status, output = check(*tiny_run.command(*words))
    assert status == 0 and "--load-clip tries it now" in output
    status, output = check(*tiny_run.command("--load-clip", *words))
    assert status == 1 and bad(output) == ["no network"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config-file", "README.md"], "README.md is no YAML file"),
        (["--num-gpus", "many"], "--num-gpus"),
        (["--script", "train.py"], "--script"),
    ],
)
def test_nothing_to_check(check, monkeypatch, words: list[str], message: str) -> None:
    monkeypatch.chdir(ROOT)
    status, output = check(*words)
    assert status == 2 and message in output


@pytest.mark.slow
def test_videos(check, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data sets"))
    run = make_run(tmp_path, CLIPS)
    status, output = check(*run.command("--decode"))
    assert status == 0, output
    assert "3 videos with 10 frames" in output and "fits the whole model" in output


@pytest.mark.slow
def test_as_a_command(tiny_run: TinyRun) -> None:
    broken = tiny_run.root / "shapes" / "train" / "004.png"
    broken.write_bytes(broken.read_bytes()[:500])
    annotations = tiny_run.root / "shapes" / "shapes_val.json"
    annotations.write_text(annotations.read_text()[:-100])
    words = tiny_run.command("--decode")
    process = tiny_run.python(SCRIPT, *words, PYTHONIOENCODING="ascii")
    assert process.returncode == 1
    text = " ".join(process.stdout.split())
    assert f"NO shapes_train 1 of 8 images are broken: {broken}:" in text
    assert f"NO shapes_val {annotations}: not valid JSON" in text
    assert "Traceback" not in process.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("OVFORMER_D2", "detectron3", "OVFORMER_D2: unknown back-end 'detectron3'"),
        ("OVFORMER_MSDA", "metal", "OVFORMER_MSDA: unknown kernel 'metal'"),
        ("OVFORMER_MSDA", "cuda", "OVFORMER_MSDA=cuda, but this kernel can't be used on cpu"),
    ],
)
def test_a_wrong_environment(tiny_run: TinyRun, variable: str, value: str, words: str) -> None:
    process = tiny_run.python(SCRIPT, **{variable: value})
    assert process.returncode == 1
    assert words in " ".join(process.stdout.split()) and "Traceback" not in process.stderr
