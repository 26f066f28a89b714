"""Exported files give what the model gives, at other sizes than they were made with."""

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from predictor_fixture import TEMPLATES, WORDS
from torch import Tensor

from ovformer.modeling.exportable_network import OUTPUTS, ExportableNetwork
from ovformer.predictor import exported_network
from ovformer.predictor.exported_network import ExportedNetwork, ExportError, model_outputs
from ovformer.predictor.pretrained import load_pretrained

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
# Of a network that is exported once per session, in all forms: the clip model's is the other one.
KINDS = ["video", "clip"]


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


@pytest.mark.parametrize("kind", ["image", *KINDS])
@pytest.mark.parametrize("opts", [[], ["INPUT.FORMAT", "BGR"]], ids=["RGB", "BGR"])
def test_the_function_of_tensors_is_the_model(trained: Path, kind: str, opts: list[str]) -> None:
    opts += ["MODEL.CLIP.NORMALIZE_IMAGE_FEATURES", bool(opts)]
    opts += ["MODEL.PIXEL_MEAN", [10.0, 120.0, 200.0]]  # channels can be told apart
    model = load_pretrained(None, trained, device="cpu", architecture=kind, opts=opts).model
    inputs = random_inputs(2, 50, 71, 4)
    with torch.no_grad():
        got = ExportableNetwork(model).eval()(*inputs)
    if model.clip_features.normalize:
        inputs = (inputs[0], torch.nn.functional.normalize(inputs[1], dim=1), inputs[2])
    assert_same(got, model_outputs(model, *inputs), 1e-5)
    leading = () if kind == "clip" else (2,)
    assert got["scores"].shape == got["class_logits"].shape == (*leading, 6, 4)
    assert got["object_logits"].shape == (*leading, 6, 2)
    assert got["mask_logits"].shape == (2, 6, 16, 24)
    assert got["query_embeddings"].shape == (*leading, 6, 32)


def test_no_number_and_another_shape_are_differences(trained: Path) -> None:
    model = load_pretrained(None, trained, device="cpu").model

    def exported(*inputs: Tensor) -> dict[str, Tensor]:
        outputs = model_outputs(model, *inputs)
        masks = outputs["mask_logits"][..., :1]
        return {**outputs, "scores": outputs["scores"] * torch.nan, "mask_logits": masks}

    differences = exported_network.compare(exported, model)
    assert math.isnan(differences["scores"]) and math.isnan(differences["mask_logits"])
    assert differences["class_logits"] == differences["query_embeddings"] == 0


@pytest.fixture(scope="module", params=KINDS)
def made(request, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A model and its files of both forms, of one graph."""
    loaded = load_pretrained(None, trained, device="cpu", architecture=request.param)
    graph = exported_network.trace(loaded.model)
    folder = tmp_path_factory.mktemp(request.param)
    for suffix in exported_network.SUFFIXES:
        exported_network.write(
            graph, exported_network.describe(loaded), folder / f"model{suffix}", loaded.model
        )
    assert {path.name for path in folder.iterdir()} == {"model.pt2", "model.onnx"}
    return {"loaded": loaded, "graph": graph, "folder": folder, "kind": request.param}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", exported_network.SUFFIXES)
def test_files_give_what_the_model_gives(made: dict, suffix: str) -> None:
    exported = ExportedNetwork(made["folder"] / f"model{suffix}")
    for sizes in ((1, 33, 97, 1), (2, 64, 64, 40), (5, 130, 41, 3)):
        inputs = random_inputs(*sizes)
        expected = model_outputs(made["loaded"].model, *inputs)
        assert_same(exported(*inputs), expected, 1e-3)
    assert exported.metadata["model"] == made["kind"]
    assert exported.metadata["class_names"] == WORDS
    assert exported.metadata["templates"] == TEMPLATES
    assert exported.metadata["clip_width"] == 16
    assert exported.metadata["size_divisibility"] == 32


@pytest.mark.slow
def test_images_may_lie_in_memory_as_they_were_read(made: dict) -> None:
    exported = ExportedNetwork(made["folder"] / "model.pt2")
    images, *others = random_inputs(2, 50, 71, 4)
    pixels_first = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert_same(exported(pixels_first, *others), exported(images, *others), 1e-5)


@pytest.mark.slow
def test_a_pt2_file_runs_without_this_project(made: dict, tmp_path: Path) -> None:
    inputs = random_inputs(1, 77, 40, 2)
    torch.save(inputs, tmp_path / "inputs.pt")
    program = (
        "import sys, torch\n"
        f"network = torch.export.load({str(made['folder'] / 'model.pt2')!r}).module()\n"
        "torch.save(network(*torch.load('inputs.pt')), 'outputs.pt')\n"
        "assert not [name for name in sys.modules if name.startswith('ovformer')]\n"
    )
    subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, check=True, timeout=900)
    expected = model_outputs(made["loaded"].model, *inputs)
    assert_same(torch.load(tmp_path / "outputs.pt"), expected, 1e-4)


@pytest.mark.slow
def test_what_the_page_says_works(made: dict, monkeypatch, capsys) -> None:
    if made["kind"] == "clip":
        pytest.skip("the page's example is of single images")
    monkeypatch.chdir(made["folder"])
    inputs = random_inputs(1, 50, 71, 4)
    names = {name: x.numpy() for name, x in zip(exported_network.INPUTS, inputs, strict=True)}
    in_numpy, in_torch = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    exec(in_numpy, names)
    assert re.match(r"class [0-3], score 0\.\d\d, \d+ pixels", capsys.readouterr().out)
    assert names["mask"].shape == (50, 71)
    variables = dict(zip(exported_network.INPUTS, inputs, strict=True))
    exec(in_torch, variables)
    assert not variables["outputs"]["scores"].requires_grad
    np.testing.assert_allclose(variables["outputs"]["scores"], names["scores"], atol=1e-3)
    listed = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"\n\| (`.*?) \|", PAGE.read_text()))))
    assert set(names["metadata"]) | set(exported_network.INPUTS) | set(OUTPUTS) <= listed


@pytest.mark.slow
def test_a_file_that_gives_something_else_is_not_left(
    made: dict, tmp_path: Path, monkeypatch
) -> None:
    path = tmp_path / "model.pt2"
    path.write_text("before")
    monkeypatch.setattr(exported_network, "TOLERANCE", 1e-12)
    with pytest.raises(ExportError, match="gives other results than the model: .*mask_logits"):
        exported_network.write(made["graph"], {}, path, made["loaded"].model)
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_an_operator_that_onnx_lacks_is_named(made: dict, tmp_path: Path) -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.i1e(x)

    graph = torch.export.export(Odd(), (torch.ones(3),))
    with pytest.raises(ExportError, match="i1e"):
        exported_network.write(graph, {}, tmp_path / "model.onnx", made["loaded"].model)


@pytest.mark.slow
def test_the_operator_can_be_kept(trained: Path, tmp_path: Path) -> None:
    loaded = load_pretrained(None, trained, device="cpu", architecture="video")
    exported_network.export(loaded, tmp_path / "model.pt2", keeps_operator=True)
    exported = ExportedNetwork(tmp_path / "model.pt2")
    assert exported.metadata["keeps_operator"] is True
    operators = torch.export.load(tmp_path / "model.pt2").graph.nodes
    assert torch.ops.ovformer.ms_deform_attn.default in [node.target for node in operators]
