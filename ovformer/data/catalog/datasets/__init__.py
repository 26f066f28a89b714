"""The data sets, one file each. A new file is registered without further edits.

A file defines ``SPECS``, a sequence of :class:`ovformer.data.catalog.dataset_spec.DatasetSpec`.
"""

import importlib
import pkgutil

from ovformer.data.catalog.dataset_spec import register_dataset


def register_all() -> None:
    """Register the data sets of every file in this folder."""
    for module in pkgutil.iter_modules(__path__):
        for spec in importlib.import_module(f"{__name__}.{module.name}").SPECS:
            register_dataset(spec)
