"""tools/export.py: from weights to a file that runs without OVFormer."""

import json
from pathlib import Path

import pytest
import torch

from support.predictor_fixture import save_trained

TOOL = "export"


@pytest.mark.slow
def test_a_file_with_our_operator_is_written_and_compared(tool, tmp_path: Path, capsys) -> None:
    """The clip model; tests/export exports the frame model without the operator."""
    weights = save_trained(tmp_path, **{"MODEL.MASK_FORMER.DEC_LAYERS": 2})
    (tmp_path / "files").mkdir()
    path = tmp_path / "files" / "my.pt2"
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
    ("output", "options", "message"),
    [
        ("model.pth", [], ".pt2 or .onnx"),
        ("absent/model.pt2", [], "absent"),
        ("model.onnx", ["--keep-operator"], ".pt2"),
        ("folder.pt2", [], "folder.pt2"),
        ("/proc/model.pt2", [], "/proc"),
        ("model.pt2", ["--weights", "plain.pth"], "--config-file"),
    ],
)
def test_bad_outputs_and_bad_weights(
    tool, tmp_path: Path, user_error, monkeypatch, output: str, options: list[str], message: str
) -> None:
    """The tool checks outputs before weights: these are missing unless the row names others."""
    monkeypatch.chdir(tmp_path)
    Path("folder.pt2").mkdir()
    torch.save({"model": {"weight": torch.zeros(2)}}, "plain.pth")
    words = ["--weights", "absent.pth", "--output", output, *options]
    assert message in user_error(tool.main, *words)
    assert not Path("model.pt2").exists()
