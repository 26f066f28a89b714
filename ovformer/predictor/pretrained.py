"""Loads weights and what belongs to them: config, vocabulary, CLIP model and prompts.

A checkpoint of our trainer holds all of it (``Checkpointer``). Others, such as the published ones,
need a config file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import ovformer.modeling  # noqa: F401  (registers the models)
from ovformer.arguments import choose_device
from ovformer.config import get_ovformer_cfg
from ovformer.d2 import CfgNode, MetadataCatalog
from ovformer.data.catalog.custom import register_custom
from ovformer.engine.checkpoint import Checkpointer, read_weights
from ovformer.modeling.language.text_classifier import load_text_classifier
from ovformer.modeling.meta_arch.base_model import build_without_vocabulary
from ovformer.paths import resolve_path

# Value of --model -> MODEL.META_ARCHITECTURE and MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME.
# The same weights fit all of them.
ARCHITECTURES = {
    "image": ("OVFormer", "MultiScaleMaskedTransformerDecoder"),
    "video": ("OVFormerVideo", "MultiScaleMaskedTransformerDecoder"),
    "clip": ("VideoOVFormer", "VideoMultiScaleMaskedTransformerDecoder"),
}
_TEXT_EMBEDDINGS = "sem_seg_head.predictor.class_embed.zs_weight"


@dataclass(frozen=True)
class Pretrained:
    """A model that was built from its weights.

    Attributes:
        model: in evaluation mode, on its device. It has no vocabulary yet.
        cfg: what it was built from.
        names: the vocabulary of the weights; None if neither weights nor config know the names.
        embeddings: (K, D) CLIP's embeddings of the names, from the weights; None if absent.
        clip: "name" and "pretrained" of the training's CLIP model; empty if the weights don't know.
        templates: the prompts of the vocabulary, from the weights or the config's text classifier;
            empty if neither knows them.
    """

    model: nn.Module
    cfg: CfgNode
    names: list[str] | None
    embeddings: Tensor | None
    clip: dict[str, str]
    templates: list[str]


def load_pretrained(
    config: str | PathLike | CfgNode | None,
    weights: str | PathLike,
    *,
    device: str | None = None,
    architecture: str | None = None,
    opts: Sequence[str] = (),
) -> Pretrained:
    """Build a model and load its weights.

    Args:
        config: a YAML file or a config; None for the one inside the weights, or else config.yaml
            beside them.
        weights: see :meth:`ovformer.engine.checkpoint.Checkpointer.load`.
        device: for example "cpu"; None for a GPU where there is one.
        architecture: "image", "video" or "clip"; None for that of the config, with "video" in place
            of "image".
        opts: alternating keys and values that replace those of the config.

    Raises:
        FileNotFoundError: there are no weights or no config.
        ValueError: they don't fit each other, or the device can't be used.
    """
    path = resolve_path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"weights: no file {weights}")
    content = read_weights(path)
    # Weights may come from anywhere: their metadata is checked before anything uses it.
    metadata = _check_metadata(content, path)
    cfg = _read_config(config, path, metadata, opts)
    model = _build_model(cfg, choose_device(device), architecture)
    # The checkpointer converts key names and reports what is missing; a trained model needs all.
    checkpointer = Checkpointer(model)
    checkpointer.load(str(path))
    if not checkpointer.has_loaded_all:
        raise ValueError(f"weights: {weights} holds a backbone only, no trained model")
    columns = content["model"].get(_TEXT_EMBEDDINGS)
    if columns is not None and np.ndim(columns) != 2:
        raise ValueError(f"weights: {weights}: {_TEXT_EMBEDDINGS} is no matrix")
    embeddings = None if columns is None else torch.as_tensor(columns)[:, :-1].t().float()
    names = _find_names(content, cfg, embeddings)
    if names is not None and embeddings is not None and len(names) != len(embeddings):
        raise ValueError(
            f"weights: {weights} hold {len(names)} class names, but {len(embeddings)} text "
            "embeddings"
        )
    return Pretrained(
        model.eval(),
        cfg,
        names,
        embeddings,
        dict(metadata.get("clip", {})),
        list(metadata.get("templates", _read_templates(cfg))),
    )


def _check_metadata(content: dict, path: Path) -> dict:
    """Return the metadata of weights; raise ValueError unless its types are right."""
    metadata = content.get("metadata", {})
    lists = [content.get("class_names") or []]
    is_valid = isinstance(metadata, dict) and isinstance(metadata.get("clip", {}), dict)
    if is_valid:
        clip = list(metadata.get("clip", {}).values())
        lists += [metadata.get("templates", []), clip, [metadata.get("config", "")]]
    is_valid = is_valid and all(isinstance(texts, list | tuple) for texts in lists)
    if not is_valid or not all(isinstance(text, str) for texts in lists for text in texts):
        raise ValueError(f"weights: {path}: its metadata is not that of a training of this project")
    # Weights may come from anywhere: their config must not make us read files.
    if "_BASE_" in metadata.get("config", ""):
        raise ValueError(f"weights: {path}: the config inside refers to another file (_BASE_)")
    return metadata


def _read_config(
    config: str | PathLike | CfgNode | None, weights: Path, metadata: dict, opts: Sequence[str]
) -> CfgNode:
    """Return the frozen config: the given one, that inside the weights, or that beside them."""
    beside = weights.with_name("config.yaml")
    if isinstance(config, CfgNode):
        cfg = config.clone()
        cfg.defrost()
        cfg.merge_from_list(list(opts))
        cfg.freeze()
    elif config is not None:
        cfg = get_ovformer_cfg(str(config), opts)
    elif "config" in metadata:
        cfg = get_ovformer_cfg(None, opts, text=metadata["config"])
    elif beside.is_file():
        cfg = get_ovformer_cfg(str(beside), opts)
    else:
        raise FileNotFoundError(
            f"{weights} has no config inside, and there is no {beside}. Give the config of the "
            "training: --config-file configs/..."
        )
    return cfg


def _build_model(cfg: CfgNode, device: str, architecture: str | None) -> nn.Module:
    """Build a model without a vocabulary, which needs no file of the training."""
    if architecture is None:
        known = {name: short for short, (name, _) in ARCHITECTURES.items()}
        architecture = known.get(cfg.MODEL.META_ARCHITECTURE, "video")
        # Weights of the image stage also track: the models share all parameters.
        architecture = "video" if architecture == "image" else architecture
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"architecture: unknown {architecture!r}. Known: {', '.join(ARCHITECTURES)}"
        )
    # The caller keeps the config of the training; its copy names another architecture.
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.META_ARCHITECTURE, decoder = ARCHITECTURES[architecture]
    cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME = decoder
    return build_without_vocabulary(cfg, device)


def _read_templates(cfg: CfgNode) -> list[str]:
    """Return the prompts of the config's text classifier, empty if it is missing or has none."""
    path = resolve_path(cfg.MODEL.MASK_FORMER.CLIP_TEXT_PATH)
    return list(load_text_classifier(path).meta.get("templates", [])) if path.is_file() else []


def _find_names(content: dict, cfg: CfgNode, embeddings: Tensor | None) -> list[str] | None:
    """Return the class names, from the weights or from a data set of the config with as many."""
    if content.get("class_names"):
        return list(content["class_names"])
    # Published weights have no names: take those of a data set with as many classes.
    register_custom(cfg.DATASETS.CUSTOM)
    for dataset in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        names = MetadataCatalog.get(dataset).get("thing_classes")
        if embeddings is not None and names and len(names) == len(embeddings):
            return list(names)
    return None
