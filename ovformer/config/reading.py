"""Reads a config from a YAML file and the options of a command line; rejects unknown keys."""

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ovformer.config.keys import WITHOUT_EFFECT, add_ovformer_config
from ovformer.d2 import CfgNode, get_cfg

# Type of a value -> its name in messages.
_TYPE_NAMES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    tuple: "a list",
}
# Most values of a YAML file: with aliases, a few lines can stand for billions.
_MAX_VALUES = 100_000
# What reading and merging a wrong YAML file may raise.
_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
    yaml.YAMLError,
)


class UnknownKeyError(KeyError, ValueError):
    """A config key that does not exist, which is also a wrong value of the command line."""

    def __str__(self) -> str:
        return self.args[0]  # KeyError would show the message's repr


def get_ovformer_cfg(
    config_file: str | None = None, opts: Sequence[str] = (), *, text: str | None = None
) -> CfgNode:
    """Return the frozen config of a YAML file and command-line overrides.

    Args:
        config_file: path of a YAML file, or None for the defaults.
        opts: alternating keys and values, as on the command line.
        text: the YAML itself, in place of a file.

    Raises:
        FileNotFoundError: ``config_file`` does not exist.
        UnknownKeyError: a key is unknown; the message names the most similar known ones.
        ValueError: a key has no value, or a value of the wrong type; or the file is no config.
    """
    cfg, errors = read_config(config_file, opts, text=text)
    if errors:
        raise type(errors[0])("\n".join(map(str, errors)))
    return cfg


def read_config(
    config_file: str | None = None, opts: Sequence[str] = (), *, text: str | None = None
) -> tuple[CfgNode, list[UnknownKeyError | ValueError]]:
    """Read the valid part of a config, so that it can be checked as well.

    Args:
        config_file: path of a YAML file, or None for the defaults.
        opts: alternating keys and values, as on the command line.
        text: the YAML itself, in place of a file.

    Returns:
        The frozen config without unknown keys and values of a wrong type, and an error for each of
        these.

    Raises:
        FileNotFoundError: ``config_file`` does not exist.
        ValueError: it is no YAML file of keys, or the options are no pairs.
    """
    cfg = get_cfg()
    add_ovformer_config(cfg)
    errors = merge_leniently(cfg, config_file, opts, WITHOUT_EFFECT, text)
    cfg.freeze()
    return cfg, errors


def merge_leniently(
    cfg: CfgNode,
    config_file: str | None,
    opts: Sequence[str],
    without_effect: Collection[str],
    text: str | None = None,
) -> list[UnknownKeyError | ValueError]:
    """Merge the valid keys and values of a file and a command line into a config, in place.

    Args:
        cfg: holds all known keys, with their defaults.
        config_file: path of a YAML file, or None.
        opts: alternating keys and values, as on the command line.
        without_effect: keys that are registered as deprecated.
        text: the YAML itself, in place of a file.

    Returns:
        An error for each unknown key and each value of a wrong type.

    Raises:
        FileNotFoundError: ``config_file`` does not exist.
        ValueError: it is no YAML file of keys, or the options are no pairs.
    """
    opts = list(opts)
    if len(opts) % 2:
        raise ValueError(
            f"Config options come in pairs KEY VALUE, but there are {len(opts)} words: "
            f"{' '.join(opts)}. Options that start with -- go before them."
        )
    source = f"--config-file {config_file}" if text is None else "config text"
    leaves = _list_leaves(_load(config_file, text, source), cfg)
    values = [(source, key, value) for key, value in leaves]
    # The command line comes last, so that it overrides the file.
    for key, value in zip(opts[0::2], opts[1::2], strict=True):
        values.append(("command line", key, value))
    known = dict(_list_leaves(cfg, cfg))
    errors: list[UnknownKeyError | ValueError] = []
    # One key at a time: a wrong one must not keep the others from being merged and checked.
    for source, key, value in values:
        try:
            if key in known:
                value = _check_value(key, value, known[key])
            elif key not in without_effect:
                raise UnknownKeyError(_describe_unknown_key(key, known))
            cfg.merge_from_list([key, value])
        except (UnknownKeyError, ValueError) as error:
            errors.append(type(error)(f"{source}: {error}"))
        except _ERRORS as error:
            reason = str(error) or type(error).__name__
            errors.append(ValueError(f"{source}: {key}: can't be {value!r:.80}: {reason}"))
    return errors


