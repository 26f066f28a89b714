"""Backbones from timm, among them the published ResNet-50 pre-trained on ImageNet-21k.

Legend: B batch, C channels, H W pixels. A level is a stage of the network counted from 1, so that
level n of a ResNet has stride 2 ** n; its features are called ``layer{n}``.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import yaml
from timm.layers import BatchNormAct2d, freeze_batch_norm_2d
from torch import Tensor, nn

from ovformer.d2 import BACKBONE_REGISTRY, Backbone, CfgNode, FrozenBatchNorm2d, ShapeSpec
from ovformer.modeling.backbone.folded_norm import fold_frozen_norms

# Name in the published configs -> timm architecture. The weights come from MODEL.WEIGHTS.
PUBLISHED_NAMES = {"resnet50_in21k": "resnet50"}
NORMS = ("FrozenBN", "BN")


class TimmBackbone(Backbone):
    """A timm network without its classifier, as a multi-scale feature extractor.

    Parameters are named ``base.<timm's name>``, which is what released checkpoints hold.

    Args:
        base_name: a name of :data:`PUBLISHED_NAMES` or any timm model with a feature pyramid.
        out_levels: levels to return, ascending.
        norm: "FrozenBN" replaces batch norms by constant ones, "BN" keeps them trained.
        freeze_at: number of levels that are not trained; level 1 of a ResNet is its stem.
        pretrained: let timm download its own weights.
        in_channels: channels of the input image.
        kwargs: more arguments of timm's constructor.

    Raises:
        ValueError: an argument is not known to timm or does not fit the network.
    """

    def __init__(
        self,
        base_name: str,
        out_levels: Sequence[int],
        *,
        norm: str = "FrozenBN",
        freeze_at: int = 0,
        pretrained: bool = False,
        in_channels: int = 3,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"MODEL.TIMM.NORM: expected one of {', '.join(NORMS)}, got {norm!r}")
        self.base = _create_base(
            base_name, tuple(out_levels), pretrained, {"in_chans": in_channels, **(kwargs or {})}
        )
        info = self.base.feature_info
        strides = info.reduction()
        # The pixel decoder resizes each level to the next finer one.
        if any(fine >= coarse for fine, coarse in zip(strides, strides[1:], strict=False)):
            raise ValueError(
                f"MODEL.TIMM.BASE_NAME: {base_name!r} has strides {strides} at levels "
                f"{tuple(out_levels)}; strides that grow from level to level are needed. Choose "
                "other MODEL.TIMM.OUT_LEVELS or a network with a pyramid, e.g. a ResNet"
            )
        self._out_features = [f"layer{level}" for level in out_levels]
        self._out_feature_channels = dict(zip(self._out_features, info.channels(), strict=True))
        self._out_feature_strides = dict(zip(self._out_features, strides, strict=True))
        # Swin and others of timm return (B, H, W, C).
        self._channels_last = str(getattr(self.base, "output_fmt", "NCHW")).endswith("NHWC")
        self._freeze_levels(freeze_at)
        if norm == "FrozenBN":
            self.base = freeze_batch_norms(self.base)
        # Last, because it looks for norms that are frozen already.
        fold_frozen_norms(self.base)

    def _freeze_levels(self, freeze_at: int) -> None:
        """Stop the training of the first ``freeze_at`` levels."""
        if freeze_at == 0:
            return
        # A level ends with the module that gives its feature. timm flattens the network, so that
        # "stages.0" of feature_info is the child "stages_0".
        names = [name for name, _ in self.base.named_children()]
        ends = [str(info["module"]).replace(".", "_") for info in self.base.feature_info]
        if not 0 < freeze_at <= len(ends) or ends[freeze_at - 1] not in names:
            raise ValueError(
                f"MODEL.TIMM.FREEZE_AT: got {freeze_at}; this network can be frozen up to one of "
                f"{[level for level, end in enumerate(ends, 1) if end in names]}, or 0 for none"
            )
        for name in names[: names.index(ends[freeze_at - 1]) + 1]:
            frozen = freeze_batch_norms(self.base.get_submodule(name)).requires_grad_(False)
            self.base.add_module(name, frozen)

    @property
    def size_divisibility(self) -> int:
        """The largest stride: sides of the input should be multiples of it."""
        return max(self._out_feature_strides.values())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute features of normalised images.

        Args:
            images: (B, in_channels, H, W).

        Returns:
            ``layer{level}`` -> (B, C, H / stride, W / stride).
        """
        features = self.base(images)
        if self._channels_last:
            features = [x.permute(0, 3, 1, 2) for x in features]
        return dict(zip(self._out_features, features, strict=True))


