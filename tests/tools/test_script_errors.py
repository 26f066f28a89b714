"""A missing or damaged file ends every script in one message and exit status 2."""

import runpy
import signal
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools"
SCRIPTS = {
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.py"), *TOOLS.glob("*.py")]
    if path.name != "setup.py"
}
LVVIS = ["--dataset", "lvvis_val"]
REPORT = ["--dataset", "shapes_val", "--run", "run", "--control", "run", "--zero-shot", "run"]
REPORT += ["--video-dataset", "shapes_video_val", "--clips", "run", "--film", "run"]
REPORT += ["--film-others", "run", "--film-truth", "film.json", "--steps", "steps.json"]
# Script -> (command line, the file that is missing or damaged). Each script needs an entry.
FILES = [
    ("mAP.py", ["--dt", "x.json", "--gt", "truth.json"], "x.json"),
    ("mAP.py", ["--dt", "empty.json", "--gt", "x.json"], "x.json"),
    ("train_net.py", ["--config-file", "x.yaml"], "x.yaml"),
    ("train_net_lvvis.py", ["--config-file", "x.yaml"], "x.yaml"),
    ("train_net_video.py", ["--config-file", "x.yaml", "--eval-only"], "x.yaml"),
    ("tools/analyze_model.py", ["--config-file", "x.yaml"], "x.yaml"),
    ("tools/app.py", ["--weights", "x.pth", "--vocabulary", "cat"], "x.pth"),
    ("tools/benchmark.py", ["video", "--config-file", "x.yaml"], "x.yaml"),
    ("tools/build_text_classifier.py", ["--vocabulary", "x.json", "--output", "out"], "x.json"),
    (
        "tools/build_text_classifier.py",
        ["--names", "cat", "--from-npy", "x.npy", "--output", "out.safetensors"],
        "x.npy",
    ),
    (
        "tools/build_text_classifier.py",
        ["--names", "cat", "--clip", "RN50", "--pretrained", "x.pt", "--output", "out"],
        "x.pt",
    ),
    ("tools/burst2ytvis.py", ["--ann", "x.json", "--split", "empty.json"], "x.json"),
    ("tools/check_setup.py", ["--config-file", "x.yaml"], "x.yaml"),
    ("tools/convert-thirdparty-pretrained-model-to-d2.py", ["--path", "x.pth"], "x.pth"),
    ("tools/convert_annotations.py", ["x.json", "--output", "out"], "x.json"),
    ("tools/convert_annotations.py", ["x.zip", "--output", "out"], "x.zip"),
    ("tools/convert_annotations.py", ["x.xml", "--output", "out"], "x.xml"),
    ("tools/export.py", ["--weights", "x.pth", "--output", "out.pt2"], "x.pth"),
    ("tools/get_lvis_cat_info.py", ["--ann", "x.json"], "x.json"),
    ("tools/get_lvvis_cat_info.py", ["--ann", "x.json"], "x.json"),
    ("tools/lvvis_test_instances_json.py", ["--categories", "x.json"], "x.json"),
    ("tools/make_report.py", [*REPORT, "--output", "out"], "run/inference/shapes_val/scores.json"),
    ("tools/predict.py", ["x.mp4", "--weights", "x", "--output", "out"], "x.mp4"),
    ("tools/predict.py", ["picture.png", "--weights", "x.pth", "--output", "out"], "x.pth"),
    ("tools/pretrain_backbone.py", ["--config-file", "x.yaml", "--output", "out"], "x.yaml"),
    ("tools/remove_lvis_rare.py", ["--ann", "x.json"], "x.json"),
    ("tools/remove_lvvis_novel.py", ["--ann", "x.json"], "x.json"),
    ("tools/save_clip_features.py", [*LVVIS, "--config-file", "x.yaml", "--output", "o"], "x.yaml"),
    ("tools/save_clip_features.py", [*LVVIS, "--output", "o"], "LVVIS/val/val_instances_.json"),
    ("tools/train_tiny_clip.py", ["--config", "x.json", "--output", "out"], "x.json"),
    ("tools/vis_results.py", [*LVVIS, "--config-file", "x.yaml"], "x.yaml"),
    ("tools/vis_results.py", [*LVVIS, "--annotations"], "LVVIS/val/val_instances_.json"),
    ("tools/ytvis_json.py", [*LVVIS, "--ann", "x.json"], "x.json"),
    ("tools/ytvis_json.py", [*LVVIS, "--results", "x.json", "--ann", "truth.json"], "x.json"),
]
# Scripts that read no file; here their output folder, or one above it, is a file.
WRITERS = [
    ("tools/make_film.py", ["--output", "x.json/film.mp4"]),
    ("tools/make_shapes.py", ["--output", "x.json"]),
    ("tools/quickstart.py", ["--output", "x.json"]),
    ("tools/train_tiny_clip.py", ["--output", "x.json"]),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory and dataset root of the scripts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(signal, "signal", lambda number, handler: signal.SIG_DFL)
    Image.new("RGB", (8, 8)).save("picture.png")
    Path("empty.json").write_text("[]")
    Path("truth.json").write_text(
        '{"videos": [{"id": 1, "height": 4, "width": 6, "file_names": ["a/0.jpg"]}], '
        '"annotations": [], "categories": [{"id": 1, "name": "accordion"}]}'
    )
    return tmp_path


def run_script(script: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """Run a script in this process, as from the command line; return its exit status."""
    monkeypatch.setattr(sys, "argv", [script, *words])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return end.value.code


def test_every_script_has_an_entry() -> None:
    assert SCRIPTS == {script for script, *_ in FILES + WRITERS}


@pytest.mark.parametrize("is_damaged", [False, True], ids=["missing", "damaged"])
@pytest.mark.parametrize(("script", "words", "file"), FILES)
def test_a_bad_file(script, words, file, is_damaged, monkeypatch, capsys) -> None:
    if is_damaged:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_bytes(b"\x80[{\0: \xff")
    assert run_script(script, words, monkeypatch) == 2
    message = capsys.readouterr().err
    assert Path(file).name in message and "error: " in message
    assert "Traceback" not in message


@pytest.mark.parametrize(("script", "words"), WRITERS)
def test_an_output_that_cannot_be_written(script, words, monkeypatch, capsys) -> None:
    Path("x.json").write_text("")
    assert run_script(script, words, monkeypatch) == 2
    message = capsys.readouterr().err
    assert "x.json" in message and "Traceback" not in message


FEATURES = ["--images", ".", "--output", "a.safetensors"]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("tools/benchmark.py", ["video", "--device", "nonsense"]),
        ("tools/benchmark.py", ["ops", "--device", "cuda:99"]),
        (
            "tools/build_text_classifier.py",
            ["--names", "a", "--output", "a.safetensors", "--device", "nonsense"],
        ),
        ("tools/save_clip_features.py", [*FEATURES, "--device", "nonsense"]),
        ("tools/benchmark.py", ["ops", "--repeats", "0"]),
        ("tools/make_shapes.py", ["--output", "out", "--size", "0"]),
    ],
)
def test_a_wrong_value(script, words, monkeypatch, capsys) -> None:
    assert run_script(script, words, monkeypatch) == 2
    option, value = words[-2:]
    message = capsys.readouterr().err
    assert option.strip("-") in message and value in message and "Traceback" not in message


def test_the_traceback_can_be_shown(monkeypatch) -> None:
    monkeypatch.setenv("OVFORMER_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["x", "--ann", "x.json"])
    with pytest.raises(FileNotFoundError, match="x.json"):
        runpy.run_path(str(TOOLS / "remove_lvis_rare.py"), run_name="__main__")


def test_an_interruption(folder: Path, monkeypatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ovformer_tools.category_files.read_json", interrupt)
    assert run_script("tools/remove_lvis_rare.py", [], monkeypatch) == 130
