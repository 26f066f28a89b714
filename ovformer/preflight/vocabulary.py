"""Checks of text classifier, stored image features and the CLIP model."""

from collections.abc import Iterator

from ovformer.d2 import CfgNode, DatasetCatalog, MetadataCatalog
from ovformer.data.catalog.vocabulary import find_first_difference, normalise_name
from ovformer.data.files.image_embeddings import ImageEmbeddingStore
from ovformer.modeling.language.clip_encoder import CLIPEncoder, check_clip_model
from ovformer.modeling.language.text_classifier import TextClassifier, load_text_classifier
from ovformer.paths import resolve_path
from ovformer.preflight.report import collect_errors

TEXT_KEY = "MODEL.MASK_FORMER.CLIP_TEXT_PATH"


def read_classifier(cfg: CfgNode) -> TextClassifier:
    """Return the config's text classifier, or raise ValueError or FileNotFoundError."""
    path = cfg.MODEL.MASK_FORMER.CLIP_TEXT_PATH
    if not path:
        raise ValueError(
            f"{TEXT_KEY} is empty. Make a text classifier: tools/build_text_classifier.py."
        )
    try:
        return load_text_classifier(resolve_path(path))
    except (OSError, ValueError) as error:
        raise type(error)(f"{TEXT_KEY}: {error}") from error


def find_classifier_errors(cfg: CfgNode, eval_only: bool) -> Iterator[str]:
    """Yield errors of the text classifier: its file, its sizes, and the order of its names."""
    errors = collect_errors(read_classifier, cfg)
    yield from errors
    if errors:
        return
    classifier, path = read_classifier(cfg), cfg.MODEL.MASK_FORMER.CLIP_TEXT_PATH
    num_classes, width = classifier.weights.shape
    wanted_classes, wanted_width = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.CLIP.EMBED_DIM
    if num_classes != wanted_classes:
        yield (
            f"{TEXT_KEY}: {path} has {num_classes} classes, but MODEL.SEM_SEG_HEAD.NUM_CLASSES is "
            f"{wanted_classes}."
        )
    if width != wanted_width:
        yield f"{TEXT_KEY}: {path} has width {width}, but MODEL.CLIP.EMBED_DIM is {wanted_width}."
    for name, classes in _named_datasets(cfg, eval_only):
        # The order decides which class an embedding stands for. Other names may be synonyms on
        # purpose, so they are only a warning.
        if classifier.names and sorted(map(normalise_name, classes)) == sorted(
            map(normalise_name, classifier.names)
        ):
            if difference := find_first_difference(classifier.names, classes):
                yield (
                    f"{TEXT_KEY}: {path} has the names of {name!r} in another order: {difference}. "
                    "Make it again from the data set's annotations: "
                    "tools/build_text_classifier.py --vocabulary ANNOTATIONS.json."
                )


def find_classifier_warnings(cfg: CfgNode, eval_only: bool) -> Iterator[str]:
    """Yield signs that a usable text classifier is not the one that was meant."""
    if collect_errors(read_classifier, cfg):
        return  # find_classifier_errors reports it
    classifier, path = read_classifier(cfg), cfg.MODEL.MASK_FORMER.CLIP_TEXT_PATH
    for name, classes in _named_datasets(cfg, eval_only):
        ours, theirs = (
            list(map(normalise_name, classes)),
            list(map(normalise_name, classifier.names or [])),
        )
        if len(ours) == len(theirs) and sorted(ours) != sorted(theirs):
            count = sum(a != b for a, b in zip(ours, theirs, strict=True))
            yield (
                f"{TEXT_KEY}: {path} has other names for {count} of {len(classes)} classes of "
                f"{name!r}, the first: {find_first_difference(classifier.names, classes)}."
            )
    clip = cfg.MODEL.CLIP
    made_with = (classifier.meta.get("clip"), classifier.meta.get("pretrained"))
    if None not in made_with and made_with != (clip.NAME, clip.PRETRAINED):
        yield (
            f"{TEXT_KEY}: {path} was made with CLIP {' / '.join(made_with)}, but MODEL.CLIP is "
            f"{clip.NAME} / {clip.PRETRAINED}. Names and images need embeddings of the same model."
        )


def _named_datasets(cfg: CfgNode, eval_only: bool) -> Iterator[tuple[str, list[str]]]:
    """Yield the data sets that define the model's classes, with their class names."""
    # Further training sets get the classes of the first one, and may have any of their own.
    for name in (*(() if eval_only else cfg.DATASETS.TRAIN[:1]), *cfg.DATASETS.TEST):
        if name in DatasetCatalog.list():
            if classes := MetadataCatalog.get(name).get("thing_classes"):
                yield name, list(classes)


def find_feature_errors(cfg: CfgNode, eval_only: bool) -> Iterator[str]:
    """Yield errors of stored image features."""
    for key in list_feature_keys(eval_only):
        if path := cfg.MODEL.MASK_FORMER[key]:
            try:
                width = ImageEmbeddingStore.open(path).dim
            except (OSError, ValueError) as error:
                yield f"MODEL.MASK_FORMER.{key}: {error}"
            else:
                yield from _find_width_errors(cfg, width, f"{path} (MODEL.MASK_FORMER.{key})")


def find_clip_name_errors(cfg: CfgNode, eval_only: bool) -> Iterator[str]:
    """Yield an error if a CLIP model is needed and its name is unknown. Nothing is loaded."""
    if needs_clip(cfg, eval_only):
        yield from collect_errors(check_clip_model, cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.PRETRAINED)


def find_clip_model_errors(cfg: CfgNode, eval_only: bool) -> Iterator[str]:
    """Yield errors of the CLIP model, if one is needed: loads it, which may download it."""
    if not needs_clip(cfg, eval_only):
        return
    clip = cfg.MODEL.CLIP
    try:
        encoder = CLIPEncoder.from_pretrained(clip.NAME, clip.PRETRAINED)
    except (OSError, ValueError) as error:
        yield str(error)
        return
    yield from _find_width_errors(cfg, encoder.embed_dim, f"{clip.NAME} (MODEL.CLIP.NAME)")
    if encoder.image_size != clip.IMAGE_SIZE:
        yield (
            f"MODEL.CLIP.IMAGE_SIZE is {clip.IMAGE_SIZE}, but {clip.NAME} takes images of "
            f"{encoder.image_size} pixels."
        )


def list_feature_keys(eval_only: bool) -> list[str]:
    """Return the keys of ``MODEL.MASK_FORMER`` that name stored image features."""
    return ["CLIP_IMAGE_PATH"] if eval_only else ["CLIP_IMAGE_PATH_TRAIN", "CLIP_IMAGE_PATH"]


def needs_clip(cfg: CfgNode, eval_only: bool) -> bool:
    """Return whether image features are not stored, so that the model computes them."""
    return not all(cfg.MODEL.MASK_FORMER[key] for key in list_feature_keys(eval_only))


def _find_width_errors(cfg: CfgNode, width: int, source: str) -> Iterator[str]:
    if width != cfg.MODEL.CLIP.EMBED_DIM:
        yield f"MODEL.CLIP.EMBED_DIM is {cfg.MODEL.CLIP.EMBED_DIM}, but {source} has width {width}."
