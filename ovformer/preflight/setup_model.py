"""Rows of tools/check_setup.py about the model: weights, text classifier, CLIP, disk space."""

import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ovformer.d2 import CfgNode, DatasetCatalog
from ovformer.data.catalog.dataset_spec import load_dataset
from ovformer.data.files.image_embeddings import ImageEmbeddingStore
from ovformer.data.files.image_files import iterate_images
from ovformer.modeling.language.clip_encoder import LOCAL_PREFIX
from ovformer.paths import resolve_path
from ovformer.preflight import machine, vocabulary
from ovformer.preflight.data import list_datasets
from ovformer.preflight.model import DryRun, find_weights_errors, find_weights_path
from ovformer.preflight.setup_table import Row, add_error_row


def check_weights(cfg: CfgNode, network: nn.Module | None, resume: bool) -> Iterator[Row]:
    """Yield rows of the model and of the weights that a run starts from.

    Args:
        cfg: the config.
        network: the model on the meta device; None if it can't be built.
        resume: see :func:`ovformer.preflight.model.find_weights_errors`.
    """
    if network is None:
        yield Row("bad", "model", f"{cfg.MODEL.META_ARCHITECTURE} can't be built; see below")
    else:
        count = sum(p.numel() for p in network.parameters()) / 1e6
        text = f"{cfg.MODEL.META_ARCHITECTURE}, {count:.2f} M parameters"
        yield Row("ok", "model", text)
    if errors := list(find_weights_errors(cfg, network, resume)):
        yield from (Row("bad", "weights", error) for error in errors)
    elif not (path := find_weights_path(cfg, resume)):
        yield Row("note", "weights", "MODEL.WEIGHTS is empty: the model starts from random weights")
    elif "://" in path:
        yield Row("note", "weights", f"{path} is fetched when the run starts")
    elif network is not None:
        # Once more, because find_weights_errors returns messages only.
        reader = DryRun(network)
        reader.load(path)
        which = "the whole model" if reader.has_loaded_all else "the backbone only"
        yield Row(
            "ok",
            "weights",
            f"{resolve_path(path)}: {describe_checkpoint(reader.content)}; fits {which}",
        )


def describe_checkpoint(content: Mapping[str, Any]) -> str:
    """Return as text what a checkpoint holds; skips entries that OVFormer does not write."""
    weights = content["model"].values()
    numbers = sum(math.prod(array.shape) for array in weights)
    # A file from elsewhere may hold anything under these names, so each type is checked.
    parts = [f"{len(weights)} arrays of {numbers / 1e6:.2f} M numbers"]
    if isinstance(content.get("iteration"), int):
        parts.append(f"after {content['iteration'] + 1} iterations")
    if "trainer" in content:
        parts.append("state of the training")
    if isinstance(names := content.get("class_names"), list) and names:
        parts.append(f"{len(names)} class names")
    if isinstance(metadata := content.get("metadata"), Mapping) and "config" in metadata:
        parts.append("its config")
    return ", ".join(parts)


def check_vocabulary(cfg: CfgNode, eval_only: bool, load_clip: bool) -> Iterator[Row]:
    """Yield rows of the text classifier, stored image features and the CLIP model.

    Args:
        cfg: the config.
        eval_only: skip what only training needs.
        load_clip: load the CLIP model if it is needed, even if that downloads it.
    """
    yield from add_error_row("text classifier", _check_classifier(cfg, eval_only))
    for key in vocabulary.list_feature_keys(eval_only):
        if path := cfg.MODEL.MASK_FORMER[key]:
            yield from add_error_row("image features", _check_features(cfg, key, path, eval_only))
    yield from _check_clip(cfg, eval_only, load_clip)


