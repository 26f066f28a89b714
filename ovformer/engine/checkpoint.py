"""Checkpoints: weights from anywhere, checks that they fit, and saving that survives a kill.

The vocabulary belongs to the config. The entries of a checkpoint that hold a vocabulary, the
model's ``VOCABULARY_KEYS``, are never loaded. So weights can be used with other class names than
those they were trained with.
"""

import os
import pickle
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from shutil import copyfileobj
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ovformer.d2 import CfgNode, DetectionCheckpointer
from ovformer.d2.safe_pickle import load_torch_file, load_weights_pickle
from ovformer.files import write_atomically, write_text
from ovformer.modeling.language.text_classifier import load_text_classifier
from ovformer.paths import resolve_path

# Entries (regular expressions) that only the checkpoint or only the model may have: constants, and
# what other versions of a library store.
OPTIONAL = (
    r"\.num_batches_tracked$",
    r"\.relative_position_index$",
    r"\.attn_mask$",
    r"^pixel_(mean|std)$",
)
# Norms of a backbone's outputs: a classifier's file lacks them.
NEW_IN_BACKBONE = (r"^backbone\.norm\d+\.",)
# The file that names the checkpoint to resume from, and the checkpoint at a training's end.
LAST = "last_checkpoint"
FINAL = "model_final.pth"
# Names of each kind that an error lists.
MAX_LISTED = 5


