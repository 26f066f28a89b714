"""BURST, validation videos: 482 LVIS categories; the rare ones are novel here."""

from ovformer.data.catalog.dataset_spec import DatasetSpec
from ovformer.data.files.lvis_json import BASE_AND_NOVEL
from ovformer.data.files.vis_json import read_vis_json

SPECS = [
    DatasetSpec(
        name="burst_val",
        image_root="burst/val",
        annotations="burst/b2y_val.json",
        categories="burst",
        read=read_vis_json,
        evaluator="burst",
        # "common" are those of BURST's 78 categories in common with COCO that occur here.
        groups={
            **BASE_AND_NOVEL,
            "common": ("split", ("common",)),
            "uncommon": ("split", ("uncommon",)),
        },
        source="tools/burst2ytvis.py makes it from BURST's all_classes.json.",
    )
]
