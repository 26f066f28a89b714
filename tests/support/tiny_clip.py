"""A tiny CLIP model on disk."""

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file


def make_clip(folder: Path, seed: int = 0, width: int = 16, **more: object) -> str:
    """Write a CLIP model of random weights and return what MODEL.CLIP.NAME has to be.

    It takes images of 32 pixels. ``more`` are further entries of open_clip_config.json.
    """
    config = {
        "embed_dim": width,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 12, "width": 32, "heads": 2, "layers": 1},
    }
    torch.manual_seed(seed)
    folder.mkdir()
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, **more}))
    return f"local-dir:{folder}"
