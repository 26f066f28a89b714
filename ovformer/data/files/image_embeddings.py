"""Stores the CLIP embeddings of images on disk; makes their keys, and the images that CLIP sees.

Legend: N images, D CLIP width, H W pixels, S side of the image that CLIP takes.
"""

import difflib
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ovformer.d2 import comm
from ovformer.d2.safe_pickle import load_torch_file
from ovformer.files import replacing
from ovformer.paths import dataset_root, resolve_path

_TOOL = "tools/save_clip_features.py"


def make_image_key(file_name: str | os.PathLike) -> str:
    """Return the key of an image in a store, which does not depend on where the data sets are.

    Args:
        file_name: path of the image.

    Returns:
        The path relative to the dataset root, with "/" as separator; for an image outside the root
        the absolute path.
    """
    path = os.path.abspath(file_name)
    root = os.path.join(os.path.abspath(dataset_root()), "")
    return path.removeprefix(root).replace(os.sep, "/")


def crop_for_embedding(image: np.ndarray, size: int) -> torch.Tensor:
    """Resize and crop an image to the input of CLIP, which is not normalised yet.

    Args:
        image: uint8 (H, W, 3), RGB.
        size: S in pixels.

    Returns:
        uint8 (3, S, S): the centre, after the short edge was resized to S (bicubic).
    """
    height, width = image.shape[:2]
    short = min(height, width)
    height, width = size * height // short, size * width // short
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    cropped = np.asarray(resized.crop((left, top, left + size, top + size)))
    return torch.from_numpy(np.ascontiguousarray(cropped.transpose(2, 0, 1)))


class ImageEmbeddingStore:
    """Image embeddings on disk, one row for each image. Use :meth:`open`.

    Our own files are memory-mapped safetensors: opening one reads only the keys, and processes
    share the rows. The published ``.pkl`` files are read without running code from them.

    Args:
        path: the file.
        rows: returns the embedding (D,) or (1, D) of a row.
        index: row of each key.
        info: the model that made the embeddings, "clip" and "pretrained".
    """

    def __init__(self, path: Path, rows: Sequence | torch.Tensor, index: Mapping, info: dict):
        self.path = path
        self.info = info
        self._rows = rows
        self._index = index

    @classmethod
    def open(cls, path: str | os.PathLike) -> "ImageEmbeddingStore":
        """Open a store.

        Args:
            path: ``.safetensors`` of :class:`ImageEmbeddingWriter`, or a published ``.pkl``;
                absolute, or relative to the dataset root.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is not a store, or loading it could run code.
        """
        path = resolve_path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"CLIP features {path} not found. Make them with: python {_TOOL} --dataset NAME "
                f"--output {path}; or leave the path empty, then the model computes them."
            )
        if path.suffix == ".safetensors":
            return cls(path, *_open_safetensors(path))
        return cls(path, *_open_pickle(path))

    def __reduce__(self) -> tuple:
        """Pickle the path only: another process opens the file itself."""
        return ImageEmbeddingStore.open, (self.path,)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, record: dict | str) -> bool:
        return self._find(record) is not None

    @property
    def keys(self) -> list[str | int]:
        """The keys: paths relative to the dataset root, or image ids in a published file."""
        return list(self._index)

    @property
    def dim(self) -> int:
        """The width D of the embeddings."""
        return self._rows[0].shape[-1]

    def get(self, record: dict | str) -> torch.Tensor:
        """Return the embedding of an image: float32 (D,).

        Args:
            record: a dataset dict, or the key of an image.

        Raises:
            KeyError: the store lacks the image; the message names the most similar key.
        """
        row = self._find(record)
        if row is None:
            raise KeyError(self._describe_missing(record))
        return self._rows[row].reshape(-1).to(torch.float32, copy=True)

    def require(self, records: Iterable[dict]) -> None:
        """Raise KeyError if the store lacks any of these images."""
        missing = [record for record in records if record not in self]
        if missing:
            raise KeyError(
                f"{len(missing)} images have no CLIP features. {self._describe_missing(missing[0])}"
            )

    def _find(self, record: dict | str) -> int | None:
        if isinstance(record, str):
            return self._index.get(_without_root(record))
        key = record.get("clip_key") or make_image_key(record["file_name"])
        row = self._index.get(key)
        # A published file may have image ids for keys.
        return self._index.get(record.get("image_id")) if row is None else row

    def _describe_missing(self, record: dict | str) -> str:
        key = record if isinstance(record, str) else record.get("clip_key") or record["file_name"]
        text = f"{self.path} has no CLIP features for {key!r}"
        if isinstance(record, dict) and "image_id" in record:
            text += f" (image id {record['image_id']})"
        near = difflib.get_close_matches(key, map(str, self._index), n=1, cutoff=0.3)
        text += f"; the nearest of its {len(self)} keys is {near[0]!r}" if near else ""
        return f"{text}. Add them with: python {_TOOL} --dataset NAME --output {self.path}"


