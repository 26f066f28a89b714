"""A COCO-format data set that only the command line describes, evaluated by ``train_net.py``."""

import json

import pytest

from ovformer.d2 import DatasetCatalog, MetadataCatalog
from support.tiny_runs import TinyRun


def test_evaluation_of_images(tiny_run: TinyRun, capfd: pytest.CaptureFixture) -> None:
    content = json.loads((tiny_run.root / "shapes" / "shapes_val.json").read_text())
    for image in content["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    categories = [{"id": c["id"], "name": c["name"]} for c in content["categories"]]
    path = tiny_run.root / "coco_val.json"
    path.write_text(json.dumps({**content, "categories": categories}))
    described = {"name": "mine_coco", "annotations": path.name, "images": "shapes"}
    described["novel"] = ["red circle", "blue ring"]
    words = ["DATASETS.CUSTOM", str([described]), "DATASETS.TEST", "('mine_coco',)"]
    try:
        tiny_run.here("--eval-only", *words)
    finally:
        for catalog in (DatasetCatalog, MetadataCatalog):
            catalog.remove("mine_coco")
    folder = tiny_run.output / "inference" / "mine_coco"
    results = json.loads((folder / "results.json").read_text())
    assert {entry["image_id"] for entry in results} == {i["id"] for i in content["images"]}
    scores = json.loads((folder / "scores.json").read_text())["segm"]
    assert scores["AP"] is not None
    assert {"AP_base", "AP_novel"} <= scores.keys()
