"""Exports networks to files that run without this project, in PyTorch (.pt2) or ONNX Runtime.

Such a file holds an :class:`ovformer.export.exportable_network.ExportableNetwork`, for images of
any size and vocabularies of any length, and a JSON text, ``metadata``.

Legend: B images, or frames of one clip, K classes, D CLIP width, H W pixels.
"""

import json
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from ovformer.export.exportable_network import INPUTS, OUTPUTS, ExportableNetwork
from ovformer.modeling.meta_arch.base_model import OVFormerBase
from ovformer.modeling.tracks.postprocess import class_scores
from ovformer.ops.mask_resize import mask_logits
from ovformer.ops.ms_deform_attn import use_torch_operators
from ovformer.predictor.pretrained import ARCHITECTURES, Pretrained

TORCH, ONNX = SUFFIXES = (".pt2", ".onnx")
# Largest difference from the model, relative to the largest value of an output. Rounding can move
# a pixel over the border of a mask that a query looks at, which makes more of it.
TOLERANCE = 1e-2
METADATA = "metadata.json"
_FORMAT = "ovformer.export 1"
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Arguments of make_example_inputs: images, height and width in multiples of the size divisibility,
# classes. The comparison with the model uses other sizes than the trace.
_TRACED = (3, 3.2, 4.3, 5)
_CHECKED = ((1, 2.1, 5.0, 1), (4, 3.3, 1.1, 9))


class ExportError(ValueError):
    """A network can't be exported, or differs after that; or a file is no exported network."""


def export(
    loaded: Pretrained, path: str | PathLike, keeps_operator: bool = False
) -> dict[str, float]:
    """Write the network of a model to a file, read it again and compare it with the model.

    Args:
        loaded: the model. Its vocabulary is random afterwards.
        path: ends in ``.pt2`` (PyTorch) or ``.onnx``. A file of that name is replaced, unless there
            is an error.
        keeps_operator: keep our operator of deformable attention, with its fast kernels, in the
            file, which then loads only after ``import ovformer.ops.ms_deform_attn``.

    Returns:
        The largest difference of each output, relative to the output's largest value.

    Raises:
        ValueError: the path's suffix is not known, or does not go with ``keeps_operator``.
        FileNotFoundError: there is no such folder.
        ModuleNotFoundError: packages are missing.
        ExportError: the network can't be exported, or the file gives other results.
    """
    path = Path(path)
    check_target(path, keeps_operator)
    program = trace(loaded.model, keeps_operator)
    return write(program, describe(loaded, keeps_operator), path, loaded.model)