class ImageEmbeddingWriter:
    """Writes a store that is complete or absent; a context manager that can resume its work.

    Embeddings are collected in a folder ``<path>.parts`` beside the store, in files that are
    complete themselves. The writer keeps the rows of that folder and of an existing store, and
    writes the store when the block ends without an exception. Several processes may write one store
    together; each of them has to make a writer and to leave its block.

    Args:
        path: the ``.safetensors`` file.
        info: the model that makes the embeddings: "clip" and "pretrained".
        dtype: float32 or float16, as stored.
        rows_per_part: most images that are lost when the process is killed.

    Attributes:
        done: the keys that exist already, and those added by this process.

    Raises:
        ValueError: the existing rows were made in another way, or the suffix is wrong.
    """

    def __init__(
        self,
        path: Path,
        info: Mapping[str, str],
        dtype: torch.dtype = torch.float32,
        rows_per_part: int = 4096,
    ):
        if path.suffix != ".safetensors":
            raise ValueError(f"{path}: the name of a feature store has to end with .safetensors.")
        self.path = path
        self.info = {**info, "dtype": str(dtype).removeprefix("torch.")}
        self._dtype = dtype
        self._rows_per_part = rows_per_part
        self._folder = path.with_name(path.name + ".parts")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._keys: list[str] = []
        self._features: list[torch.Tensor] = []
        self.done: set[str] = set()
        for part in self._parts():
            store = ImageEmbeddingStore.open(part)
            if store.info != self.info:
                raise ValueError(
                    f"{part} was made with {store.info}, not with {self.info}. Choose another "
                    f"output, or remove {path} and {self._folder}."
                )
            self.done.update(store.keys)
        comm.synchronize()  # every process has read the parts before one adds another

    def __enter__(self) -> "ImageEmbeddingWriter":
        return self

    def __exit__(self, exc_type: type | None, *_: object) -> None:
        self._flush()
        if exc_type is None:
            comm.synchronize()  # every process has written its last part
            if comm.is_main_process():
                self._finish()
            comm.synchronize()
        # After an error the parts stay, for the next run; an empty folder would be clutter.
        elif not any(self._folder.iterdir()):
            self._folder.rmdir()

    def add(self, keys: Sequence[str], features: torch.Tensor) -> None:
        """Add images.

        Args:
            keys: N keys, see :func:`make_image_key`.
            features: (N, D).
        """
        self._keys += keys
        self._features.append(features.detach().to("cpu", self._dtype))
        self.done.update(keys)
        if len(self._keys) >= self._rows_per_part:
            self._flush()

    def _parts(self) -> list[Path]:
        return [p for p in [self.path] if p.is_file()] + sorted(
            self._folder.glob("*.safetensors"),
            key=lambda part: list(map(int, part.stem.split("-"))),
        )

    def _flush(self) -> None:
        if self._keys:
            # The names sort by process, then by time.
            rank = comm.get_rank()
            own = self._folder.glob(f"{rank}-*.safetensors")
            number = 1 + max((int(part.stem.split("-")[1]) for part in own), default=0)
            part = self._folder / f"{rank}-{number}.safetensors"
            _write_safetensors(part, self._keys, torch.cat(self._features), self.info)
            self._keys, self._features = [], []

    def _finish(self) -> None:
        # The store itself is the first part, so a store that grows keeps its rows.
        keys, features = [], []
        for part in self._parts():
            store = ImageEmbeddingStore.open(part)
            keys += store.keys
            features.append(store._rows[:])
        if keys:
            _write_safetensors(self.path, keys, torch.cat(features), self.info)
        shutil.rmtree(self._folder)


def _open_safetensors(path: Path) -> tuple:
    try:
        file = safe_open(path, "pt")
        info = dict(file.metadata() or {})
        keys = json.loads(bytes(file.get_tensor("keys").numpy()))
        rows = file.get_slice("features")
    except (SafetensorError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: not a store of CLIP features ({error}). Make one with {_TOOL}."
        ) from error
    # The file may come from elsewhere: its parts have to fit each other.
    is_list = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not is_list or [len(keys)] != rows.get_shape()[:-1]:
        raise ValueError(
            f"{path}: expected a list of keys and a row of features for each, got features of "
            f"shape {rows.get_shape()}. Make a store with {_TOOL}."
        )
    return rows, {key: row for row, key in enumerate(keys)}, info


def _open_pickle(path: Path) -> tuple:
    try:
        content = load_torch_file(path, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: not a dict of tensors saved by torch.save, or one that holds other Python "
            "objects, which are not loaded because that could run code. Make a new store with "
            f"{_TOOL}. ({error})"
        ) from error
    if not isinstance(content, dict) or not content or not all(map(_is_row, content.values())):
        raise ValueError(f"{path}: expected a dict from image to tensor. Make one with {_TOOL}.")
    index = {_without_root(key): row for row, key in enumerate(content)}
    return list(content.values()), index, {}


def _is_row(value: object) -> bool:
    return torch.is_tensor(value) and value.shape[:-1] in ((), (1,)) and value.dim() > 0


def _without_root(key: str | int) -> str | int:
    """Drop the ``datasets/`` with which the keys of the published files start."""
    return key.removeprefix("datasets/") if isinstance(key, str) else key


def _write_safetensors(
    path: Path, keys: Sequence[str], features: torch.Tensor, info: dict[str, str]
) -> None:
    # safetensors holds tensors only, so the list of keys becomes one of bytes.
    key_bytes = torch.frombuffer(bytearray(json.dumps(keys), "utf-8"), dtype=torch.uint8)
    with replacing(path) as temporary:
        save_file({"features": features, "keys": key_bytes}, temporary, metadata=info)