def _load(config_file: str | None, text: str | None, source: str) -> dict:
    """Return the content of a text, or of a YAML file merged into the file of its _BASE_."""
    if text is None and not config_file:
        return {}
    if text is None and not Path(config_file).is_file():
        raise FileNotFoundError(
            f"--config-file: {config_file} is not a file. The repository's are under configs/."
        )
    try:
        if text is None:
            values = CfgNode.load_yaml_with_base(config_file, allow_unsafe=False)
        else:
            values = yaml.safe_load(text)
        count = _count_values(values, {})
    except _ERRORS as error:
        raise ValueError(
            f"{source} is no YAML file of 'KEY: value' lines, or its _BASE_ is none: "
            f"{str(error) or type(error).__name__}"
        ) from error
    if not isinstance(values, dict) or count > _MAX_VALUES:
        raise ValueError(f"{source}: expected 'KEY: value' lines, of at most {_MAX_VALUES} values.")
    return values


def _count_values(value: object, known: dict[int, int]) -> int:
    """Count the values of a YAML file; those behind an alias (*) count at each use."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count_values(part, known) for part in parts)
    return known[id(value)]


def _list_leaves(values: Mapping, known: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the full name and value of each key; an unknown section counts as one key."""
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(known.get(key), CfgNode):
            yield from _list_leaves(value, known[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _describe_unknown_key(key: str, known: Iterable[str]) -> str:
    """Return the message for an unknown key, with the most similar known ones."""
    if key.startswith("--"):
        return f"{key!r} is no config key. Options that start with -- go before KEY VALUE pairs."
    if inside := [name for name in known if name.startswith(f"{key}.")]:
        return f"config key {key!r} is a section: expected keys inside it, as {inside[0]}."
    # Similar names help with typing errors, the same last part with a forgotten section.
    near = difflib.get_close_matches(key, known, n=3)
    last = key.rsplit(".", 1)[-1]
    near += sorted(name for name in set(known) - set(near) if name.endswith(f".{last}"))[:3]
    advice = f"Did you mean {' or '.join(near)}?" if near else "No key has a similar name."
    return (
        f"unknown config key {key!r}. {advice} All keys: ovformer/config/keys.py, and detectron2's "
        "own."
    )


def _check_value(key: str, raw: Any, default: Any) -> Any:
    """Return the value to merge; raise ValueError if it is not of the key's type."""
    value = CfgNode._decode_cfg_value(raw)
    if key == "VERSION" and value != default:
        raise ValueError(
            f"VERSION: {value} can't be read, only {default}. Load it with detectron2 and dump it "
            "again to convert it."
        )
    # yacs refuses a whole number where the default is a float.
    if type(default) is float and type(value) is int:
        return float(value)
    is_list = isinstance(default, list | tuple)
    fits = isinstance(value, list | tuple) if is_list else type(value) is type(default)
    # A default of None says nothing about the type; an empty line in YAML stands for "".
    if default is None or (value is None and default == ""):
        fits = True
    elif fits and is_list and default and type(default[0]) in (int, float, str):
        wanted = (int, float) if type(default[0]) is float else (type(default[0]),)
        fits = all(type(item) in wanted for item in value)
    if not fits:
        example = default if default or not is_list else ("a", "b")
        raise ValueError(
            f"{key}: expected {_TYPE_NAMES[type(default)]}, as {example!r}, got {value!r}."
        )
    return raw
