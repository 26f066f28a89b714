"""Configs: the node type, and the decorator that builds a class from a config."""

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

from fvcore.common.config import CfgNode as _BaseCfgNode

from ovformer.d2.builtin.defaults import DEFAULTS
from ovformer.d2.builtin.env import PathManager


class CfgNode(_BaseCfgNode):
    """A nested config with attribute access and ``_BASE_`` files; unknown keys are errors.

    Unlike in detectron2, YAML tags that run Python are refused unless ``allow_unsafe=True``.
    """

    @classmethod
    def _open_cfg(cls, filename: str | os.PathLike) -> Any:
        return PathManager.open(os.fspath(filename), "r")

    def merge_from_file(self, cfg_filename: str | os.PathLike, allow_unsafe: bool = False) -> None:
        """Merge a YAML file, after the file that its ``_BASE_`` names, into this config.

        Args:
            cfg_filename: path of the file.
            allow_unsafe: allow YAML tags that run Python code.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file has no keys, or is of another config version.
            KeyError: a key is not known.
        """
        path = os.fspath(cfg_filename)
        if not PathManager.isfile(path):
            raise FileNotFoundError(f"Config file {path!r} does not exist")
        try:
            values = self.load_yaml_with_base(path, allow_unsafe=allow_unsafe)
        except TypeError as error:  # fvcore raises it for a string, a list or an empty file
            raise ValueError(f"Config file {path!r}: expected 'KEY: value' lines") from error
        # detectron2 would convert an older version; here are only configs of the present one.
        loaded = type(self)(values)
        own_version = self.get("VERSION")
        version = loaded.get("VERSION", own_version)
        if version != own_version:
            raise ValueError(
                f"Config file {path!r}: VERSION {version} cannot be read, only {own_version}. "
                "Load it with detectron2 and dump it again to convert it."
            )
        self.merge_from_other_cfg(loaded)


def get_cfg() -> CfgNode:
    """Return a new config that holds detectron2's default values."""
    return CfgNode(DEFAULTS)  # a deep copy


def configurable(init_func: Callable) -> Callable:
    """Let a class be built from a config as well as from the arguments of its ``__init__``.

    Called with a config (first, or as ``cfg=``), the arguments are those that ``from_config(cfg)``
    returns. Other keyword arguments go to ``from_config`` if it takes them; otherwise they override
    its result.

    Args:
        init_func: the ``__init__`` of a class with a classmethod ``from_config(cls, cfg, ...)``.

    Raises:
        TypeError: the decorator is on something else, or ``from_config`` is not a classmethod whose
            first argument is ``cfg``.
        AttributeError: the class has no ``from_config``.
    """
    if not inspect.isfunction(init_func) or init_func.__name__ != "__init__":
        raise TypeError(f"@configurable: expected a class's __init__, got {init_func!r}")

    @functools.wraps(init_func)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        # Checked at the call, as a subclass may be the one that defines from_config.
        name = type(self).__name__
        if not hasattr(type(self), "from_config"):
            raise AttributeError(f"{name} is @configurable, but has no classmethod 'from_config'")
        if not inspect.ismethod(type(self).from_config):
            raise TypeError(f"{name}.from_config must be a classmethod")
        if _is_config_call(args, kwargs):
            init_func(self, **_translate(type(self).from_config, args, kwargs))
        else:
            init_func(self, *args, **kwargs)

    return wrapped


def _is_config_call(args: tuple, kwargs: dict[str, Any]) -> bool:
    return any(isinstance(value, _BaseCfgNode) for value in (*args[:1], kwargs.get("cfg")))


def _translate(from_config: Callable, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the constructor's arguments for a call with a config."""
    parameters = inspect.signature(from_config).parameters
    if next(iter(parameters), None) != "cfg":
        raise TypeError(f"{from_config.__qualname__} must take 'cfg' as its first argument")
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    takes_all = any(parameter.kind in variadic for parameter in parameters.values())
    own = {key: value for key, value in kwargs.items() if takes_all or key in parameters}
    overrides = {key: value for key, value in kwargs.items() if key not in own}
    return {**from_config(*args, **own), **overrides}
