"""tools/train_tiny_clip.py: a model that open_clip loads, the same for the same seed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ovformer.modeling.language.clip_encoder import CLIPEncoder
from ovformer_tools.shape_scenes import CATEGORY_NAMES


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("train_tiny_clip")


@pytest.fixture(scope="module")
def folder(tool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model after three steps."""
    return train(tool, tmp_path_factory.mktemp("clip"))


def train(tool, folder: Path, *arguments: str) -> Path:
    options = ["--steps", "3", "--crops-per-name", "2", "--output", str(folder)]
    tool.main([*options, *arguments])
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "open_clip_model.safetensors")


def test_open_clip_loads_it(folder: Path) -> None:
    encoder = CLIPEncoder.from_pretrained(f"local-dir:{folder}")
    assert (encoder.embed_dim, encoder.image_size) == (128, 64)
    assert encoder.encode_text(["red circle"]).shape == (1, 128)


@pytest.mark.slow
def test_the_seed_decides(tool, folder: Path, tmp_path: Path, capsys) -> None:
    first = weights(folder)
    again = weights(train(tool, tmp_path / "again"))
    other = weights(train(tool, tmp_path / "other", "--seed", "1"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["text_projection"], other["text_projection"])
    assert "zero-shot accuracy on new pictures of one object: " in capsys.readouterr().out


def test_training_moves_all_but_the_scale(tool, folder: Path, tmp_path: Path) -> None:
    after, one_step = weights(folder), weights(train(tool, tmp_path, "--steps", "1"))
    assert after["logit_scale"] == one_step["logit_scale"] == 3.0
    for name in ("text_projection", "visual.conv1.weight", "visual.attnpool.c_proj.weight"):
        assert not torch.equal(after[name], one_step[name])


def test_a_batch_has_every_name_once_and_scenes(tool) -> None:
    images, names, captions = next(tool.draw_batches(0, 4, 2, 32))
    assert images.shape == (40, 3, 32, 32) and images.dtype == torch.uint8
    assert names[:36] == [frozenset([i]) for i in range(36)]
    for content, caption in zip(names, captions, strict=True):
        assert all(CATEGORY_NAMES[i] in caption for i in content)
        assert sum(name in caption for name in CATEGORY_NAMES) == len(content)


def test_the_eight_orientations_differ(tool) -> None:
    image = torch.arange(12).view(3, 2, 2)
    turned = [tool.reorient(image, way) for way in range(8)]
    assert len({tuple(t.flatten().tolist()) for t in turned}) == 8
    assert all(torch.equal(t.flatten(1).sort(1).values, image.flatten(1)) for t in turned)


def test_the_loss_of_equal_captions(tool) -> None:
    """Pictures 0 and 1 show the same: each is a positive of both captions."""
    logits = torch.tensor([[2.0, 1.0, -1.0], [0.5, 3.0, 0.0], [-2.0, 0.0, 1.0]])
    names = [frozenset([1, 2]), frozenset([1, 2]), frozenset([5])]
    positive = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    x = logits.double().numpy()

    def cross_entropy(x: np.ndarray) -> float:
        log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
        return -(log_p * positive / positive.sum(1, keepdims=True)).sum(1).mean()

    sigmoid = np.log1p(np.exp(np.where(positive, -x, x))).sum() / 3
    expected = (cross_entropy(x) + cross_entropy(x.T)) / 2 + tool.SIGMOID_WEIGHT * sigmoid
    assert tool.contrastive_loss(logits, names).item() == pytest.approx(expected, rel=1e-6)
