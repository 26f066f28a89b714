"""Checks of a config's data sets: names, classes, and whether their files look right."""

import os
from collections.abc import Iterator
from pathlib import Path

from ovformer.d2 import CfgNode, DatasetCatalog, MetadataCatalog
from ovformer.data.catalog.dataset_spec import check_class_count, check_dataset_name
from ovformer.data.catalog.vocabulary import find_first_difference
from ovformer.data.files.json_file import read_json
from ovformer.data.files.json_peek import peek
from ovformer.engine.stages import Stage
from ovformer.modeling.objective.federated_loss import freq_weight_from_config
from ovformer.paths import resolve_path
from ovformer.preflight.report import collect_errors


def find_data_errors(cfg: CfgNode, stage: Stage, eval_only: bool) -> Iterator[str]:
    """Yield errors of the data sets that can be found without reading them."""
    if not eval_only and not cfg.DATASETS.TRAIN:
        yield "DATASETS.TRAIN is empty: name at least one data set."
    if eval_only and not cfg.DATASETS.TEST:
        yield "DATASETS.TEST is empty, so --eval-only has nothing to do."
    for key, name in list_datasets(cfg, eval_only):
        yield from _find_set_errors(cfg, stage, key, name)


def list_datasets(cfg: CfgNode, eval_only: bool) -> list[tuple[str, str]]:
    """Return the config key and the name of each data set of a run."""
    train = [] if eval_only else [("DATASETS.TRAIN", name) for name in cfg.DATASETS.TRAIN]
    return train + [("DATASETS.TEST", name) for name in cfg.DATASETS.TEST]


def _find_set_errors(cfg: CfgNode, stage: Stage, key: str, name: str) -> Iterator[str]:
    custom = [entry.get("name") for entry in cfg.DATASETS.CUSTOM if isinstance(entry, dict)]
    if name in custom and name not in DatasetCatalog.list():
        return  # register_custom has reported what is wrong with its description
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    is_train, is_first = key == "DATASETS.TRAIN", name in cfg.DATASETS.TRAIN[:1]
    if is_train and not is_first:  # its categories are mapped to those of the first set
        errors = collect_errors(check_dataset_name, name, key)
    else:
        errors = collect_errors(check_class_count, [name], num_classes, key)
    yield from errors
    if errors:
        return  # the metadata of an unknown set is empty, so the checks below would mislead
    # The loss draws classes of the model, which are those of the first training set.
    if is_train and is_first:
        yield from _find_count_errors(cfg)
    if not is_train:
        yield from collect_errors(stage.evaluator_type, name)
    metadata = MetadataCatalog.get(name)
    if path := metadata.get("json_file"):
        yield from _find_file_errors(
            key, name, Path(path), metadata.get("image_root"), cfg.DATALOADER.SKIP_BROKEN
        )


def _find_count_errors(cfg: CfgNode) -> Iterator[str]:
    """Yield errors of the image counts by which the class loss draws classes."""
    name, path = cfg.DATASETS.TRAIN[0], cfg.MODEL.MASK_FORMER.CAT_INFO_PATH
    errors = collect_errors(freq_weight_from_config, cfg, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    yield from errors
    if errors or not path:
        return
    info = sorted(read_json(resolve_path(path)), key=lambda category: category["id"])
    # Counts are matched to classes by their order alone: only names show that it is another one.
    names = [category.get("name") for category in info]
    classes = MetadataCatalog.get(name).get("thing_classes")
    if classes and all(names) and (difference := find_first_difference(names, classes)):
        yield (
            f"MODEL.MASK_FORMER.CAT_INFO_PATH: {path} has other categories than {name!r}: "
            f"{difference}. Make it from the annotations of that data set, with "
            "tools/get_lvis_cat_info.py or, for videos, tools/get_lvvis_cat_info.py."
        )
    if not any(category["image_count"] for category in info):
        yield (
            f"MODEL.MASK_FORMER.CAT_INFO_PATH: every image_count in {path} is 0, so the class loss "
            "has no class to draw. Make the file from the training annotations."
        )


def _find_file_errors(
    key: str, name: str, path: Path, image_root: str | None, skips_broken: bool
) -> Iterator[str]:
    """Yield errors that show without reading all annotations; looks for the first image only."""
    if not path.is_file():
        yield f"{key}: annotations {path} of {name!r} not found. See datasets/README.md."
        return
    # Reading the annotations of a large set takes long; their beginning shows most mistakes.
    try:
        image = peek(path, image_root or "")
    except (OSError, ValueError) as error:
        yield f"{key}: {name!r}: {error}"
        return
    layout = "See datasets/README.md for how the folders are laid out."
    if image_root and not os.path.isdir(image_root):
        yield f"{key}: no folder {image_root} with the images of {name!r}. {layout}"
    elif skips_broken:
        return  # the loader counts missing images, and allows some of them
    elif image_root and image and "://" not in image and not os.path.isfile(image):
        yield (
            f"{key}: an image of {name!r} is missing: {image}. {layout} tools/check_setup.py "
            "looks for all images."
        )


def find_reading_errors(cfg: CfgNode, stage: Stage, eval_only: bool) -> Iterator[str]:
    """Read the test sets: otherwise their errors would show only when the training evaluates."""
    first = 1 if eval_only else 0  # an evaluation reads the first one right away
    for name in cfg.DATASETS.TEST[first:]:
        yield from collect_errors(stage.build_test_loader, cfg, name)
