import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

TOOL = "analyze_model"
CONFIGS = Path(__file__).parents[2] / "configs"
QUICKSTART = "quickstart/ovformer_shapes"


@pytest.fixture
def analyze(tool, capsys) -> Callable[..., tuple[str, dict[str, list[float]]]]:
    """A function that returns what the tool prints, and the numbers of each module."""

    def run(config: str, *words: object, opts: Sequence[str] = ()) -> tuple[str, dict]:
        path = str(CONFIGS / f"{config}.yaml")
        tool.main([*map(str, words), "--config-file", path, *opts])
        text = capsys.readouterr().out
        found = re.findall(r"^(\S+) +((?:[\d.]+ *)+)$", text, re.MULTILINE)
        return text, {name: [float(x) for x in numbers.split()] for name, numbers in found}

    return run


def test_options_and_changes_of_the_config(analyze) -> None:
    text, table = analyze(QUICKSTART)
    assert "image: 128 x 128 pixels" in text
    parts = ["backbone", "sem_seg_head"]
    for total, *numbers in zip(table["total"], *(table[part] for part in parts), strict=True):
        assert total == pytest.approx(sum(numbers), abs=0.02) and min(numbers) > 0
    _, large = analyze(QUICKSTART, "--tasks", "flop", "--size", 256, 256, "--depth", 1)
    assert set(large) == {"total", *parts}
    assert large["backbone"][0] == pytest.approx(4 * table["backbone"][1], rel=0.05)
    opts = ["MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "2"]
    text, deeper = analyze(QUICKSTART, "--tasks", "parameter", "structure", opts=opts)
    assert "(sem_seg_head): MaskFormerHead(" in text
    assert deeper["total"][0] > table["total"][0]


def test_a_model_of_clips_is_counted_on_a_clip(analyze) -> None:
    words, opts = ["--size", 64, 96, "--depth", 3], ["MODEL.MASK_FORMER.TEST.CLIP_LENGTH", "3"]
    text, image = analyze("lvvis/ovformer_R50_bs8", *words, opts=opts)
    assert "image: 64 x 96 pixels" in text
    text, clip = analyze("lvvis/video_ovformer_R50_bs8", *words, opts=opts)
    assert "clip: 3 frames of 64 x 96" in text
    assert [row[0] for row in image.values()] == [row[0] for row in clip.values()]  # parameters
    for name in ("backbone", "sem_seg_head.pixel_decoder"):
        assert clip[name][1] == pytest.approx(3 * image[name][1], abs=0.05)
    decoder = "sem_seg_head.predictor"
    assert image[decoder][1] < clip[decoder][1] < 3 * image[decoder][1]


def test_counts_of_a_known_network(tool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Conv2d(3, 4, 3, padding=1, bias=False)
            self.attention = nn.MultiheadAttention(4, 1, bias=False, batch_first=True)

        def normalize_images(self, images: list[torch.Tensor]):
            return type("ImageList", (), {"tensor": torch.stack(images)})

        def sem_seg_head(self, features: torch.Tensor, clip: torch.Tensor) -> None:
            tokens = features.flatten(2).transpose(1, 2)
            self.attention(tokens, tokens, tokens, need_weights=False)

    model = Model().eval()
    counts = tool.count_operations(model, 4, 5, 7)
    tokens = 4 * 5
    convolution, attention = tokens * 4 * 27, 4 * (tokens * 4 * 4) + 2 * (tokens * tokens * 4)
    expected = {"backbone": convolution, "attention": attention, "": convolution + attention}
    assert counts["flop"] == expected
    written = 5 * tokens * 4 + tokens * tokens
    expected = {"backbone": tokens * 4, "attention": written, "": tokens * 4 + written}
    assert counts["activation"] == expected
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    expected = {"": 108 + 64, "backbone": 108, "attention": 64, "attention.out_proj": 16}
    assert tool.count_parameters(model) == expected