class VocabularyError(ValueError):
    """The class names in the checkpoint to resume from differ from the config's."""


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer with strict checks, safe reading and atomic writing.

    Args:
        model: the model, which may be wrapped in DistributedDataParallel.
        save_dir: folder of the checkpoints.
        class_names: the vocabulary, in the order of the classifier; saved for later checks.
        metadata: saved for users of the weights, see :func:`collect_metadata`.
        **others: objects with ``state_dict`` that are saved too and, when resuming, loaded.

    Attributes:
        has_loaded_all: whether the whole model has been loaded, not its backbone alone.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        class_names: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(model, save_dir, **others)
        self.class_names = list(class_names)
        self.metadata = dict(metadata or {})
        self.has_loaded_all = False
        self._path = ""
        self._is_resuming = False

    def save(self, name: str, **extra: Any) -> None:
        """Save everything as ``name``.pth, then name that file in ``last_checkpoint``.

        Each file appears only when it is complete on the disk. So a training can be resumed from
        the folder whenever the process is killed.

        Args:
            name: file name without suffix.
            **extra: more entries of the file.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        content = {"model": self.model.state_dict(), "class_names": self.class_names}
        content["metadata"] = self.metadata
        content |= {key: value.state_dict() for key, value in self.checkpointables.items()}
        content |= extra
        path = Path(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        write_atomically(path, lambda file: torch.save(content, file))
        # Only now: a kill must not leave the name of a file that is not complete.
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the file to resume from."""
        write_text(Path(self.save_dir, LAST), last_filename_basename)

    def complete(self) -> None:
        """Make sure that the loaded checkpoint also exists as ``model_final.pth``.

        A kill may have come between saving the last iteration under its number and under this name,
        or before ``last_checkpoint`` was written.
        """
        if not self.save_to_disk:
            return
        last = Path(self._path)
        if last.name != FINAL:
            self.logger.info("Copying %s to %s, which is missing", last, FINAL)
            with last.open("rb") as source:
                write_atomically(last.with_name(FINAL), lambda file: copyfileobj(source, file))
        self.tag_last_checkpoint(FINAL)

    def remove_leftovers(self) -> None:
        """Remove incomplete files, left by a training in this folder that was killed."""
        if self.save_dir and self.save_to_disk:
            for path in Path(self.save_dir).glob("*.tmp"):
                if path.stem.endswith((".pth", ".json", ".yaml")) or path.stem == LAST:
                    self.logger.info("Removing %s, an incomplete file of a killed training", path)
                    path.unlink()

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load weights, and the other objects when resuming.

        Args:
            path: ``.pth``, ``.pkl`` or ``.safetensors``, relative to the working directory or the
                dataset root. Empty: nothing is loaded.
            checkpointables: names of the other objects to load; None for all.

        Returns:
            The other entries of the file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds no weights, or weights of another model.
            VocabularyError: a training would be resumed with another vocabulary.
        """
        if path and "://" not in path:
            resolved = resolve_path(path)
            if not resolved.is_file():
                raise FileNotFoundError(
                    f"Checkpoint {path} not found. MODEL.WEIGHTS names it, or with --resume "
                    f"{Path(self.save_dir, LAST)}."
                )
            path = str(resolved)
        self._path = path
        self._is_resuming = checkpointables is None and bool(self.checkpointables)
        return super().load(path, checkpointables)

    def _load_file(self, filename: str) -> dict[str, Any]:
        return read_weights(filename)

    def _load_model(self, checkpoint: dict[str, Any]) -> None:
        # Checked here, because errors of the conversion below would not name the file.
        for name, value in checkpoint["model"].items():
            if not isinstance(name, str) or getattr(value, "dtype", None) == np.dtype(object):
                raise ValueError(f"{self._path}: its entry {name!r} is no parameter of a model.")
        self._convert_ndarray_to_tensor(checkpoint["model"])
        # DistributedDataParallel puts "module." before all names.
        weights = {k.removeprefix("module."): v for k, v in checkpoint["model"].items()}
        vocabulary = getattr(self.model, "VOCABULARY_KEYS", ())
        self._report_vocabulary(vocabulary, weights, checkpoint.get("class_names"))
        # The config's vocabulary stays: see the top of this file.
        weights = {k: v for k, v in weights.items() if k not in vocabulary}
        state = {k: v for k, v in self.model.state_dict().items() if k not in vocabulary}

        optional = OPTIONAL
        # detectron2 marks files of other frameworks, whose names have to be matched, in this way.
        is_backbone = checkpoint.get("matching_heuristics") or _is_backbone(weights, state)
        if is_backbone:
            weights, unused = _rename_as_backbone(weights, state)
            state = {k: v for k, v in state.items() if k.startswith("backbone.")}
            optional += NEW_IN_BACKBONE
            self.logger.info(
                "%s holds a backbone only; the rest of the model keeps its random weights. %s",
                self._path,
                f"Not used: {_join_names(unused)}" if unused else "",
            )
        if problems := _find_mismatches(weights, state, optional):
            raise ValueError(
                f"MODEL.WEIGHTS: {self._path} does not fit the model. {'. '.join(problems)}. It "
                "belongs to another backbone, or to other sizes under MODEL.MASK_FORMER and "
                "MODEL.SEM_SEG_HEAD; the config.yaml next to a checkpoint holds those of its "
                "training."
            )
        # Not strict: the check above has allowed the differences that are left.
        self.model.load_state_dict({k: v for k, v in weights.items() if k in state}, strict=False)
        self.has_loaded_all = not is_backbone

    def _report_vocabulary(
        self, keys: Sequence[str], weights: Mapping[str, Tensor], names: object
    ) -> None:
        """Log which vocabulary is used; refuse to resume a training with another one.

        Args:
            keys: entries of the model's state that hold the vocabulary.
            weights: of the file.
            names: "class_names" of the file; ignored if it is no list, as in a file from elsewhere.
        """
        if not isinstance(names, list):
            names = []
        if names and self.class_names and names != self.class_names:
            difference = _describe_difference(names, self.class_names)
            if self._is_resuming:
                raise VocabularyError(
                    f"--resume: {self._path} was trained with another vocabulary: {difference}. "
                    "--resume continues the same training. To train with other classes, start a "
                    f"new one: MODEL.WEIGHTS {self._path}, another OUTPUT_DIR, no --resume."
                )
            self.logger.info("%s was trained with another vocabulary: %s", self._path, difference)
        embeddings = [weights[key] for key in keys if key.endswith("zs_weight") and key in weights]
        for embedding in embeddings:
            if embedding.dim() == 2:
                self.logger.info(
                    "Vocabulary: that of the config, MODEL.MASK_FORMER.CLIP_TEXT_PATH. The text "
                    "embeddings of %d classes in the checkpoint are not loaded.",
                    embedding.shape[1] - 1,
                )


def read_last_checkpoint_name(folder: Path) -> str | None:
    """Return the text of ``last_checkpoint`` in a folder, None where there is no such file.

    The text is the name of a checkpoint; it may be empty or anything else if the file is damaged.
    """
    file = folder / LAST
    return file.read_bytes().decode("utf-8", "replace").strip() if file.is_file() else None


def collect_metadata(cfg: CfgNode) -> dict[str, Any]:
    """Return what a checkpoint has to hold so that it can be used without other files.

    Returns:
        ``config``, the YAML of the config; ``clip``, "name" and "pretrained" of the CLIP model;
        ``templates``, the prompts of the text classifier, empty if the classifier has none.
    """
    clip, path = cfg.MODEL.CLIP, resolve_path(cfg.MODEL.MASK_FORMER.CLIP_TEXT_PATH)
    return {
        "config": cfg.dump(),
        "clip": {"name": clip.NAME, "pretrained": clip.PRETRAINED},
        "templates": list(load_text_classifier(path).meta.get("templates", [])),
    }


def read_weights(path: str | os.PathLike, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint without running code from it.

    Args:
        path: ``.safetensors``; ``.pkl``, a pickled dict of arrays or tensors; or a file of
            ``torch.save``. It holds a state dict, or has one under "model" or "state_dict".
        mmap: leave the tensors of a file of ``torch.save`` on the disk until they are used, and
            skip its checksums.

    Returns:
        ``{"model": state dict, ...}`` with the other entries of the file.

    Raises:
        ValueError: it can't be read, holds other Python objects than tensors and arrays, or has
            no weights.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        elif path.suffix == ".pkl":
            with path.open("rb") as file:
                content = load_weights_pickle(file)
        else:
            if not mmap:
                _check_checksums(path)
            # Files of PyTorch before 1.6 are no zip archives and can't be mapped.
            content = load_torch_file(path, mmap=mmap and zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise
    except (pickle.UnpicklingError, SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} can't be read: it is damaged, no checkpoint, or holds Python objects, which "
            "are not loaded because that could run code. Of a model from elsewhere, save the "
            f"state_dict() alone, with torch.save or safetensors. ({error})"
        ) from error
    if isinstance(content, Mapping):
        content = dict(content)
        for key in ("model", "state_dict"):
            if isinstance(content.get(key), Mapping):
                return {**content, "model": dict(content[key])}
        if content and all(isinstance(v, Tensor | np.ndarray) for v in content.values()):
            return {"model": content}
        found = f"a dict with the keys {_join_names(map(str, content))}"
    else:
        found = f"a {type(content).__name__}"
    raise ValueError(f"{path} holds no weights. Expected a state dict, got {found}.")


def _check_checksums(path: Path) -> None:
    """Compare a file with its checksums, because ``torch.load`` does not.

    Files of PyTorch before 1.6 have none, and ``torch.save`` can be told to write none.

    Raises:
        ValueError: a checksum is wrong, so a part of the file has changed.
    """
    try:
        with path.open("rb") as file:  # is_zipfile would hide that it can't be opened
            if not zipfile.is_zipfile(file):
                return
            archive = zipfile.ZipFile(file)
            # Where torch.save writes no checksums, it writes zeros.
            has_checksums = any(record.CRC for record in archive.infolist())
            damaged = archive.testzip() if has_checksums else None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise ValueError(str(error) or "it is cut off") from error
    if damaged:
        raise ValueError(f"the checksum of {damaged} is wrong")


def _is_backbone(weights: Iterable[str], state: Iterable[str]) -> bool:
    """Return whether a file is a backbone: all its names say so, or none is a name of the model."""
    if not any(name.startswith("backbone.") for name in state):
        return False
    return all(name.startswith("backbone.") for name in weights) or not set(weights) & set(state)


def _rename_as_backbone(
    weights: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Give the entries of a backbone's file the model's names.

    Returns:
        The renamed entries, and the names of those that the model lacks: the classifier's.
    """
    # The prefix that makes most names of the file names of the model, as "backbone.base.".
    prefixes: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        if parts[0] == "backbone":
            for end in range(1, len(parts)):
                if ".".join(parts[end:]) in weights:
                    prefixes[".".join(parts[:end]) + "."] += 1
    prefix = prefixes.most_common(1)[0][0] if prefixes else "backbone."
    renamed = {k if k in state else prefix + k: v for k, v in weights.items()}
    unused = _drop_matching(renamed.keys() - state.keys(), OPTIONAL)
    return {k: v for k, v in renamed.items() if k not in unused}, unused


