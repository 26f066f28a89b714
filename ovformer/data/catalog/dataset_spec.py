"""Describes a data set: its files and categories, their reader and the metric; registers it."""

import difflib
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ovformer.d2 import DatasetCatalog, MetadataCatalog
from ovformer.data.catalog.category_counts import count_categories
from ovformer.data.files.json_file import TEXT, index_by_id, name_file_in_errors, read_json
from ovformer.paths import dataset_root

CATEGORY_FOLDER = Path(__file__).parent / "categories"
# Number of images or videos of each data set that this process has read.
_counts: dict[str, int] = {}

# Reads (annotation file, folder of the images, categories) into a list of dataset dicts.
Reader = Callable[[Path, Path, list[dict]], list[dict]]


@dataclass(frozen=True)
class DatasetSpec:
    """One data set, as registered under its name in detectron2's catalogs.

    Attributes:
        name: name in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        image_root: folder of the images, relative to the dataset root or absolute.
        annotations: annotation file, relative to the dataset root or absolute.
        categories: name of a table in ``ovformer/data/catalog/categories``, without ``.json``.
        read: turns the annotation file into dataset dicts.
        evaluator: name of the metric that scores it.
        groups: groups of categories that are scored separately: group -> (field of the category
            table, values of that field which belong to the group).
        source: how to get the files; the error about missing files ends with it.
    """

    name: str
    image_root: str
    annotations: str
    categories: str
    read: Reader
    evaluator: str
    groups: Mapping[str, tuple[str, tuple]] = field(default_factory=dict)
    source: str = "See datasets/README.md."

    def annotation_file(self) -> Path:
        """Return the path of the annotation file under the present dataset root."""
        return dataset_root() / self.annotations

    def image_folder(self) -> Path:
        """Return the folder of the images under the present dataset root."""
        return dataset_root() / self.image_root


def register_dataset(spec: DatasetSpec) -> None:
    """Register a data set in ``DatasetCatalog`` and ``MetadataCatalog``.

    It replaces a data set of the same name that did not come from a :class:`DatasetSpec`:
    detectron2 has its own ``lvis_v1_train`` and ``lvis_v1_val``.

    Raises:
        ValueError: another spec has that name, or a group names a field that a category lacks.
    """
    # The same spec again is no error: a config is read more than once in a process.
    if spec.name in MetadataCatalog.list():
        other = MetadataCatalog.get(spec.name).get("spec", spec)
        if other != spec:
            raise ValueError(
                f"Data set {spec.name!r} is registered twice: {other.annotations!r} and "
                f"{spec.annotations!r}. Give one of them another name."
            )
        MetadataCatalog.remove(spec.name)
    if spec.name in DatasetCatalog.list():
        DatasetCatalog.remove(spec.name)
    # Only the reader is registered: files are read when DatasetCatalog.get asks for them.
    DatasetCatalog.register(spec.name, functools.partial(_read_dataset, spec))

    categories = load_categories(spec.categories)
    metadata_class = _make_metadata_class(type(MetadataCatalog.get(spec.name)))
    MetadataCatalog[spec.name] = metadata_class(
        name=spec.name,
        spec=spec,
        evaluator_type=spec.evaluator,
        thing_classes=[category["name"] for category in categories],
        thing_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(categories)},
        category_info=categories,
        # The name under which detectron2's own federated loss looks for image counts.
        class_image_count=categories,
        class_groups={
            group: _find_members(spec, categories, key, values)
            for group, (key, values) in spec.groups.items()
        },
    )


