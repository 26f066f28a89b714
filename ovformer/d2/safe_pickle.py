"""Unpickling of weights without running code: arrays and tensors, and nothing else.

Ours on both back-ends: detectron2 itself unpickles ``.pkl`` files without restrictions.
"""

import io
import pickle
from typing import Any, BinaryIO

import torch

# All that a pickled dict of numpy arrays and torch tensors refers to.
_ALLOWED = {
    "_codecs": {"encode"},
    "collections": {"OrderedDict"},
    "numpy": {"dtype", "ndarray"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy.core.numeric": {"_frombuffer"},
    "numpy._core.numeric": {"_frombuffer"},
    "torch": {"Size"},
    "torch._utils": {"_rebuild_parameter", "_rebuild_tensor_v2"},
}


class _WeightsUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return lambda data: torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(
            f"it holds {module}.{name}, which is neither an array nor a tensor"
        )


def load_weights_pickle(file: BinaryIO) -> Any:
    """Unpickle arrays and tensors, in dicts, lists and tuples; also files that Python 2 wrote.

    Raises:
        pickle.UnpicklingError: the file is damaged, or refers to anything else.
    """
    return _WeightsUnpickler(file, encoding="latin1").load()
