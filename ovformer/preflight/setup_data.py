"""Rows of tools/check_setup.py about data sets: what they hold, whether all images exist."""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from ovformer.d2 import CfgNode, DatasetCatalog, MetadataCatalog
from ovformer.data.catalog.dataset_spec import load_dataset
from ovformer.data.files.image_files import check_images_exist, iterate_images
from ovformer.data.loading.training_sets import collect_annotations, load_training_sets
from ovformer.data.samples.image_mapper import read_rgb
from ovformer.paths import dataset_root
from ovformer.preflight.data import list_datasets
from ovformer.preflight.machine import format_size
from ovformer.preflight.setup_table import Row, add_error_row

# Images of each data set that are decoded without --decode.
SAMPLE = 16
THREADS = 8

# Path, height and width of an image.
Image = tuple[str, int, int]


def check_data(cfg: CfgNode, eval_only: bool, decode: bool) -> Iterator[Row]:
    """Yield rows of all data sets of a run.

    Args:
        cfg: the config; its custom data sets are registered.
        eval_only: skip the training sets.
        decode: decode all images, not only a sample of them.
    """
    root = dataset_root()
    status = "ok" if root.is_dir() else "bad"
    step = "" if root.is_dir() else ": no such folder. $DETECTRON2_DATASETS names another one"
    yield Row(status, "root", f"{root.absolute()}{step}")
    for key, name in list_datasets(cfg, eval_only):
        yield from add_error_row(name, _check_set(key, name, decode))
    if not eval_only and len(cfg.DATASETS.TRAIN) > 1:
        yield from add_error_row("DATASETS.TRAIN", _check_combined(cfg))


def _check_set(key: str, name: str, decode: bool) -> Iterator[Row]:
    """Yield rows of one data set; raises an error in its annotations."""
    # On stderr: the table, or its JSON, goes to stdout.
    print(f"reading {name} ...", file=sys.stderr)
    records = load_dataset(name, key)
    metadata = MetadataCatalog.get(name)
    if path := metadata.get("json_file"):
        yield Row("ok", name, f"{path}, {format_size(Path(path).stat().st_size)}")
    yield Row("ok", name, describe_records(records, metadata))
    count = sum(1 for _ in iterate_images(records))
    check_images_exist(name, records)
    yield Row("ok", name, f"{count} of {count} image files are there")
    images = list_images(records)
    if not decode:
        # Neighbours are often frames of one video, so the sample is spread over the whole set.
        images = images[:: max(1, len(images) // SAMPLE)][:SAMPLE]
    broken = [error for error in _decode_images(name, images) if error]
    if broken:
        yield Row("bad", name, f"{len(broken)} of {len(images)} images are broken: {broken[0]}")
    else:
        hint = "" if decode else " (--decode: all)"
        yield Row("ok", name, f"{len(images)} images decoded{hint}")


def describe_records(records: Sequence[dict], metadata: object) -> str:
    """Return as text how many images or videos, annotations and categories a data set has."""
    # An object of a video has an annotation in each of its frames, but counts once.
    if "file_names" in records[0]:
        frames = sum(len(record["file_names"]) for record in records)
        things = f"{len(records)} videos with {frames} frames"
        tracks = {(r["video_id"], a["id"]) for r in records for a in collect_annotations(r)}
        annotations = len(tracks)
    else:
        things = f"{len(records)} images"
        annotations = sum(len(record.get("annotations", ())) for record in records)
    used = {a["category_id"] for record in records for a in collect_annotations(record)}
    classes = metadata.get("thing_classes") or []
    groups = metadata.get("class_groups", {}).items()
    of_groups = ", ".join(f"{len(members)} {group}" for group, members in groups)
    return (
        f"{things}, {annotations} annotations of {len(used)} of {len(classes)} categories"
        f"{f' ({of_groups})' if of_groups else ''}"
    )


def list_images(records: Sequence[dict]) -> list[Image]:
    """Return each image or frame of a data set, with the size in its annotations."""
    return [
        (name, record["height"], record["width"])
        for record in records
        for name in record.get("file_names") or [record["file_name"]]
    ]


def _decode_images(name: str, images: Sequence[Image]) -> Iterator[str]:
    """Decode images in threads; yields for each an error, "" if it is fine."""
    with ThreadPoolExecutor(THREADS) as executor:
        errors = executor.map(_decode_image, images)
        yield from tqdm(errors, f"decoding {name}", len(images), unit="image", leave=False)


def _decode_image(image: Image) -> str:
    path, height, width = image
    try:
        found = read_rgb(path).shape[:2]
    except (OSError, ValueError) as error:
        return str(error)
    if found != (height, width):
        return f"{path} has {found[0]} x {found[1]} pixels, its annotations say {height} x {width}"
    return ""


def _check_combined(cfg: CfgNode) -> Iterator[Row]:
    """Yield how many images or videos each of several training sets contributes."""
    if not set(cfg.DATASETS.TRAIN) <= set(DatasetCatalog.list()):
        return  # its own rows report an unknown set
    sizes = map(len, load_training_sets(cfg))
    parts = (f"{n} of {name}" for n, name in zip(sizes, cfg.DATASETS.TRAIN, strict=True))
    yield Row("ok", "together", f"images or videos to train on: {', '.join(parts)}")
