"""tools/train_tiny_clip.py: a model that open_clip loads, the same for the same seed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ovformer.modeling.language.clip_encoder import CLIPEncoder
from ovformer_tools.shape_scenes import CATEGORY_NAMES

TOOL = "train_tiny_clip"


def train(tool, folder: Path, *options: str) -> dict[str, torch.Tensor]:
    """Train for three steps, or as options say; return the weights."""
    words = ["--steps", "3", "--crops-per-name", "2", "--output", str(folder), *options]
    tool.main(words)
    return load_file(folder / "open_clip_model.safetensors")


def test_open_clip_loads_it_and_all_but_the_scale_was_trained(tool, tmp_path: Path) -> None:
    after, one_step = train(tool, tmp_path), train(tool, tmp_path / "other", "--steps", "1")
    encoder = CLIPEncoder.from_pretrained(f"local-dir:{tmp_path}")
    assert (encoder.embed_dim, encoder.image_size) == (128, 64)
    assert encoder.encode_text(["red circle"]).shape == (1, 128)
    assert after["logit_scale"] == one_step["logit_scale"] == 3.0
    for name in ("text_projection", "visual.conv1.weight", "visual.attnpool.c_proj.weight"):
        assert not torch.equal(after[name], one_step[name])


@pytest.mark.slow
def test_the_seed_decides(tool, tmp_path: Path, capsys) -> None:
    first, again, other = (train(tool, tmp_path, "--seed", seed) for seed in "001")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["text_projection"], other["text_projection"])
    assert "zero-shot accuracy on new pictures of one object: " in capsys.readouterr().out


def test_a_batch_has_every_name_once_and_scenes(tool) -> None:
    images, names, captions = next(tool.draw_batches(0, 4, 2, 32))
    assert images.shape == (40, 3, 32, 32) and images.dtype == torch.uint8
    assert names[:36] == [frozenset([i]) for i in range(36)]
    for content, caption in zip(names, captions, strict=True):
        assert all(CATEGORY_NAMES[i] in caption for i in content)
        assert sum(name in caption for name in CATEGORY_NAMES) == len(content)
    turned = [tool.reorient(images[-1], way) for way in range(8)]
    assert len({tuple(image.flatten().tolist()) for image in turned}) == 8
    pixels = images[-1].flatten(1).sort(1).values
    assert all(torch.equal(image.flatten(1).sort(1).values, pixels) for image in turned)


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
