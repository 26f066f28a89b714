"""A user's own data sets, described in a config (``DATASETS.CUSTOM``) instead of in code."""

import os
import re
from collections.abc import Mapping, Sequence

from ovformer.d2 import DatasetCatalog, MetadataCatalog
from ovformer.data.catalog.dataset_spec import DatasetSpec, load_categories, register_dataset
from ovformer.data.files.json_file import read_json, shorten
from ovformer.data.files.lvis_json import read_lvis_json
from ovformer.data.files.vis_json import read_vis_json
from ovformer.paths import resolve_path

_KEY = "DATASETS.CUSTOM"
_REQUIRED = ("name", "annotations", "images")


def register_custom(entries: Sequence[Mapping]) -> None:
    """Register data sets in detectron2's catalogs. Registering them again changes nothing.

    Args:
        entries: ``DATASETS.CUSTOM``. Each has "name"; "annotations", a JSON file in the format of
            YouTube-VIS (it has "videos"), COCO or LVIS; "images", the folder that its file names
            are relative to; and optionally "novel", the names or ids of the novel classes, to score
            base and novel classes separately. Paths are those of a config: absolute, or relative
            to the working directory or the dataset root.

    Raises:
        FileNotFoundError: the annotations or the folder of the only wrong entry are missing.
        ValueError: an entry is wrong, or its name is taken; or several are wrong, with a line for
            each. The other entries are registered.
    """
    errors: list[Exception] = []
    if not isinstance(entries, list | tuple):
        raise ValueError(f"{_KEY}: expected a list of data sets, got {shorten(entries)}.")
    # All wrong entries are reported at once, and do not keep the others from being registered.
    for number, entry in enumerate(entries):
        try:
            register_dataset(_make_spec(number, entry))
        except (OSError, ValueError) as error:
            errors.append(error)
    if len(errors) > 1:
        raise ValueError("\n".join(map(str, errors)))
    if errors:
        raise errors[0]


def _make_spec(number: int, entry: Mapping) -> DatasetSpec:
    place = f"{_KEY}[{number}]"
    if not isinstance(entry, Mapping) or not all(entry.get(key) for key in _REQUIRED):
        raise ValueError(
            f"{place}: expected name, annotations, images and optionally novel, got {entry!r}. For "
            "example: {name: birds_val, annotations: birds/val.json, images: birds/frames, "
            "novel: [wren]}"
        )
    unknown = sorted(entry.keys() - {*_REQUIRED, "novel"})
    if unknown:
        raise ValueError(f"{place}: unknown {unknown}. Known: {', '.join(_REQUIRED)}, novel.")
    if wrong := next((key for key in _REQUIRED if not isinstance(entry[key], str)), None):
        raise ValueError(f"{place}: {wrong}: expected text, got {shorten(entry[wrong])}.")
    name = entry["name"]
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):  # results go into a folder of that name
        raise ValueError(
            f"{place}: name: expected letters, digits, '_', '-' and '.', got {shorten(name)}."
        )
    if name in DatasetCatalog.list() and "spec" not in MetadataCatalog.get(name).as_dict():
        raise ValueError(f"{place}: the name {name!r} is taken. Choose another one.")
    annotations = resolve_path(entry["annotations"]).absolute()
    images = resolve_path(entry["images"]).absolute()
    if annotations.suffix != ".json":
        raise ValueError(f"{place}: annotations: expected a .json file, got {annotations}.")
    # The format and the metric follow from the content of the file.
    content = read_json(annotations, ("categories",))
    if not ("videos" in content or "images" in content):
        raise ValueError(
            f'{place}: {annotations} has neither "videos" (the format of YouTube-VIS) nor "images" '
            f"(COCO's); it holds {sorted(content)}."
        )
    if not os.path.isdir(images):  # Path.is_dir raises OSError for a name that is too long
        raise FileNotFoundError(f"{place}: images: no such folder: {images}.")
    # The file is its own category table; load_categories adds ".json" again.
    table = str(annotations.with_suffix(""))
    is_video = "videos" in content
    return DatasetSpec(
        name=name,
        image_root=str(images),
        annotations=str(annotations),
        categories=table,
        read=read_vis_json if is_video else read_lvis_json,
        evaluator="vis" if is_video else "lvis",
        groups=_make_groups(place, load_categories(table), entry.get("novel") or ()),
        source=f"{_KEY} names it.",
    )


def _make_groups(
    place: str, categories: list[dict], novel: Sequence
) -> dict[str, tuple[str, tuple]]:
    """Split the categories into base and novel ones by id; no groups without novel ones."""
    novel = novel if isinstance(novel, list | tuple) else (novel,)
    known = {category["name"]: category["id"] for category in categories}
    ids = set(known.values())
    chosen = set()
    for item in novel:
        if not isinstance(item, str | int) or (item not in known and item not in ids):
            raise ValueError(
                f"{place}: novel: no category has the name or id {item!r}. Names: "
                f"{', '.join(known)}."
            )
        chosen.add(known.get(item, item))
    if not chosen:
        return {}
    return {"base": ("id", tuple(sorted(ids - chosen))), "novel": ("id", tuple(sorted(chosen)))}
