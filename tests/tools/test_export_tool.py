"""tools/export.py: from weights to a file that runs without OVFormer."""

import json
from pathlib import Path

import pytest
import torch

from support.predictor_fixture import save_trained


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("export")


def error_of(tool, capsys, *words: object) -> str:
    with pytest.raises(SystemExit) as end:
        tool.main([str(word) for word in words])
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.mark.slow
def test_a_file_with_our_operator_is_written_and_compared(tool, tmp_path: Path, capsys) -> None:
    """Of the clip model; one of frames without it is made by the tests of exported networks."""
    weights = save_trained(tmp_path, **{"MODEL.MASK_FORMER.DEC_LAYERS": 2})
    path = tmp_path / "files" / "my.pt2"
    path.parent.mkdir()
    words = ["--weights", weights, "--output", path, "--model", "clip", "--keep-operator"]
    tool.main(list(map(str, words)))
    text = capsys.readouterr().out
    assert "mask_logits" in text and f"{path}: " in text
    assert list(path.parent.iterdir()) == [path]
    files = {"metadata.json": ""}
    operators = [node.target for node in torch.export.load(path, extra_files=files).graph.nodes]
    assert torch.ops.ovformer.ms_deform_attn.default in operators
    metadata = json.loads(files["metadata.json"])
    assert metadata["keeps_operator"] is True and metadata["model"] == "clip"


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