@functools.cache
def load_categories(name: str) -> list[dict]:
    """Read a category table.

    Args:
        name: name of a file in ``ovformer/data/catalog/categories`` without ``.json``, or an
            absolute path, also without ``.json``, of such a table or of an annotation file.

    Returns:
        The categories by contiguous index, that is sorted by "id". Each has "id" and "name". Those
        of an annotation file also have its counts and a "frequency": where the file has none, "b"
        for a category that occurs and "n" for the others.

    Raises:
        FileNotFoundError: the table does not exist.
        ValueError: an id occurs twice, or the file has no categories.
    """
    path = CATEGORY_FOLDER / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in CATEGORY_FOLDER.glob("*.json")))
        raise FileNotFoundError(
            f"Category table {path} not found. Known: {known}. A table is a JSON list of "
            'objects with "id" and "name".'
        )
    content = read_json(path)
    with name_file_in_errors(path):
        categories = _count_and_mark(content) if isinstance(content, dict) else content
        return [c for _, c in sorted(index_by_id("category", categories, {"name": TEXT}).items())]


def _count_and_mark(content: dict) -> list[dict]:
    """Return the categories of an annotation file with their counts and a "frequency"."""
    if not content.get("categories"):
        raise ValueError('it has no "categories", so it is not an annotation file.')
    categories = count_categories(content)
    for category in categories:
        category.setdefault("frequency", "b" if category["image_count"] else "n")
    return categories


def load_dataset(name: str, key: str = "DATASETS.TRAIN") -> list[dict]:
    """Read a registered data set.

    Args:
        name: name in ``DatasetCatalog``.
        key: the config key that names it, for the error message.

    Returns:
        The dataset dicts that :mod:`ovformer.data` describes.

    Raises:
        ValueError: the name is not registered, or the data set is empty.
        FileNotFoundError: its annotation file is missing.
    """
    check_dataset_name(name, key)
    records = DatasetCatalog.get(name)
    if not records:
        raise ValueError(f"{key}: data set {name!r} has no image.")
    _counts[name] = len(records)
    return records


def get_read_counts() -> dict[str, int]:
    """Return the number of images or videos of each data set that this process has read by name."""
    return dict(_counts)


def check_dataset_name(name: str, key: str) -> None:
    """Raise ValueError if ``name``, which the config key ``key`` holds, is not registered."""
    known = sorted(DatasetCatalog.list())
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{key}: unknown dataset {name!r}.{hint} Known: {', '.join(known)}. "
            "To add one, describe it in DATASETS.CUSTOM, or create "
            "ovformer/data/catalog/datasets/<name>.py (see datasets/README.md)."
        )


def check_class_count(names: Iterable[str], num_classes: int, key: str) -> None:
    """Check that data sets have as many classes as the model.

    Args:
        names: registered data sets; those without class names are not checked.
        num_classes: ``MODEL.SEM_SEG_HEAD.NUM_CLASSES``.
        key: the config key that holds the names, for the error message.

    Raises:
        ValueError: a data set has another number of classes.
    """
    for name in names:
        check_dataset_name(name, key)
        classes = MetadataCatalog.get(name).get("thing_classes")
        if classes is not None and len(classes) != num_classes:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}, but {name!r} ({key}) has "
                f"{len(classes)} classes. Set NUM_CLASSES and MODEL.MASK_FORMER.CLIP_TEXT_PATH to "
                "the vocabulary of that data set, or name another data set."
            )


def _read_dataset(spec: DatasetSpec) -> list[dict]:
    path = spec.annotation_file()
    if not path.is_file():
        raise FileNotFoundError(
            f"{spec.name}: annotation file {path} not found. {spec.source} The folder of all data "
            f"sets is {dataset_root().absolute()}; $DETECTRON2_DATASETS names another one."
        )
    return spec.read(path, spec.image_folder(), load_categories(spec.categories))


def _find_members(spec: DatasetSpec, categories: list[dict], key: str, values: tuple) -> list[int]:
    if not all(key in category for category in categories):
        raise ValueError(
            f"{spec.name}: a group of categories is defined by {key!r}, which not every category "
            f"of {spec.categories}.json has."
        )
    return [i for i, category in enumerate(categories) if category[key] in values]


@functools.cache
def _make_metadata_class(base: type) -> type:
    """Derive from the back-end's metadata class one whose paths follow the dataset root."""

    class SpecMetadata(base):
        json_file = property(lambda self: str(self.spec.annotation_file()))
        image_root = property(lambda self: str(self.spec.image_folder()))

    return SpecMetadata