def check_target(path: Path, keeps_operator: bool = False) -> None:
    """Raise the errors of :func:`export` that need no model."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"output {path}: expected a name that ends in {' or '.join(SUFFIXES)}")
    if path.suffix == ONNX:
        if keeps_operator:
            raise ValueError(
                "ONNX has no deformable attention: only a .pt2 file can keep the operator"
            )
        if missing := [name for name in _PACKAGES if find_spec(name) is None]:
            raise ModuleNotFoundError(
                f"ONNX needs {', '.join(missing)}: pip install 'ovformer[export]'"
            )
    if path.is_dir():
        raise ValueError(f"output {path}: this is a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"output {path}: no folder {path.parent}")
    with tempfile.TemporaryFile(dir=path.parent):
        pass  # fails now, and not after tracing, if the folder can't be written to


def trace(model: OVFormerBase, keeps_operator: bool = False) -> ExportedProgram:
    """Return a model's network as a graph for any number and size of images and any vocabulary.

    Args:
        model: in evaluation mode.
        keeps_operator: see :func:`export`.

    Raises:
        ExportError: PyTorch can't trace it.
    """
    # Names of sizes that stay free in the graph; all others are fixed by the example.
    count, classes = Dim("images", min=1), Dim("classes", min=1)
    height, width = (Dim(name, min=_least_side(model)) for name in ("height", "width"))
    shapes = ({0: count, 2: height, 3: width}, {0: count}, {0: classes})
    example = make_example_inputs(model, *_TRACED)
    network = ExportableNetwork(model).eval()
    try:
        with torch.no_grad(), nullcontext() if keeps_operator else use_torch_operators():
            return torch.export.export(network, example, dynamic_shapes=shapes, strict=False)
    except RuntimeError as error:
        raise ExportError(
            f"PyTorch can't export this network: {_find_root_cause(error)}"
        ) from error


def describe(loaded: Pretrained, keeps_operator: bool = False) -> dict[str, Any]:
    """Return the metadata of an exported file; docs/export.md describes the keys."""
    kinds = {name: kind for kind, (name, _) in ARCHITECTURES.items()}
    clip = loaded.cfg.MODEL.CLIP
    return {
        "format": _FORMAT,
        "model": kinds[type(loaded.model).__name__],
        "inputs": list(INPUTS),
        "outputs": list(OUTPUTS),
        "size_divisibility": loaded.model.size_divisibility,
        "least_side": _least_side(loaded.model),
        "mask_stride": loaded.cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE,
        "resize": [loaded.cfg.INPUT.MIN_SIZE_TEST, loaded.cfg.INPUT.MAX_SIZE_TEST],
        "clip": loaded.clip or {"name": clip.NAME, "pretrained": clip.PRETRAINED},
        "clip_width": clip.EMBED_DIM,
        "clip_image_size": clip.IMAGE_SIZE,
        "templates": loaded.templates,
        "class_names": loaded.names,
        "keeps_operator": keeps_operator,
        "torch": torch.__version__,
    }


def _least_side(model: OVFormerBase) -> int:
    """Return the least height and width in pixels: maps of one pixel would be traced as special."""
    return model.size_divisibility + 1


def make_example_inputs(
    model: OVFormerBase, count: int, rows: float, columns: float, classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return random inputs.

    Args:
        model: the network that takes them.
        count: B.
        rows: H as a multiple of the size divisibility.
        columns: W as a multiple of the size divisibility.
        classes: K.

    Returns:
        Images uint8 (B, 3, H, W), CLIP features (B, D) and text embeddings (K, D).
    """
    shape = (count, 3, *(int(side * model.size_divisibility) for side in (rows, columns)))
    clip_dim = model.sem_seg_head.predictor.class_embed.clip_dim
    generator = torch.Generator().manual_seed(count)
    return (
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        torch.randn(count, clip_dim, generator=generator),
        torch.randn(classes, clip_dim, generator=generator),
    )


class ExportedNetwork:
    """An exported file, as a function.

    Args:
        path: of the file, ``.pt2`` or ``.onnx``.

    Attributes:
        metadata: what :func:`describe` returned.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: ONNX Runtime is not installed.
        ExportError: the file can't be loaded, or :func:`export` did not write it.
    """

    def __init__(self, path: str | PathLike) -> None:
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        try:
            text = self._load_onnx(path) if path.suffix == ONNX else self._load_torch(path)
        except ModuleNotFoundError:
            raise
        except Exception as error:  # ONNX Runtime's errors have no other base class
            runtime = "ONNX Runtime" if path.suffix == ONNX else "PyTorch"
            raise ExportError(f"{path.name}: {runtime} can't load it: {error}") from error
        if not text:
            raise ExportError(f"{path.name}: has no {METADATA}: tools/export.py did not write it")
        self.metadata = json.loads(text)

    @torch.no_grad()
    def __call__(
        self, images: Tensor, clip_features: Tensor, text_embeddings: Tensor
    ) -> dict[str, Tensor]:
        """Run the network; see :meth:`ExportableNetwork.forward` for inputs and outputs."""
        return self._run(images, clip_features, text_embeddings)

    def _load_onnx(self, path: Path) -> str:
        """Load a file for ONNX Runtime and return its metadata, "" where it has none."""
        import onnxruntime  # of the extra [export]

        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self._run = self._run_onnx
        return self._session.get_modelmeta().custom_metadata_map.get(METADATA, "")

    def _load_torch(self, path: Path) -> str:
        """Load a file for PyTorch and return its metadata, "" where it has none."""
        files = {METADATA: ""}
        self._run = torch.export.load(path, extra_files=files).module()
        return files[METADATA]

    def _run_onnx(self, *inputs: Tensor) -> dict[str, Tensor]:
        feed = {name: x.numpy() for name, x in zip(INPUTS, inputs, strict=True)}
        outputs = self._session.run(OUTPUTS, feed)
        return dict(zip(OUTPUTS, map(torch.from_numpy, outputs), strict=True))


