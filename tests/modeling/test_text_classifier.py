import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ovformer.modeling.language.text_classifier import load_text_classifier, save_text_classifier

WEIGHTS = torch.tensor([[1.0, 0.0, 2.0], [0.0, -1.0, 0.5]])


def test_round_trip_with_names_and_origin(tmp_path) -> None:
    path = tmp_path / "new" / "two.safetensors"
    meta = {"model": "tiny", "templates": ["a {}."]}
    save_text_classifier(path, WEIGHTS.double(), ["rot", "grün"], meta)
    loaded = load_text_classifier(path)
    assert loaded.weights.equal(WEIGHTS) and loaded.weights.dtype == torch.float32
    assert loaded.names == ["rot", "grün"] and loaded.meta == meta
    assert [p.name for p in path.parent.iterdir()] == ["two.safetensors"]
    save_text_classifier(path, WEIGHTS, None)
    assert load_text_classifier(path).names is None


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_the_published_format(tmp_path, dtype) -> None:
    path = tmp_path / "two.npy"
    np.save(path, WEIGHTS.numpy().astype(dtype))
    loaded = load_text_classifier(str(path))
    assert loaded.weights.equal(WEIGHTS) and loaded.weights.dtype == torch.float32
    assert loaded.names is None


def test_a_pickle_is_refused_without_running_it(tmp_path) -> None:
    path = tmp_path / "evil.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"evil\.npy: not a plain NumPy array .*runs code"):
        load_text_classifier(path)


def test_files_that_are_no_classifier(tmp_path) -> None:
    for name in ("weights.pth", "empty.npy"):
        (tmp_path / name).touch()
    np.save(tmp_path / "ids.npy", np.ones((2, 3), int))
    np.save(tmp_path / "flat.npy", np.ones(4))
    save_file({"conv1.weight": WEIGHTS}, tmp_path / "model.safetensors")
    cut = tmp_path / "cut.safetensors"
    save_text_classifier(cut, WEIGHTS, None)
    cut.write_bytes(cut.read_bytes()[:-4])
    for name, error, message in (
        ("none.npy", FileNotFoundError, "none.npy.*build_text_classifier"),
        ("weights.pth", ValueError, r"ends in \.npy or \.safetensors"),
        ("empty.npy", ValueError, "not a plain NumPy array"),
        ("ids.npy", ValueError, "got dtype int64"),
        ("flat.npy", ValueError, r"\(classes, CLIP width\), got \(4,\)"),
        ("model.safetensors", ValueError, r"something else, with \['conv1.weight'\]"),
        ("cut.safetensors", ValueError, "the file is broken"),
    ):
        with pytest.raises(error, match=message):
            load_text_classifier(tmp_path / name)


def test_what_must_not_be_written(tmp_path) -> None:
    path = tmp_path / "two.safetensors"
    for weights, names, message in (
        (WEIGHTS, ["one"], "1 names for 2 classes"),
        (WEIGHTS[:0], None, r"got \(0, 3\)"),
        (WEIGHTS * float("nan"), ["a", "b"], r"class 0 \('a'\) is not finite"),
        (WEIGHTS * torch.tensor([[1.0], [0.0]]), None, "class 1 is not finite or zero"),
    ):
        with pytest.raises(ValueError, match=message):
            save_text_classifier(path, weights, names)
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        save_text_classifier(tmp_path / "two.npy", WEIGHTS, None)
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_text_classifier(path, WEIGHTS, None, {"model": json})
    assert list(tmp_path.iterdir()) == []
