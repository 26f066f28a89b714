"""OVIS: videos with heavy occlusion. Labels of validation and test videos are on a server."""

from ovformer.data.catalog.dataset_spec import DatasetSpec
from ovformer.data.files.vis_json import read_vis_json

_FOLDERS = {"train": "train", "val": "valid", "test": "test"}

SPECS = [
    DatasetSpec(
        name=f"ovis_{split}",
        image_root=f"ovis/{folder}",
        annotations=f"ovis/annotations/{folder}.json",
        categories="ovis",
        read=read_vis_json,
        evaluator="vis",
        source="datasets/README.md says where to download it.",
    )
    for split, folder in _FOLDERS.items()
]
