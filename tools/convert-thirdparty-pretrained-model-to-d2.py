#!/usr/bin/env python
"""Convert a backbone's checkpoint (timm, Swin Transformer) for MODEL.WEIGHTS.

    python tools/convert-thirdparty-pretrained-model-to-d2.py --path resnet50_miil_21k.pth
    python tools/convert-thirdparty-pretrained-model-to-d2.py \
        --path swin_base_patch4_window12_384_22k.pth

Each writes a .pkl next to its input. Names stay as they are; the checkpoint loader finds the
parameters of the backbone by the ends of their names. Published checkpoints are at
https://miil-public-eu.oss-eu-central-1.aliyuncs.com/model-zoo/ImageNet_21K_P/models/resnet50_miil_21k.pth
and https://github.com/microsoft/Swin-Transformer.
"""

import argparse
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ovformer.arguments import exit_on_user_error
from ovformer.engine.checkpoint import read_weights
from ovformer.files import write_atomically


def main(argv: Sequence[str] | None = None) -> None:
    """Convert the checkpoint that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", type=Path, required=True, help="the .pth or .safetensors file")
    parser.add_argument("--output", type=Path, help="file to write (default: --path with .pkl)")
    args = parser.parse_args(argv)
    with exit_on_user_error(parser):
        convert(args)


def convert(args: argparse.Namespace) -> None:
    """Read a checkpoint, rename its parameters and write them."""
    target = args.output or args.path.with_suffix(".pkl")
    if target.suffix != ".pkl":
        raise ValueError(f"--output: expected a name that ends in .pkl, got {target}")

    state = rename_timm_swin(read_state_dict(args.path))
    content = {
        # detectron2's format for weights from elsewhere; its loader matches ends of names.
        "model": {name: tensor.float().numpy() for name, tensor in state.items()},
        "__author__": "third_party",
        "matching_heuristics": True,
    }
    write_atomically(target, lambda file: pickle.dump(content, file))
    print(f"{target}: {len(state)} tensors, {sum(x.numel() for x in state.values()) / 1e6:.1f} M")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the parameters in a checkpoint; code in it is not run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, would run code, or holds no parameters.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--path: no file {path}")
    model = read_weights(path)["model"]
    return {name: value for name, value in model.items() if isinstance(value, Tensor)}


def rename_timm_swin(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give timm's Swin checkpoints the names of the authors' release; leave others alone.

    timm counts the merging of patches to the stage after it, the release to the stage before.
    """
    first, last = "layers.0.downsample.", "layers.3.downsample."
    is_timm = not any(name.startswith(first) for name in state) and any(
        name.startswith(last) for name in state
    )
    if not is_timm:
        return dict(state)
    renamed = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] == "layers" and parts[2] == "downsample":
            parts[1] = str(int(parts[1]) - 1)
        renamed[".".join(parts)] = tensor
    return renamed


if __name__ == "__main__":
    main()
