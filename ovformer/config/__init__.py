"""The config: OVFormer's own keys (:mod:`.keys`), and reading YAML files (:mod:`.reading`)."""

from ovformer.config.keys import FIXED_KEYS, add_ovformer_config
from ovformer.config.reading import UnknownKeyError, get_ovformer_cfg, read_config

__all__ = [
    "FIXED_KEYS",
    "UnknownKeyError",
    "add_ovformer_config",
    "get_ovformer_cfg",
    "read_config",
]
