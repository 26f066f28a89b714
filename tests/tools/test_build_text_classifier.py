import json

import numpy as np
import pytest
import torch

from ovformer.data.catalog.vocabulary import read_vocabulary
from ovformer.modeling.language.clip_encoder import CLIPEncoder
from ovformer.modeling.language.prompts import expand_templates
from ovformer.modeling.language.text_classifier import load_text_classifier
from support.tiny_clip import make_clip

TOOL = "build_text_classifier"
CATEGORIES = [{"id": 9, "name": "blue_ring"}, {"id": 4, "name": "red_circle"}]


def test_names_and_prompts(tool, tmp_path, capsys) -> None:
    output, clip = tmp_path / "two.safetensors", make_clip(tmp_path / "clip")
    words = ["--clip", clip, "--device", "cpu", "--output", str(output)]
    words += ["--names", "red_circle", "ring"]
    tool.main([*words, "--templates", "a {}.", "the {}"])
    classifier = load_text_classifier(output)
    assert classifier.names == ["red_circle", "ring"]
    assert classifier.meta["templates"] == ["a {}.", "the {}"] and classifier.meta["clip"] == clip
    encoder = CLIPEncoder.from_pretrained(clip)
    expected = encoder.embed_names(["red circle", "ring"], ["a {}.", "the {}"])
    torch.testing.assert_close(classifier.weights, expected)
    assert "2 classes, width 16" in capsys.readouterr().out
    tool.main(words)
    templates = load_text_classifier(output).meta["templates"]
    assert len(templates) == 7 and "a photo of the large {}." in templates
    assert len(expand_templates(["imagenet", "my {}"])) == 81


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (json.dumps(CATEGORIES), ["red_circle", "blue_ring"]),
        (json.dumps({"categories": CATEGORIES, "images": []}), ["red_circle", "blue_ring"]),
        ('["b", "a"]', ["b", "a"]),
        ("b\n\n a \n", ["b", "a"]),
    ],
)
def test_vocabulary_files(tmp_path, content, names) -> None:
    path = tmp_path / ("v.json" if content[0] in "[{" else "v.txt")
    path.write_text(content)
    assert read_vocabulary(path) == names


def test_names_for_a_published_classifier(tool, tmp_path, user_error) -> None:
    array = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    source, output = tmp_path / "published.npy", tmp_path / "named.safetensors"
    np.save(source, array)
    words = ["--from-npy", str(source), "--output", str(output), "--names"]
    tool.main([*words, "red_circle", "blue_ring"])
    classifier = load_text_classifier(output)
    assert classifier.names == ["red_circle", "blue_ring"]
    assert classifier.meta == {"source": "published.npy"}
    np.testing.assert_array_equal(classifier.weights, array)
    message = user_error(tool.main, *words, "ring")
    assert "1 names" in message and "2 classes" in message


@pytest.mark.parametrize(
    ("content", "words", "key"),
    [
        ("[]", ["--vocabulary", "v.json"], "v.json"),
        ("{}", ["--vocabulary", "v.json"], "v.json"),
        ('[{"id": 1}]', ["--vocabulary", "v.json"], "v.json"),
        ('["a", 1]', ["--vocabulary", "v.json"], "v.json"),
        ("ring", ["--vocabulary", "v.csv"], "v.csv"),
        ("\n", ["--vocabulary", "v.txt"], "--vocabulary"),
        ("", ["--names", "ring", "cross", "ring"], "ring"),
        ("", ["--names", "ring", "--templates", "{}", "--from-npy", "x.npy"], "--from-npy"),
    ],
)
def test_unusable_names(tool, tmp_path, user_error, monkeypatch, content, words, key) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / words[1]).write_text(content)
    assert key in user_error(tool.main, *words, "--output", "out.safetensors")
