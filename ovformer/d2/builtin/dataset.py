"""A list as a data set."""

import copy as copy_module
import logging
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

logger = logging.getLogger(__name__)


class _SerializedList:
    """Pickled records in one tensor.

    Worker processes share its memory. A list of Python objects would be copied into each of them,
    because reading an object changes its reference count.
    """

    def __init__(self, records: list) -> None:
        buffers = [np.frombuffer(pickle.dumps(record, protocol=-1), np.uint8) for record in records]
        ends = np.cumsum([len(buffer) for buffer in buffers], dtype=np.int64)
        self._ends = torch.from_numpy(ends)
        # The empty array is for a list without records: np.concatenate needs one array at least.
        self._bytes = torch.from_numpy(np.concatenate([*buffers, np.empty(0, np.uint8)]))
        logger.info("Serialized %d records into %.2f MiB", len(records), len(self._bytes) / 1024**2)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Any:
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range, length {len(self)}")
        start = int(self._ends[index - 1]) if index else 0
        return pickle.loads(memoryview(self._bytes[start : int(self._ends[index])].numpy()))


class DatasetFromList(Dataset):
    """A list as a data set.

    Args:
        lst: the records.
        copy: return deep copies, which the caller may change.
        serialize: True keeps the records pickled in one block that worker processes share, and
            returns copies; a function returns another such sequence for the list.

    Raises:
        TypeError: ``serialize`` is neither a bool nor a function.
    """

    def __init__(
        self, lst: list, copy: bool = True, serialize: bool | Callable[[list], Any] = True
    ) -> None:
        if serialize is True:
            serialize = _SerializedList
        if serialize is not False and not callable(serialize):
            raise TypeError(f"DatasetFromList: serialize must be a bool or a function: {serialize}")
        self._copy = copy and serialize is False
        self._lst = serialize(lst) if serialize else lst

    def __len__(self) -> int:
        return len(self._lst)

    def __getitem__(self, idx: int) -> Any:
        record = self._lst[idx]
        return copy_module.deepcopy(record) if self._copy else record