def _check_clip(cfg: CfgNode, eval_only: bool, load_clip: bool) -> Iterator[Row]:
    clip = cfg.MODEL.CLIP
    what = f"{clip.NAME} {clip.PRETRAINED}".strip()
    is_here = clip.NAME.startswith(LOCAL_PREFIX) or Path(clip.PRETRAINED).is_file()
    if not vocabulary.needs_clip(cfg, eval_only):
        yield Row("note", "CLIP", f"{what} is not needed, since image features are stored")
        return
    # A model on this disk is loaded in seconds; another one may be downloaded, so only on demand.
    errors = list(vocabulary.find_clip_name_errors(cfg, eval_only))
    if not errors and (is_here or load_clip):
        errors = list(vocabulary.find_clip_model_errors(cfg, eval_only))
        text = f"{what}: width {clip.EMBED_DIM}, images of {clip.IMAGE_SIZE} pixels"
    else:
        text = f"{what} is loaded, or downloaded, when the run starts; --load-clip tries it now"
    if not errors:
        yield Row("ok" if is_here or load_clip else "note", "CLIP", text)
    yield from (Row("bad", "CLIP", error) for error in errors)


def _check_classifier(cfg: CfgNode, eval_only: bool) -> Iterator[Row]:
    classifier = vocabulary.read_classifier(cfg)
    num_classes, width = classifier.weights.shape
    path = resolve_path(cfg.MODEL.MASK_FORMER.CLIP_TEXT_PATH)
    parts = [f"{path}: {num_classes} classes of width {width}"]
    names = classifier.names
    parts.append(f"{names[0]!r} to {names[-1]!r}" if names else "without names")
    if "clip" in classifier.meta:
        parts.append(f"by CLIP {classifier.meta['clip']} {classifier.meta.get('pretrained', '')}")
    if templates := classifier.meta.get("templates"):
        parts.append(f"{len(templates)} prompt(s), as {templates[0]!r}")
    yield Row("ok", "text classifier", ", ".join(part.strip() for part in parts))
    for error in vocabulary.find_classifier_errors(cfg, eval_only):
        yield Row("bad", "text classifier", error)
    for warning in vocabulary.find_classifier_warnings(cfg, eval_only):
        yield Row("warning", "text classifier", warning)


def _check_features(cfg: CfgNode, key: str, path: str, eval_only: bool) -> Iterator[Row]:
    """Yield whether a store has the features of all images of its data sets."""
    store = ImageEmbeddingStore.open(path)
    yield Row("ok", "image features", f"{store.path}: {len(store)} images, width {store.dim}")
    wanted = "DATASETS.TRAIN" if key == "CLIP_IMAGE_PATH_TRAIN" else "DATASETS.TEST"
    for dataset_key, name in list_datasets(cfg, eval_only):
        if dataset_key == wanted and name in DatasetCatalog.list():
            yield from add_error_row(f"  of {name}", _check_stored(store, dataset_key, name))


def _check_stored(store: ImageEmbeddingStore, key: str, name: str) -> Iterator[Row]:
    entries = list(iterate_images(load_dataset(name, key)))
    store.require(entries)
    yield Row("ok", f"  of {name}", f"all {len(entries)} images have theirs")


def check_disk(cfg: CfgNode, network: nn.Module | None, args: Any) -> Iterator[Row]:
    """Yield rows of the output folder and the free space on its disk."""
    folder = machine.find_existing_folder(cfg.OUTPUT_DIR)
    free = machine.format_size(shutil.disk_usage(folder).free)
    errors, warnings, text = list(machine.find_output_errors(cfg)), [], ""
    if network is not None and not args.eval_only:
        size = machine.estimate_checkpoint_bytes(network, cfg.SOLVER.OPTIMIZER)
        text = f"; a checkpoint takes about {machine.format_size(size)}"
        errors += machine.find_disk_errors(cfg, size)
        if cfg.SOLVER.CHECKPOINT_PERIOD > 0:
            text += f", and there will be {machine.count_checkpoints(cfg, args.resume)}"
            warnings += machine.find_disk_warnings(cfg, size, args.resume)
    if not errors:
        yield Row("ok", "output folder", f"{cfg.OUTPUT_DIR}: {free} free{text}")
    yield from (Row("bad", "output folder", error) for error in errors)
    yield from (Row("warning", "output folder", warning) for warning in warnings)
