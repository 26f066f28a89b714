"""LV-VIS: 1,196 categories, 555 of them novel. Training skips the novel ones' annotations."""

from ovformer.data.catalog.dataset_spec import DatasetSpec
from ovformer.data.files.vis_json import read_vis_json

_ANNOTATIONS = {
    "train": ("train_instances_nonovel.json", "tools/remove_lvvis_novel.py makes it."),
    "val": ("val_instances_.json", "datasets/README.md says where to download it."),
    "test": ("test_instances.json", "tools/lvvis_test_instances_json.py makes it."),
}

SPECS = [
    DatasetSpec(
        name=f"lvvis_{split}",
        image_root=f"LVVIS/{split}/JPEGImages",
        annotations=f"LVVIS/{split}/{file_name}",
        categories="lvvis",
        read=read_vis_json,
        evaluator="vis",
        groups={"base": ("partition", (0, 1)), "novel": ("partition", (2, 3))},
        source=source,
    )
    for split, (file_name, source) in _ANNOTATIONS.items()
]
