"""Checkpoints: detectron2's ``.pth`` and ``.pkl`` files, and matching of names by suffix."""

import logging
import pickle
from typing import Any
from urllib.parse import parse_qs, urlparse

import torch
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from ovformer.d2.builtin import comm
from ovformer.d2.builtin.env import PathManager
from ovformer.d2.safe_pickle import load_torch_file, load_weights_pickle


class DetectionCheckpointer(Checkpointer):
    """fvcore's checkpointer, which also reads ``.pkl`` files and matches names by suffix.

    Only the main process saves. Other objects with ``state_dict`` are saved and loaded along with
    the model when given as keyword arguments.

    Args:
        model: the model, which may be wrapped in DistributedDataParallel.
        save_dir: folder of the checkpoints.
        save_to_disk: whether this process saves; by default the main one does.
        **checkpointables: other objects to save, by their names in the file.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ) -> None:
        if save_to_disk is None:
            save_to_disk = comm.is_main_process()
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager = PathManager
        self._options: dict[str, list[str]] = {}

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a file, as fvcore does.

        Args:
            path: of the file; ``?matching_heuristics=True`` at its end matches the names of a
                ``.pth`` by suffix. Empty: nothing is loaded.
            *args: see ``fvcore.common.checkpoint.Checkpointer.load``.
            **kwargs: likewise.

        Returns:
            What the file holds besides the model and the other objects.
        """
        self._options = {}
        if path:
            url = urlparse(path)
            # fvcore hands only a path on to _load_file, so the options wait here.
            self._options = parse_qs(url.query)
            path = PathManager.get_local_path(url._replace(query="").geturl())
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            return self._load_pickle(filename)
        try:
            with PathManager.open(filename, "rb") as file:
                loaded = load_torch_file(file)
        except pickle.UnpicklingError as error:
            raise ValueError(f"{filename} cannot be read safely: {error}") from error
        # A bare state dict, as torch.save(model.state_dict()) writes it.
        if "model" not in loaded:
            loaded = {"model": loaded}
        options = dict(self._options)
        if options.pop("matching_heuristics", None) == ["True"]:
            loaded["matching_heuristics"] = True
        if options:
            raise ValueError(
                f"{filename}: unknown options {sorted(options)} after the '?'. "
                "Known: matching_heuristics=True"
            )
        return loaded

    def _load_pickle(self, filename: str) -> dict[str, Any]:
        try:
            with PathManager.open(filename, "rb") as file:
                data = load_weights_pickle(file)
        except pickle.UnpicklingError as error:
            raise ValueError(f"{filename} cannot be read safely: {error}") from error
        if not isinstance(data, dict) or not {"model", "__author__"} <= set(data):
            raise ValueError(
                f"{filename}: expected a dict with 'model' and '__author__'. Weights of Caffe2 "
                "need detectron2 (see INSTALL.md)."
            )
        self.logger.info("Reading a file from '%s'", data["__author__"])
        return data

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if checkpoint.get("matching_heuristics", False):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            checkpoint["model"] = match_by_suffix(self.model.state_dict(), checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        # The config sets these, and only some old checkpoints hold them: not worth a warning.
        buffers = dict(self.model.named_buffers(recurse=False))
        for name in ("pixel_mean", "pixel_std"):
            if name in buffers and name in incompatible.missing_keys:
                incompatible.missing_keys.remove(name)
        return incompatible


def match_by_suffix(
    model_state: dict[str, torch.Tensor], checkpoint: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Rename the entries of a checkpoint to the names of a model that end in them.

    ``conv1.weight`` matches ``backbone.conv1.weight``, not ``backbone.myconv1.weight``. If several
    entries match one name, the longest counts.

    Args:
        model_state: a model's state dict.
        checkpoint: entries to rename.

    Returns:
        The checkpoint with new names. Entries without a match, or of another shape, keep theirs.

    Raises:
        ValueError: an entry matches two names.
    """
    logger = logging.getLogger(__name__)
    taken: dict[str, str] = {}  # name in the checkpoint -> name in the model
    for name in sorted(model_state):
        parts = name.split(".")
        # Longest first, so that the most specific entry wins.
        suffixes = (".".join(parts[start:]) for start in range(len(parts)))
        source = next((suffix for suffix in suffixes if suffix in checkpoint), None)
        if source is None:
            continue
        shape, wanted = tuple(checkpoint[source].shape), tuple(model_state[name].shape)
        if shape != wanted:
            logger.warning(
                f"{source} has shape {shape} in the checkpoint and {name} has {wanted} in the "
                "model: it is not loaded."
            )
        elif source in taken:
            raise ValueError(
                f"{source} of the checkpoint matches two names of the model: {taken[source]} and "
                f"{name}. Rename it in the file."
            )
        else:
            taken[source] = name
    if taken:
        logger.info(f"{len(taken)} of {len(checkpoint)} weights were matched by suffix.")
    else:
        logger.warning("No name of the checkpoint is a suffix of a name of the model.")
    return {taken.get(name, name): value for name, value in checkpoint.items()}
