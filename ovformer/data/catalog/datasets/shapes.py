"""Shapes: a generated benchmark. A category is a colour and a shape; some pairs are novel."""

from ovformer.data.catalog.dataset_spec import DatasetSpec
from ovformer.data.files.lvis_json import BASE_AND_NOVEL, read_lvis_json
from ovformer.data.files.vis_json import read_vis_json

_IMAGES = {"train": "shapes_train_norare.json", "val": "shapes_val.json"}
_SOURCE = "tools/make_shapes.py draws it."

SPECS = [
    DatasetSpec(
        name=f"shapes_{split}",
        image_root="shapes",
        annotations=f"shapes/{file_name}",
        categories="shapes",
        read=read_lvis_json,
        evaluator="lvis",
        groups=BASE_AND_NOVEL,
        source=_SOURCE,
    )
    for split, file_name in _IMAGES.items()
] + [
    DatasetSpec(
        name=f"shapes_video_{split}",
        image_root=f"shapes/video_{split}",
        annotations=f"shapes/shapes_video_{split}.json",
        categories="shapes",
        read=read_vis_json,
        evaluator="vis",
        groups=BASE_AND_NOVEL,
        source=_SOURCE,
    )
    for split in ("train", "val")
]
