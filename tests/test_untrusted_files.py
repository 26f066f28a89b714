"""Files from elsewhere: no code of theirs runs, nothing is written beside the output folder."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_clip import make_clip
from torch import nn

from ovformer.d2 import DetectionCheckpointer
from ovformer.data.clip_features import ClipFeatureStore
from ovformer.data.custom import register_custom
from ovformer.data.json_file import read_json
from ovformer.engine.checkpoint import Checkpointer, read_weights
from ovformer.modeling.clip_encoder import ClipEncoder
from ovformer.modeling.text_classifier import load_text_classifier
from ovformer.predictor.pretrained import load_pretrained


class Attack:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch attacked",)


class Forged:
    """Bytes that pass for a reference to a Python object: reading it would end the process."""

    def __reduce__(self) -> tuple:
        return np.ndarray, ((1,), "O", b"12345678")


class ForgedType:
    """The type of a number, of which a file says that it holds references to Python objects."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __reduce__(self) -> tuple:
        state = (3, "|", None, ("a",), {"a": (np.dtype(self.kind), 0)}, 8, 1, 0)
        return np.dtype, ("f8", False, True), state


def clip_folder(path: Path) -> ClipEncoder:
    """Load a CLIP model whose weights are a file."""
    name = make_clip(path.parent / "clip")
    (path.parent / "clip" / "open_clip_model.safetensors").unlink()
    path.rename(path.parent / "clip" / "open_clip_pytorch_model.bin")
    return ClipEncoder.from_pretrained(name)


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "weights": ("x.pth", read_weights),
    "pickled weights": ("x.pkl", read_weights),
    "a training's checkpointer": (
        "x.pth",
        lambda path: Checkpointer(nn.Linear(1, 1)).load(str(path)),
    ),
    "the same, .pkl": ("x.pkl", lambda path: Checkpointer(nn.Linear(1, 1)).load(str(path))),
    "the predictor": ("x.pth", lambda path: load_pretrained(None, path)),
    "features": ("x.pkl", ClipFeatureStore.open),
    "text classifier": ("x.npy", load_text_classifier),
    "CLIP's folder": ("x.bin", clip_folder),
    "CLIP's weights": ("x.pt", lambda path: ClipEncoder.from_pretrained("RN50", str(path))),
}


@pytest.mark.parametrize("saved", ["torch", "pickle"])
@pytest.mark.parametrize("reader", READERS)
def test_no_code_runs(reader: str, saved: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, read = READERS[reader]
    path = tmp_path / name
    content = {"model": {"weight": Attack()}, "__author__": "x"}
    if saved == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="x.|clip") as refusal:
        read(path)
    assert not (tmp_path / "attacked").exists()
    expected = {".pkl": "pickle", ".npy": None}.get(path.suffix, "torch")
    if saved == ("torch" if reader == "features" else expected):  # the format that it reads
        assert "system" in str(refusal.value)


@pytest.mark.parametrize("name", ["x.pth", "x.pkl"])
def test_no_code_runs_in_detectron2s_checkpointer(name: str, tmp_path: Path, monkeypatch) -> None:
    """The class that ours is derived from, as built in."""
    if "builtin" not in DetectionCheckpointer.__module__:
        pytest.skip("with an installed detectron2 it is detectron2's own; ours reads by itself")
    monkeypatch.chdir(tmp_path)
    content = {"model": {"weight": Attack()}, "__author__": "x"}
    torch.save(content, "x.pth")
    Path("x.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=f"{name} cannot be read safely: .*system"):
        DetectionCheckpointer(nn.Linear(1, 1)).load(name)
    assert not Path("attacked").exists()


def test_no_code_runs_in_the_converter(load_tool, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"weight": Attack()}}, "x.pth")
    with pytest.raises(ValueError, match="x.pth can't be read: .*system"):
        load_tool("convert-thirdparty-pretrained-model-to-d2").main(["--path", "x.pth"])
    assert not Path("attacked").exists() and not Path("x.pkl").exists()


@pytest.mark.parametrize(
    "content", [Forged(), ForgedType("O"), ForgedType("f8"), np.array(["a"]), np.array([{}])]
)
@pytest.mark.parametrize("name", ["x.pkl", "x.pth"])
def test_bytes_never_become_python_objects(content: object, name: str, tmp_path: Path) -> None:
    """numpy believes what a file says of its types."""
    path = tmp_path / name
    if name == "x.pkl":
        path.write_bytes(pickle.dumps({"model": {"weight": content}}))
    else:
        torch.save({"model": {"weight": torch.ones(1)}, "trainer": [content]}, path)
    with pytest.raises(ValueError, match=f"{name} can't be read"):
        read_weights(path)


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_numbers_are_read(protocol: int, tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.asfortranarray(np.ones((2, 3), ">i2")),
        "c": np.float64(0.5),
        "d": np.array(True),
        "e": np.ones(3, np.float16)[::2],
    }
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": arrays}, protocol=protocol))
    found = read_weights(tmp_path / "x.pkl")["model"]
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype.newbyteorder("=")  # as numpy itself reads it
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    "metadata",
    [
        5,
        {"config": 5},
        {"config": "_BASE_: /etc/passwd"},
        {"templates": [5]},
        {"clip": {"name": 5}},
    ],
)
def test_hostile_metadata_of_weights(metadata: object, tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(1)}, "metadata": metadata}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="x.pth: .*(metadata are none|names another file)"):
        load_pretrained(None, tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'"categories"', "no 'categories'; the file holds str"),
        (b"null", "no 'categories'; the file holds NoneType"),
    ],
)
def test_json_of_any_shape(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"x.json: .*{reason}"):
        read_json(path, ("categories",))


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"categories": []}', encoding="utf-8-sig")
    assert read_json(path, ("categories",)) == {"categories": []}


@pytest.mark.parametrize("name", ["../up", "/root", "..", "a/b", "", 5])
def test_names_of_data_sets_are_names_of_folders(name: object, tmp_path: Path) -> None:
    annotations = tmp_path / "x.json"
    annotations.write_text(json.dumps({"images": [], "categories": [{"id": 1, "name": "a"}]}))
    entry = {"name": name, "annotations": str(annotations), "images": str(tmp_path)}
    with pytest.raises(ValueError, match=r"DATASETS.CUSTOM\[0\].*name"):
        register_custom([entry])
