"""The two global tables of data sets: their loading functions and their metadata."""

import copy
from collections import UserDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]


class _DatasetCatalog(UserDict):
    """Data set name -> function without arguments that returns its list of records."""

    def register(self, name: str, func: Callable[[], list[dict]]) -> None:
        """Add a data set.

        Args:
            name: the name that a config's DATASETS.TRAIN and DATASETS.TEST use.
            func: returns the list of records, the same at each call.

        Raises:
            AssertionError: ``name`` is taken, or ``func`` cannot be called (detectron2's type).
        """
        if not callable(func):
            raise AssertionError(f"Data set {name!r}: expected a function, got {func!r}")
        if name in self:
            raise AssertionError(
                f"Data set {name!r} is already registered. Remove it first: "
                f"DatasetCatalog.remove({name!r})"
            )
        self[name] = func

    def get(self, name: str) -> list[dict]:
        """Load a data set.

        Args:
            name: a registered name.

        Returns:
            The records, one dict per image or video.

        Raises:
            KeyError: ``name`` is not registered; the message lists what is.
        """
        if name not in self:
            known = ", ".join(self) or "none"
            raise KeyError(f"Data set {name!r} is not registered. Registered: {known}")
        return self[name]()

    def list(self) -> list[str]:
        """Return all registered names."""
        return [*self.keys()]

    def remove(self, name: str) -> None:
        """Forget a data set."""
        self.pop(name)

    def __repr__(self) -> str:
        return f"DatasetCatalog(registered datasets: {', '.join(self)})"

    __str__ = __repr__


class Metadata(SimpleNamespace):
    """Facts about one data set, such as ``thing_classes``. An attribute can be set once."""

    # Read through the class while an instance has no name yet.
    name: str = "N/A"

    def __getattr__(self, key: str) -> Any:
        known = ", ".join(k for k in self.__dict__ if k != "name") or "none: metadata is empty"
        raise AttributeError(
            f"Metadata of data set {self.name!r} has no attribute {key!r}. Available: {known}"
        )

    def __setattr__(self, key: str, value: Any) -> None:
        if key in self.__dict__ and self.__dict__[key] != value:
            raise AssertionError(
                f"Metadata of data set {self.name!r}: {key!r} is {self.__dict__[key]!r} and cannot "
                f"become {value!r}. Use another data set name, or MetadataCatalog.remove first."
            )
        super().__setattr__(key, value)

    def as_dict(self) -> dict[str, Any]:
        """Return all attributes as a new dict."""
        return copy.copy(self.__dict__)

    def set(self, **kwargs: Any) -> "Metadata":
        """Set several attributes and return self."""
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """Return an attribute, or ``default`` where it is not set."""
        return getattr(self, key, default)


class _MetadataCatalog(UserDict):
    """Data set name -> its :class:`Metadata`, made at the first request."""

    def get(self, name: str) -> Metadata:
        """Return the metadata of a data set; empty if nothing has been set yet.

        Raises:
            AssertionError: ``name`` is empty (detectron2's type).
        """
        if not name:
            raise AssertionError("MetadataCatalog: the name of a data set must not be empty")
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]

    def list(self) -> list[str]:
        """Return the names of all data sets with metadata."""
        return [*self.keys()]

    def remove(self, name: str) -> None:
        """Forget the metadata of a data set."""
        self.pop(name)

    def __repr__(self) -> str:
        return f"MetadataCatalog(registered metadata: {', '.join(self)})"

    __str__ = __repr__


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