def _find_mismatches(
    weights: Mapping[str, Tensor], state: Mapping[str, Tensor], optional: Iterable[str]
) -> list[str]:
    """Describe how a state dict differs from a model's, ignoring names that match ``optional``."""
    missing = _drop_matching(state.keys() - weights.keys(), optional)
    unexpected = _drop_matching(weights.keys() - state.keys(), optional)
    differences = {
        "parameters of the model are missing in it": missing,
        "of its parameters are not in the model": unexpected,
        "have another shape": [
            f"{name} {tuple(weights[name].shape)}, in the model {tuple(state[name].shape)}"
            for name in sorted(state.keys() & weights.keys())
            if weights[name].shape != state[name].shape
        ],
    }
    return [
        f"{len(names)} {kind}: {_join_names(names)}" for kind, names in differences.items() if names
    ]


def _drop_matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Return the names that match no pattern, sorted."""
    return sorted(name for name in names if not any(re.search(p, name) for p in patterns))


def _join_names(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def _describe_difference(theirs: Sequence[str], ours: Sequence[str]) -> str:
    if len(theirs) != len(ours):
        return f"{len(theirs)} classes instead of {len(ours)}"
    first = next(i for i, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1])
    return f"class {first} is {theirs[first]!r} instead of {ours[first]!r}"
