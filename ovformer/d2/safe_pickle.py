"""Unpickles weights without running code: arrays and tensors, and nothing else.

Both back-ends use it: detectron2 itself unpickles ``.pkl`` files without restrictions.

A file does not even get the classes of numpy: ``ndarray`` would read any bytes as references to
Python objects if the file says so, and ``dtype`` believes any description of a type. Numbers and
arrays of numbers are made from their bytes here.
"""

import io
import os
import pickle
import struct
from collections import OrderedDict
from typing import Any, BinaryIO

import numpy as np
import torch


class _NumberType:
    """Replaces ``numpy.dtype`` in a file: the type of a number.

    Attributes:
        value: the type.
    """

    def __init__(self, text: str, *_: object) -> None:
        self.value = np.dtype(text) if isinstance(text, str) else None
        if self.value is None or self.value.kind not in "biufc":
            raise pickle.UnpicklingError(
                f"it holds a numpy.dtype of {text!r:.40}, which is not a type of numbers"
            )

    def __setstate__(self, state: tuple) -> None:
        _, byte_order, *parts = state[:5]
        if parts != [None] * 3:
            raise pickle.UnpicklingError(
                "it holds a numpy.dtype with parts, which is not a type of numbers"
            )
        self.value = self.value.newbyteorder(byte_order)


class _NumberArray(np.ndarray):
    """Replaces ``numpy.ndarray`` in a file: an array whose type is a :class:`_NumberType`."""

    def __setstate__(self, state: tuple) -> None:
        *version, shape, kind, is_fortran, content = state
        super().__setstate__((*version, shape, kind.value, is_fortran, content))


def _reconstruct(*_: object) -> np.ndarray:
    """Return an empty array; its state comes later in the file."""
    return _NumberArray((0,), np.uint8)


def _scalar(kind: _NumberType, content: bytes | str) -> np.number:
    content = content.encode("latin1") if isinstance(content, str) else content
    return np.frombuffer(content, kind.value, count=1)[0]


def _from_buffer(content: bytes, kind: _NumberType, shape: tuple, order: str) -> np.ndarray:
    return np.frombuffer(content, kind.value).reshape(shape, order=order)


# All names in pickled arrays of numbers, of numpy 1 and 2, with their replacements here. The class
# itself is only ever an argument.
_NUMPY = {
    ("numpy", "dtype"): _NumberType,
    ("numpy", "ndarray"): None,
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}
# All other names in a pickled dict of arrays and tensors.
_ALLOWED = {
    "_codecs": {"encode"},
    "collections": {"OrderedDict"},
    "torch": {"Size"},
    "torch._utils": {"_rebuild_parameter", "_rebuild_tensor_v2"},
}
# torch.load accepts these besides tensors: the optimizer's state of old checkpoints holds numbers
# of numpy, with the class of their dtype.
_TORCH_EXTRAS = [
    (stand_in, f"{module}.{name}")
    for (module, name), stand_in in _NUMPY.items()
    if name in ("dtype", "scalar")
]
# Unpicklers raise these besides UnpicklingError if a file is damaged, or made to do damage.
_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RuntimeError,  # also RecursionError
    TypeError,
    ValueError,
    struct.error,
)


class _WeightsUnpickler(pickle._Unpickler):
    """Python's own implementation: the one in C allocates gigabytes if a few bytes ask for them."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NUMPY:
            return _NUMPY[module, name]
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return lambda data: load_torch_file(io.BytesIO(data))
        if name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(
            f"it holds {module}.{name}, which is neither an array nor a tensor"
        )

    def load_build(self) -> None:
        """Set the state of an array, type or dict; a file must not change the functions above."""
        if not isinstance(self.stack[-2], _NumberType | _NumberArray | OrderedDict):
            raise pickle.UnpicklingError(f"it sets the state of {self.stack[-2]!r:.80}")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def load_weights_pickle(file: BinaryIO) -> Any:
    """Unpickle arrays and tensors, in dicts, lists and tuples; also files that Python 2 wrote.

    Raises:
        pickle.UnpicklingError: the file is damaged, or contains anything else.
    """
    try:
        return _WeightsUnpickler(file, encoding="latin1").load()
    except _ERRORS as error:
        raise pickle.UnpicklingError(_shorten_message(error)) from error


def load_torch_file(file: str | os.PathLike | BinaryIO, mmap: bool = False) -> Any:
    """Load a file of ``torch.save`` to the CPU: tensors, plain Python values, numbers of numpy.

    Args:
        file: the file, or its path.
        mmap: leave the tensors on disk; only for files in torch's zip format.

    Raises:
        FileNotFoundError: there is no such file.
        pickle.UnpicklingError: the file is damaged, or holds anything else; the message names it.
    """
    try:
        with torch.serialization.safe_globals(_TORCH_EXTRAS):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, *_ERRORS) as error:
        raise pickle.UnpicklingError(_shorten_message(error)) from error


def _shorten_message(error: Exception) -> str:
    """Return the decisive line of an error message; torch's messages are long."""
    lines = str(error).splitlines() or [type(error).__name__]
    return next((line.strip() for line in lines if "unsupported" in line.lower()), lines[0])
