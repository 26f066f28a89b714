import re
from pathlib import Path

import pytest
import torch
from torch import nn

CONFIGS = Path(__file__).parents[2] / "configs"
CONFIG = str(CONFIGS / "quickstart" / "ovformer_shapes.yaml")


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("analyze_model")


def rows(text: str) -> dict[str, list[float]]:
    """Module -> numbers of a printed table."""
    found = re.findall(r"^(\S+) +((?:[\d.]+ *)+)$", text, re.MULTILINE)
    return {name: [float(x) for x in numbers.split()] for name, numbers in found}


def test_the_quick_starts_model(tool, capsys) -> None:
    tool.main(["--config-file", CONFIG])
    small = capsys.readouterr().out
    assert "image: 128 x 128 pixels" in small
    table = rows(small)
    parts = ["backbone", "sem_seg_head"]
    for column in range(3):
        total = sum(table[part][column] for part in parts)
        assert table["total"][column] == pytest.approx(total, abs=0.02)
        assert all(table[part][column] > 0 for part in parts)
    tool.main(["--config-file", CONFIG, "--tasks", "flop", "--size", "256", "256", "--depth", "1"])
    large = rows(capsys.readouterr().out)
    assert set(large) == {"total", *parts}
    assert large["backbone"][0] == pytest.approx(4 * table["backbone"][1], rel=0.05)


def test_a_model_of_clips_is_counted_on_a_clip(tool, capsys) -> None:
    tables = []
    for name, opts in (
        ("ovformer_R50_bs8", []),
        ("video_ovformer_R50_bs8", ["MODEL.MASK_FORMER.TEST.CLIP_LENGTH", "3"]),
    ):
        config = str(CONFIGS / "lvvis" / f"{name}.yaml")
        tool.main(["--size", "64", "96", "--depth", "3", "--config-file", config, *opts])
        tables.append(capsys.readouterr().out)
    assert "image: 64 x 96 pixels" in tables[0] and "clip: 3 frames of 64 x 96" in tables[1]
    image, clip = map(rows, tables)
    assert [row[0] for row in image.values()] == [row[0] for row in clip.values()]  # parameters
    for name in ("backbone", "sem_seg_head.pixel_decoder"):
        assert clip[name][1] == pytest.approx(3 * image[name][1], abs=0.05)
    decoder = "sem_seg_head.predictor"
    assert image[decoder][1] < clip[decoder][1] < 3 * image[decoder][1]


def test_options_change_the_model_and_the_structure_is_printed(tool, capsys) -> None:
    arguments = ["--tasks", "parameter", "structure", "--config-file", CONFIG]
    tool.main([*arguments, "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "2"])
    more = capsys.readouterr().out
    assert "(sem_seg_head): MaskFormerHead(" in more
    tool.main(arguments)
    assert rows(more)["total"] > rows(capsys.readouterr().out)["total"]


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
    tokens, conv, project = 20, 20 * 4 * 27, 4 * (20 * 4 * 4)
    attend = 2 * (tokens * tokens * 4)
    assert counts["flop"] == {
        "backbone": conv,
        "attention": project + attend,
        "": conv + project + attend,
    }
    activations = 3 * tokens * 4 + tokens * tokens + tokens * 4 + tokens * 4
    assert counts["activation"] == {
        "backbone": tokens * 4,
        "attention": activations,
        "": tokens * 4 + activations,
    }
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert tool.count_parameters(model) == {
        "": 108 + 64,
        "backbone": 108,
        "attention": 64,
        "attention.out_proj": 16,
    }


def test_a_config_is_needed(tool, capsys) -> None:
    with pytest.raises(SystemExit):
        tool.main([])
    assert "--config-file" in capsys.readouterr().err