def compare(exported: ExportedNetwork, model: OVFormerBase) -> dict[str, float]:
    """Return the largest relative difference of each output, at sizes that were not traced.

    Args:
        exported: the network to check.
        model: the model it was exported from. Its vocabulary is random afterwards.

    Returns:
        Output name -> difference; NaN where shapes differ or a value is NaN.
    """
    differences = {name: [] for name in OUTPUTS}
    for sizes in _CHECKED:
        inputs = make_example_inputs(model, *sizes)
        expected = run_model(model, *inputs)
        for name, values in exported(*inputs).items():
            # NaN exceeds every tolerance where write() compares with <=.
            error = torch.tensor(torch.nan)
            if values.shape == expected[name].shape:
                error = (values - expected[name]).abs().max() / expected[name].abs().max()
            differences[name].append(error)
    return {name: torch.stack(errors).max().item() for name, errors in differences.items()}


@torch.no_grad()
def run_model(
    model: OVFormerBase, images: Tensor, clip_features: Tensor, text_embeddings: Tensor
) -> dict[str, Tensor]:
    """Compute the outputs of :meth:`ExportableNetwork.forward` with the model itself.

    Args:
        model: in evaluation mode. Its vocabulary is replaced.
        images: uint8 (B, 3, H, W), RGB.
        clip_features: float32 (B, D).
        text_embeddings: float32 (K, D).
    """
    model.set_text_classifier(text_embeddings)
    if model.image_embedder.image_format == "BGR":
        images = images.flip(1)
    records = [
        {"image": image, "clip_features": feature[None]}
        for image, feature in zip(images, clip_features, strict=True)
    ]
    outputs, _ = model.run_network(records, 1 if model.SEES_CLIPS else None)
    if model.SEES_CLIPS:
        outputs = {key: value[0] for key, value in outputs.items() if key != "aux_outputs"}
    logits, object_logits = outputs["pred_logits"], outputs["pred_object_logits"]
    return {
        "scores": class_scores(logits, object_logits),
        "class_logits": logits[..., :-1],
        "object_logits": object_logits,
        "mask_logits": mask_logits(outputs["mask_embed"], outputs["mask_features"]),
        "query_embeddings": outputs["pred_embds"],
    }


def write(
    program: ExportedProgram, metadata: Mapping[str, Any], path: Path, model: OVFormerBase
) -> dict[str, float]:
    """Write a graph, if it gives the results of the model; see :func:`export`."""
    # Beside the target, so that the checked file only has to be renamed.
    with tempfile.TemporaryDirectory(prefix=".export_", dir=path.parent) as folder:
        file = Path(folder, path.name)
        (_write_onnx if path.suffix == ONNX else _write_torch)(program, metadata, file)
        # What is compared is the file as a user will load it, not the graph in memory.
        exported = ExportedNetwork(file)
        try:
            differences = compare(exported, model)
        except Exception as error:  # ONNX Runtime's errors, as above
            raise ExportError(f"the exported network can't be run: {error}") from error
        if not all(difference <= TOLERANCE for difference in differences.values()):
            raise ExportError(
                f"the exported network gives other results than the model: {differences}, expected "
                f"at most {TOLERANCE}. Nothing was written"
            )
        file.replace(path)
    return differences


def _write_torch(program: ExportedProgram, metadata: Mapping[str, Any], path: Path) -> None:
    """Write a graph for ``torch.export.load``."""
    # Some no_grad blocks can't be saved; this replaces them by their content.
    program = program.run_decompositions({})
    torch.export.save(program, path, extra_files={METADATA: json.dumps(metadata)})


def _write_onnx(program: ExportedProgram, metadata: Mapping[str, Any], path: Path) -> None:
    """Write a graph as ONNX, with the metadata among the model's properties.

    Raises:
        ExportError: ONNX lacks an operator.
    """
    try:
        converted = torch.onnx.export(
            program,
            dynamo=True,
            input_names=INPUTS,
            output_names=OUTPUTS,
            verbose=False,
        )
    except RuntimeError as error:
        raise ExportError(f"ONNX can't express this network: {_find_root_cause(error)}") from error
    converted.model.metadata_props[METADATA] = json.dumps(metadata)
    converted.save(path, external_data=False)


def _find_root_cause(error: BaseException) -> BaseException:
    """Return the first error in a chain of causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