def freeze_batch_norms(module: nn.Module) -> nn.Module:
    """Replace batch norms by ones with constant statistics and weights.

    Args:
        module: changed in place, unless it is a batch norm itself.

    Returns:
        The module, or its replacement.
    """
    if isinstance(module, BatchNormAct2d):
        # Batch norm and activation in one module: detectron2's conversion would drop the latter.
        return freeze_batch_norm_2d(module)
    if isinstance(module, nn.BatchNorm2d):
        return FrozenBatchNorm2d.convert_frozen_batchnorm(module)
    for name, child in module.named_children():
        module.add_module(name, freeze_batch_norms(child))
    return module


def parse_kwargs(text: str) -> dict[str, Any]:
    """Return the mapping of ``MODEL.TIMM.KWARGS``, which is YAML; {} for an empty text.

    Raises:
        ValueError: the text is no YAML mapping.
    """
    try:
        kwargs = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"MODEL.TIMM.KWARGS: {text!r} is not valid YAML: {error}") from error
    if kwargs is None:
        return {}
    if not isinstance(kwargs, dict):
        raise ValueError(
            "MODEL.TIMM.KWARGS: expected a YAML mapping such as '{layers: [1, 1, 1, 1]}', "
            f"got {text!r}"
        )
    return kwargs


def _create_base(
    base_name: str, out_levels: tuple[int, ...], pretrained: bool, kwargs: dict[str, Any]
) -> nn.Module:
    """Create timm's feature extractor, or raise an error that names the key to change."""
    timm_name = PUBLISHED_NAMES.get(base_name, base_name)
    if not timm.is_model(timm_name):
        near = difflib.get_close_matches(base_name, [*PUBLISHED_NAMES, *timm.list_models()], n=5)
        raise ValueError(
            f"MODEL.TIMM.BASE_NAME: unknown model {base_name!r}. "
            + (f"Nearest known: {', '.join(near)}. " if near else "")
            + "timm.list_models() lists all"
        )
    if pretrained and base_name in PUBLISHED_NAMES:
        raise ValueError(
            f"MODEL.TIMM.PRETRAINED: timm has no weights for {base_name!r}. Set it to False and "
            "MODEL.WEIGHTS to a file made by tools/convert-thirdparty-pretrained-model-to-d2.py"
        )
    if not out_levels or list(out_levels) != sorted(set(out_levels)) or out_levels[0] < 1:
        raise ValueError(
            f"MODEL.TIMM.OUT_LEVELS: expected ascending levels from 1, got {out_levels}"
        )
    try:
        return timm.create_model(
            timm_name,
            pretrained=pretrained,
            features_only=True,
            # timm counts features from 0. In a ResNet the first is the stem's, of stride 2.
            out_indices=tuple(level - 1 for level in out_levels),
            **kwargs,
        )
    except OSError as error:
        # A download that fails is no fault of the arguments, so this stays no ValueError.
        raise OSError(
            f"MODEL.TIMM.PRETRAINED: timm could not get the weights of {timm_name!r} ({error}). "
            "Without a network, set it to False and MODEL.WEIGHTS to a local file"
        ) from error
    except (
        AssertionError,
        AttributeError,
        IndexError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(
            f"MODEL.TIMM: timm cannot build {timm_name!r} with OUT_LEVELS {out_levels} (feature "
            f"indices from 0) and the arguments {kwargs}: {error}"
        ) from error


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build the backbone that the keys ``MODEL.TIMM.*`` describe."""
    node = cfg.MODEL.TIMM
    return TimmBackbone(
        node.BASE_NAME,
        node.OUT_LEVELS,
        norm=node.NORM,
        freeze_at=node.FREEZE_AT,
        pretrained=node.PRETRAINED,
        in_channels=input_shape.channels,
        kwargs=parse_kwargs(node.KWARGS),
    )
