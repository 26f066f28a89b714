"""Exported files give the outputs of the model, also at sizes that were not traced."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ovformer.export import exported_network
from ovformer.export.exportable_network import OUTPUTS, ExportableNetwork
from ovformer.export.exported_network import ExportedNetwork, ExportError, run_model
from ovformer.predictor.pretrained import Pretrained, load_pretrained
from support.predictor_fixture import TEMPLATES, WORDS, save_trained

PAGE = Path(__file__).parents[2] / "docs" / "export.md"


def random_inputs(count: int, height: int, width: int, classes: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(count + classes)
    shape = (count, 3, height, width)
    return (
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        torch.randn(count, 16, generator=generator),
        torch.randn(classes, 16, generator=generator),
    )


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    """Compare outputs, relative to the largest value of each."""
    assert list(got) == list(OUTPUTS)
    for name, values in got.items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(values, expected[name], rtol=0, atol=rtol * scale, msg=name)


@pytest.mark.parametrize("kind", ["image", "video", "clip"])
@pytest.mark.parametrize("opts", [[], ["INPUT.FORMAT", "BGR"]], ids=["RGB", "BGR"])
def test_the_exportable_network_equals_the_model(trained: Path, kind: str, opts: list[str]) -> None:
    opts += ["MODEL.CLIP.NORMALIZE_IMAGE_FEATURES", bool(opts)]
    opts += ["MODEL.PIXEL_MEAN", [10.0, 120.0, 200.0]]  # channels can be told apart
    model = load_pretrained(None, trained, device="cpu", architecture=kind, opts=opts).model
    inputs = random_inputs(2, 50, 71, 4)
    with torch.no_grad():
        got = ExportableNetwork(model).eval()(*inputs)
    if model.image_embedder.normalize:
        inputs = (inputs[0], torch.nn.functional.normalize(inputs[1], dim=1), inputs[2])
    assert_same(got, run_model(model, *inputs), 1e-5)
    leading = () if kind == "clip" else (2,)
    widths = {"scores": 4, "class_logits": 4, "object_logits": 2, "query_embeddings": 32}
    shapes = {name: (*leading, 6, width) for name, width in widths.items()}
    assert {k: tuple(x.shape) for k, x in got.items()} == {**shapes, "mask_logits": (2, 6, 16, 24)}


@pytest.fixture
def model(trained: Path) -> nn.Module:
    return load_pretrained(None, trained, device="cpu").model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {**x, "mask_logits": x["mask_logits"] * 1.1}, "'mask_logits': 0.1"),
        (lambda x: {**x, "mask_logits": x["mask_logits"][..., :1]}, "'mask_logits': nan"),
        (lambda x: {**x, "scores": x["scores"] * torch.nan}, "'scores': nan"),
        (lambda x: x["a name"], "a name"),
    ],
)
def test_a_file_with_other_results_or_that_fails_replaces_nothing(
    model: nn.Module, tmp_path: Path, monkeypatch, change: Callable, message: str
) -> None:
    path = tmp_path / "model.pt2"
    path.write_text("before")
    monkeypatch.setattr(exported_network, "_write_torch", lambda _, __, file: file.touch())
    network = Mock(side_effect=lambda *inputs: change(run_model(model, *inputs)))
    monkeypatch.setattr(exported_network, "ExportedNetwork", lambda _: network)
    with pytest.raises(ExportError, match=message):
        exported_network.write(None, {}, path, model)
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("suffix", exported_network.SUFFIXES)
def test_other_files_are_refused(tmp_path: Path, suffix: str, monkeypatch) -> None:
    if suffix == exported_network.ONNX:
        pytest.importorskip("onnxruntime", reason="needs the extra [export]")
    path = tmp_path / f"model{suffix}"
    with pytest.raises(FileNotFoundError, match=f"model{suffix}"):
        ExportedNetwork(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ExportError, match=f"model{suffix}"):
        ExportedNetwork(path)
    for load in ("_load_torch", "_load_onnx"):
        monkeypatch.setattr(ExportedNetwork, load, lambda self, path: "")
    with pytest.raises(ExportError, match=f"model{suffix}.*metadata.json"):
        ExportedNetwork(path)


def load_small(folder: Path, kind: str) -> Pretrained:
    """A model with one decoder layer: tracing takes long, for each layer."""
    # The number counts the prediction before the first layer, too.
    weights = save_trained(folder, **{"MODEL.MASK_FORMER.DEC_LAYERS": 2})
    return load_pretrained(None, weights, device="cpu", architecture=kind)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A model of frames, and the folder of its files of both forms, of one graph."""
    loaded = load_small(tmp_path_factory.mktemp("weights"), "video")
    graph = exported_network.trace(loaded.model)
    folder = tmp_path_factory.mktemp("video")
    for suffix in exported_network.SUFFIXES:
        exported_network.write(
            graph, exported_network.describe(loaded), folder / f"model{suffix}", loaded.model
        )
    assert {path.name for path in folder.iterdir()} == {"model.pt2", "model.onnx"}
    return SimpleNamespace(model=loaded.model, folder=folder)


