"""Text classifiers: a matrix of text embeddings, one row per class, with the class names.

Legend: K classes, D CLIP width.

Two formats are read: ``.safetensors`` (ours, with names and origin inside) and ``.npy`` (published,
the matrix alone). Neither can run code when it is opened.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ovformer.files import replacing

FORMAT = "ovformer.text_classifier"


@dataclass(frozen=True)
class TextClassifier:
    """The text embeddings of a vocabulary.

    Attributes:
        weights: (K, D) float32; row k belongs to class k.
        names: K class names, or None where the file holds none.
        meta: how it was made, e.g. ``model``, ``pretrained`` and ``templates``.
    """

    weights: Tensor
    names: list[str] | None = None
    meta: dict[str, Any] = field(default_factory=dict)


def load_text_classifier(path: str | os.PathLike) -> TextClassifier:
    """Read a text classifier.

    Args:
        path: a ``.safetensors`` file of :func:`save_text_classifier`, or a ``.npy`` file of shape
            (K, D).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken, or no text classifier.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no text classifier {path}. tools/build_text_classifier.py makes one from class names"
        )
    readers = {".npy": _read_npy, ".safetensors": _read_safetensors}
    if path.suffix not in readers:
        raise ValueError(
            f"text classifier {path}: expected a name that ends in {' or '.join(readers)}"
        )
    classifier = readers[path.suffix](path)
    _check(classifier.weights, classifier.names, f"text classifier {path}")
    return classifier


def save_text_classifier(
    path: str | os.PathLike,
    weights: Tensor,
    names: Sequence[str] | None,
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Write a text classifier; an existing file is replaced as a whole or not at all.

    Args:
        path: ends in ``.safetensors``; missing folders are made.
        weights: (K, D).
        names: K class names, or None.
        meta: anything that JSON can hold.

    Raises:
        ValueError: the name, the shape or the number of names is wrong, or a value not finite.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"text classifier {path}: expected a name that ends in .safetensors")
    weights = weights.detach().cpu().float().contiguous()
    _check(weights, names, f"text classifier {path}")
    header = {"format": FORMAT, "meta": json.dumps(dict(meta or {}))}
    if names is not None:
        header["names"] = json.dumps(list(names))
    # Trainings read these files: a half-written one must never have the final name.
    with replacing(path) as temporary:
        save_file({"weights": weights}, temporary, header)


def _read_npy(path: Path) -> TextClassifier:
    """Read a ``.npy`` file, the published format."""
    try:
        # Mapped, so that a wrong file is refused by its header before it is read as a whole.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"text classifier {path}: not a plain NumPy array ({error}). Files with pickled "
            "objects are refused because opening them runs code"
        ) from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"text classifier {path}: not a plain NumPy array, but an .npz archive")
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"text classifier {path}: expected floating-point numbers, got dtype {array.dtype}"
        )
    return TextClassifier(torch.from_numpy(array.astype(np.float32)))


def _read_safetensors(path: Path) -> TextClassifier:
    """Read a ``.safetensors`` file, our own format."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT or "weights" not in file.keys():
                raise ValueError(
                    f"text classifier {path}: a safetensors file of something else, with "
                    f"{sorted(file.keys())[:5]}. tools/build_text_classifier.py makes classifiers"
                )
            weights = file.get_tensor("weights").float()
        names = json.loads(header["names"]) if "names" in header else None
        meta = json.loads(header["meta"])
    except (SafetensorError, KeyError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(f"text classifier {path}: the file is broken ({error})") from error
    # The file may come from anywhere: valid JSON need not be what save_text_classifier wrote.
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not isinstance(meta, dict) or not (names is None or is_list):
        raise ValueError(
            f"text classifier {path}: expected a list of names and an object as its description"
        )
    return TextClassifier(weights, names, meta)


def _check(weights: Tensor, names: Sequence[str] | None, what: str) -> None:
    """Raise ValueError when a matrix cannot be a classifier with these names."""
    if weights.dim() != 2 or 0 in weights.shape:
        raise ValueError(
            f"{what}: expected a shape of (classes, CLIP width), got {tuple(weights.shape)}"
        )
    # The head normalises each row: zero has no direction, and nan would spread to all losses.
    bad = (~weights.isfinite()).any(1) | (weights == 0).all(1)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"{what}: the embedding of class {row}{f' ({names[row]!r})' if names else ''} is not "
            "finite or zero, so it has no direction"
        )
    if names is not None and len(names) != len(weights):
        raise ValueError(f"{what}: {len(names)} names for {len(weights)} classes")
