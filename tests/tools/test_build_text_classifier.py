import json

import numpy as np
import pytest
import torch

from ovformer.data.catalog.vocabulary import read_vocabulary
from ovformer.modeling.language.clip_encoder import CLIPEncoder
from ovformer.modeling.language.prompts import expand_templates
from ovformer.modeling.language.text_classifier import load_text_classifier
from support.tiny_clip import make_clip

CATEGORIES = [{"id": 9, "name": "blue_ring"}, {"id": 4, "name": "red_circle"}]


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("build_text_classifier")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    """Name of a tiny local CLIP model."""
    return make_clip(tmp_path_factory.mktemp("clip") / "model")


def test_names_and_prompts(tool, clip, tmp_path, capsys) -> None:
    output = tmp_path / "two.safetensors"
    arguments = ["--names", "red_circle", "ring", "--templates", "a {}.", "the {}"]
    tool.main([*arguments, "--clip", clip, "--device", "cpu", "--output", str(output)])
    classifier = load_text_classifier(output)
    assert classifier.names == ["red_circle", "ring"]
    assert classifier.meta["templates"] == ["a {}.", "the {}"]
    assert classifier.meta["clip"] == clip
    encoder = CLIPEncoder.from_pretrained(clip)
    expected = encoder.embed_names(["red circle", "ring"], ["a {}.", "the {}"])
    torch.testing.assert_close(classifier.weights, expected)
    assert "2 classes, width 16" in capsys.readouterr().out


def test_sets_of_prompts(tool, clip, tmp_path) -> None:
    output = tmp_path / "one.safetensors"
    tool.main(["--names", "ring", "--clip", clip, "--device", "cpu", "--output", str(output)])
    templates = load_text_classifier(output).meta["templates"]
    assert len(templates) == 7
    assert "a photo of the large {}." in templates
    assert len(expand_templates(["imagenet", "my {}"])) == 81


def test_vocabulary_files(tool, tmp_path) -> None:
    json_file, text_file = tmp_path / "v.json", tmp_path / "v.txt"
    for content, names in [
        (CATEGORIES, ["red_circle", "blue_ring"]),
        ({"categories": CATEGORIES, "images": []}, ["red_circle", "blue_ring"]),
        (["b", "a"], ["b", "a"]),
    ]:
        json_file.write_text(json.dumps(content))
        assert read_vocabulary(json_file) == names
    text_file.write_text("b\n\n a \n")
    assert read_vocabulary(text_file) == ["b", "a"]


def test_names_for_a_published_classifier(tool, tmp_path, user_error) -> None:
    array = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    source, output = tmp_path / "published.npy", tmp_path / "named.safetensors"
    np.save(source, array)
    vocabulary = tmp_path / "v.json"
    vocabulary.write_text(json.dumps(CATEGORIES))
    arguments = ["--vocabulary", str(vocabulary), "--from-npy", str(source)]
    tool.main([*arguments, "--output", str(output)])
    classifier = load_text_classifier(output)
    assert classifier.names == ["red_circle", "blue_ring"]
    assert classifier.meta == {"source": "published.npy"}
    np.testing.assert_array_equal(classifier.weights, array)
    vocabulary.write_text(json.dumps(CATEGORIES[:1]))
    message = user_error(tool.main, *arguments, "--output", output)
    assert "1 names" in message and "2 classes" in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("v.txt", None),
        ("v.json", "[]"),
        ("v.json", "{}"),
        ("v.json", '[{"id": 1}]'),
        ("v.json", '["a", 1]'),
        ("v.csv", "ring"),
    ],
)
def test_a_file_that_is_no_vocabulary(tool, tmp_path, user_error, name, content) -> None:
    path = tmp_path / name
    if content:
        path.write_text(content)
    assert name in user_error(tool.main, "--vocabulary", path, "--output", tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["--vocabulary", "empty.txt"], "--vocabulary"),
        (["--names", "ring", "cross", "ring"], "ring"),
        (["--names", "ring", "--templates", "{}", "--from-npy", "x.npy"], "--from-npy"),
    ],
)
def test_names_that_cannot_be_used(tool, tmp_path, user_error, monkeypatch, words, key) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    assert key in user_error(tool.main, *words, "--output", "out.safetensors")
