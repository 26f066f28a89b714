"""Registries of models and their parts, and the interface of a backbone.

Legend: B images, H W pixels.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ovformer.d2.builtin.config import CfgNode
from ovformer.d2.builtin.env import Registry
from ovformer.d2.builtin.layers import ShapeSpec

# name -> function of (cfg, input ShapeSpec) that returns a Backbone
BACKBONE_REGISTRY = Registry("BACKBONE")
# name -> function of cfg that returns the whole model
META_ARCH_REGISTRY = Registry("META_ARCH")
# name -> function of (cfg, dict of ShapeSpecs) that returns a head
SEM_SEG_HEADS_REGISTRY = Registry("SEM_SEG_HEADS")


class Backbone(nn.Module, ABC):
    """A network that maps images to named feature maps.

    The default :meth:`output_shape` expects a subclass to set ``_out_features`` (names) and
    ``_out_feature_channels`` and ``_out_feature_strides`` (dicts by name).
    """

    @abstractmethod
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (B, 3, H, W) to feature maps by name."""

    @property
    def size_divisibility(self) -> int:
        """Height and width of the input must be multiples of this many pixels; 0: no limit."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Further constraints on the padding, as in ``ImageList.from_tensors``."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each feature map."""
        return {
            name: ShapeSpec(
                channels=self._out_feature_channels[name], stride=self._out_feature_strides[name]
            )
            for name in self._out_features
        }


def build_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """Build the backbone that ``cfg.MODEL.BACKBONE.NAME`` names.

    Args:
        cfg: the config.
        input_shape: of the images; by default with as many channels as ``MODEL.PIXEL_MEAN``.
    """
    if input_shape is None:
        input_shape = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    backbone = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, input_shape)
    if not isinstance(backbone, Backbone):
        raise AssertionError(
            f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME!r}: expected a Backbone, got "
            f"{type(backbone)}"
        )
    return backbone


def build_sem_seg_head(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build the head that ``cfg.MODEL.SEM_SEG_HEAD.NAME`` names for a backbone's output shapes."""
    return SEM_SEG_HEADS_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.NAME)(cfg, input_shape)


def build_model(cfg: CfgNode) -> nn.Module:
    """Build ``cfg.MODEL.META_ARCHITECTURE`` on ``cfg.MODEL.DEVICE``. No weights are loaded."""
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    return model.to(torch.device(cfg.MODEL.DEVICE))
