"""Backbones: importing this package registers them in ``BACKBONE_REGISTRY``."""

from ovformer.modeling.backbone.swin import D2SwinTransformer
from ovformer.modeling.backbone.timm import TimmBackbone, build_timm_backbone

__all__ = ["D2SwinTransformer", "TimmBackbone", "build_timm_backbone"]
