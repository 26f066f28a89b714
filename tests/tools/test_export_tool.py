"""tools/export.py: from weights to a file that runs without OVFormer."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("export")


def error_of(tool, capsys, *words: object) -> str:
    with pytest.raises(SystemExit) as end:
        tool.main([str(word) for word in words])
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.mark.slow
def test_a_file_is_written_and_compared(tool, trained: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "my.pt2"
    tool.main(["--weights", str(trained), "--output", str(path)])
    text = capsys.readouterr().out
    assert "mask_logits" in text and f"{path}: " in text
    assert [file.name for file in tmp_path.iterdir()] == ["my.pt2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "model.pth"], "expected a name that ends in .pt2 or .onnx"),
        (["--output", "absent/model.pt2"], "no folder"),
        (["--output", "model.onnx", "--keep-operator"], "in .pt2 only"),
        (["--output", "folder.pt2"], "this is a folder"),
    ],
)
def test_bad_outputs_are_refused_before_weights_are_read(
    tool, tmp_path: Path, capsys, monkeypatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.pt2").mkdir()
    assert message in error_of(tool, capsys, "--weights", "absent.pth", *words)


def test_weights_have_to_be_there(tool, tmp_path: Path, capsys) -> None:
    words = ["--weights", tmp_path / "absent.pth", "--output", tmp_path / "model.pt2"]
    assert "no file" in error_of(tool, capsys, *words)


def test_weights_without_a_config(tool, tmp_path: Path, capsys) -> None:
    torch.save({"model": {"weight": torch.zeros(2)}}, tmp_path / "plain.pth")
    words = ["--weights", tmp_path / "plain.pth", "--output", tmp_path / "model.pt2"]
    assert "has no config inside" in error_of(tool, capsys, *words)
    assert not (tmp_path / "model.pt2").exists()


def test_a_folder_that_may_not_be_written_to(tool, trained: Path, capsys) -> None:
    words = ["--weights", trained, "--output", "/proc/model.pt2"]
    assert "/proc" in error_of(tool, capsys, *words)
