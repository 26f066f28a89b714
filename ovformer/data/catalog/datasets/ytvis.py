"""YouTube-VIS 2019 and 2021. The labels of validation and test videos are on a server."""

from ovformer.data.catalog.dataset_spec import DatasetSpec
from ovformer.data.files.vis_json import BASE_AND_NOVEL, read_vis_json

_FOLDERS = {"train": "train", "val": "valid", "test": "test"}

SPECS = [
    DatasetSpec(
        name=f"ytvis_{year}_{split}",
        image_root=f"ytvis_{year}/{folder}/JPEGImages",
        annotations=f"ytvis_{year}/{folder}.json",
        categories=f"ytvis_{year}",
        read=read_vis_json,
        evaluator="vis",
        groups=BASE_AND_NOVEL,
        source="datasets/README.md says where to download it.",
    )
    for year in (2019, 2021)
    for split, folder in _FOLDERS.items()
]