def assert_right(exported: ExportedNetwork, model: nn.Module, kind: str) -> None:
    """Compare a file with its model, at sizes that were neither traced nor checked."""
    for sizes in ((1, 33, 97, 1), (2, 64, 64, 40), (5, 130, 41, 3)):
        inputs = random_inputs(*sizes)
        assert_same(exported(*inputs), run_model(model, *inputs), 1e-3)
    expected = {"model": kind, "class_names": WORDS, "templates": TEMPLATES, "clip_width": 16}
    assert exported.metadata.items() >= {**expected, "size_divisibility": 32}.items()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", exported_network.SUFFIXES)
def test_files_give_the_outputs_of_the_model(made: SimpleNamespace, suffix: str) -> None:
    exported = ExportedNetwork(made.folder / f"model{suffix}")
    assert_right(exported, made.model, "video")
    # Images may lie in memory as they were read.
    images, *others = random_inputs(2, 50, 71, 4)
    pixels_first = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert_same(exported(pixels_first, *others), exported(images, *others), 1e-5)


@pytest.mark.slow
def test_the_clip_model_in_onnx(tmp_path: Path) -> None:
    """tests/tools/test_export_tool.py writes its .pt2."""
    loaded = load_small(tmp_path, "clip")
    exported_network.export(loaded, tmp_path / "model.onnx")
    assert_right(ExportedNetwork(tmp_path / "model.onnx"), loaded.model, "clip")


@pytest.mark.slow
def test_the_examples_of_the_docs_work(made: SimpleNamespace, monkeypatch, capsys) -> None:
    """The part with PyTorch runs in a process without this project."""
    monkeypatch.chdir(made.folder)
    inputs = random_inputs(1, 50, 71, 4)
    names = {name: x.numpy() for name, x in zip(exported_network.INPUTS, inputs, strict=True)}
    in_numpy, in_torch = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    exec(in_numpy, names)
    assert re.match(r"class [0-3], score 0\.\d\d, \d+ pixels", capsys.readouterr().out)
    assert names["mask"].shape == (50, 71)
    torch.save(inputs, "inputs.pt")
    program = (
        f"import sys, torch\n{', '.join(exported_network.INPUTS)} = torch.load('inputs.pt')\n"
        f"{in_torch}\n"
        "assert not outputs['scores'].requires_grad and metadata['model'] == 'video'\n"
        "torch.save(dict(outputs), 'outputs.pt')\n"
        "assert not [name for name in sys.modules if name.startswith('ovformer')]\n"
    )
    subprocess.run([sys.executable, "-I", "-c", program], check=True, timeout=900)
    outputs = torch.load("outputs.pt")
    assert_same(outputs, run_model(made.model, *inputs), 1e-4)
    np.testing.assert_allclose(outputs["scores"], names["scores"], atol=1e-3)
    listed = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"\n\| (`.*?) \|", PAGE.read_text()))))
    assert set(names["metadata"]) | set(exported_network.INPUTS) | set(OUTPUTS) <= listed


@pytest.mark.slow
def test_an_operator_that_onnx_lacks_is_named(model: nn.Module, tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.i1e(x)

    graph = torch.export.export(Odd(), (torch.ones(3),))
    with pytest.raises(ExportError, match="i1e"):
        exported_network.write(graph, {}, tmp_path / "model.onnx", model)
