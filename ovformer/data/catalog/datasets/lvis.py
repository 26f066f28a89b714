"""LVIS v1. The rare categories are novel: training skips their annotations."""

from ovformer.data.catalog.dataset_spec import DatasetSpec
from ovformer.data.files.lvis_json import BASE_AND_NOVEL, read_lvis_json

_DOWNLOAD = "datasets/README.md says where to download it."
_SOURCES = {
    "train": _DOWNLOAD,
    "train_norare": "tools/remove_lvis_rare.py makes it from lvis_v1_train.json.",
    "val": _DOWNLOAD,
}

SPECS = [
    DatasetSpec(
        name=f"lvis_v1_{split}",
        image_root="coco",
        annotations=f"lvis/lvis_v1_{split}.json",
        categories="lvis_v1",
        read=read_lvis_json,
        evaluator="lvis",
        groups=BASE_AND_NOVEL,
        source=source,
    )
    for split, source in _SOURCES.items()
]
