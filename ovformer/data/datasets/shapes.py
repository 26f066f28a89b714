"""Shapes: a generated benchmark. A category is a colour and a shape; some pairs are novel."""

from ovformer.data.dataset_spec import DatasetSpec
from ovformer.data.lvis_json import BASE_AND_NOVEL, read_lvis_json

_ANNOTATIONS = {"train": "shapes_train_norare.json", "val": "shapes_val.json"}

SPECS = [
    DatasetSpec(
        name=f"shapes_{split}",
        image_root="shapes",
        annotations=f"shapes/{file_name}",
        categories="shapes",
        read=read_lvis_json,
        evaluator="lvis",
        groups=BASE_AND_NOVEL,
        source="tools/make_shapes.py draws it.",
    )
    for split, file_name in _ANNOTATIONS.items()
]
