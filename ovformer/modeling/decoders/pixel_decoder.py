"""Pixel decoder: multi-scale deformable attention over the backbone's features, then an FPN.

It works in float32 also under autocast, unless ``precision`` is "autocast".

Source: Mask2Former, https://arxiv.org/abs/2112.01527.

Legend: B batch, C channels, Cm mask channels, H W pixels.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovformer.d2 import (
    SEM_SEG_HEADS_REGISTRY,
    CfgNode,
    Conv2d,
    ShapeSpec,
    c2_xavier_fill,
    configurable,
    get_norm,
)
from ovformer.modeling.decoders.deformable_encoder import MSDeformAttnEncoder

# Levels that the query decoder looks at.
NUM_OUTPUT_LEVELS = 3
NUM_GROUPS = 32  # of the group normalisations, as published
PRECISIONS = ("float32", "autocast")


@SEM_SEG_HEADS_REGISTRY.register()
class MSDeformAttnPixelDecoder(nn.Module):
    """From backbone features to mask features, and three levels for the query decoder.

    Args:
        input_shape: channels and stride of each backbone feature that is used.
        transformer_in_features: those that go through deformable attention; the finer ones
            only join in the FPN.
        conv_dim: C, a multiple of 32.
        mask_dim: Cm.
        norm: normalisation of the FPN's convolutions, as in detectron2; "" for none.
        common_stride: stride of the mask features, in pixels of the image.
        num_layers: deformable attention layers.
        num_heads: heads of each.
        num_points: sampling points per head and level.
        dim_feedforward: width of each layer's feed-forward network.
        dropout: probability, in the deformable attention layers.
        activation_checkpointing: recompute what is inside these layers in the backward pass.
        precision: of the decoder under autocast, "float32" or "autocast".

    Raises:
        ValueError: the features do not exist or do not reach ``common_stride``, a width does
            not fit, or the precision is unknown.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        transformer_in_features: Sequence[str],
        conv_dim: int,
        mask_dim: int,
        norm: str,
        common_stride: int,
        num_layers: int,
        num_heads: int,
        num_points: int,
        dim_feedforward: int,
        dropout: float,
        activation_checkpointing: bool = False,
        precision: str = "float32",
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_PRECISION: expected one of {list(PRECISIONS)}, "
                f"got {precision!r}"
            )
        self.precision = precision
        if conv_dim % NUM_GROUPS:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.CONVS_DIM: expected a multiple of {NUM_GROUPS} (groups of the "
                f"group normalisation), got {conv_dim}"
            )
        coarse = _sort_by_stride(input_shape, transformer_in_features)
        self.transformer_in_features = coarse[::-1]  # coarsest first
        # Deformable attention needs levels of one width, whatever the backbone's widths are.
        self.input_proj = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(input_shape[name].channels, conv_dim, kernel_size=1),
                nn.GroupNorm(NUM_GROUPS, conv_dim),
            )
            for name in self.transformer_in_features
        )
        for projection in self.input_proj:
            nn.init.xavier_uniform_(projection[0].weight)
            nn.init.zeros_(projection[0].bias)
        self.transformer = MSDeformAttnEncoder(
            conv_dim,
            dim_feedforward,
            dropout,
            len(coarse),
            num_heads,
            num_points,
            num_layers,
            activation_checkpointing,
        )
        self.mask_features = Conv2d(conv_dim, mask_dim, kernel_size=1)
        c2_xavier_fill(self.mask_features)

        # Deformable attention over the finest levels would cost too much. They join in an FPN,
        # down to the stride of the mask features.
        finest = input_shape[coarse[0]].stride
        fine = [
            name
            for name in _sort_by_stride(input_shape)
            if common_stride <= input_shape[name].stride < finest
        ]
        levels = [input_shape[name].stride for name in fine + coarse]
        if levels[0] != common_stride or len(levels) < NUM_OUTPUT_LEVELS:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES: expected {NUM_OUTPUT_LEVELS} or more levels from "
                f"COMMON_STRIDE {common_stride} up, got strides {levels}. The deformable "
                f"encoder takes {list(transformer_in_features)}"
            )
        self.fpn_in_features = fine
        for index, name in enumerate(fine, 1):
            # A bias before a normalisation has no effect: the norm subtracts it.
            lateral = Conv2d(
                input_shape[name].channels,
                conv_dim,
                kernel_size=1,
                bias=norm == "",
                norm=get_norm(norm, conv_dim),
            )
            output = Conv2d(
                conv_dim,
                conv_dim,
                kernel_size=3,
                padding=1,
                bias=norm == "",
                norm=get_norm(norm, conv_dim),
                activation=F.relu,
            )
            c2_xavier_fill(lateral)
            c2_xavier_fill(output)
            # The published checkpoints have these names, numbered from fine to coarse.
            self.add_module(f"adapter_{index}", lateral)
            self.add_module(f"layer_{index}", output)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        """Read the keys ``MODEL.SEM_SEG_HEAD.*`` and the dropout of ``MODEL.MASK_FORMER``."""
        head = cfg.MODEL.SEM_SEG_HEAD
        # Only here the name of the backbone is known, which a user may have to change.
        missing = [name for name in head.IN_FEATURES if name not in input_shape]
        if missing:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES: the backbone {cfg.MODEL.BACKBONE.NAME!r} gives "
                f"{list(input_shape)}, not {missing}"
            )
        return {
            "input_shape": {name: input_shape[name] for name in head.IN_FEATURES},
            "transformer_in_features": head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES,
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
            "common_stride": head.COMMON_STRIDE,
            "num_layers": head.TRANSFORMER_ENC_LAYERS,
            "num_heads": head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS,
            "num_points": head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS,
            "dim_feedforward": head.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD,
            "dropout": cfg.MODEL.MASK_FORMER.DROPOUT,
            "activation_checkpointing": cfg.MODEL.ACTIVATION_CHECKPOINTING,
            "precision": head.PIXEL_DECODER_PRECISION,
        }

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Decode backbone features.

        Args:
            features: name -> (B, channels, H, W).

        Returns:
            Mask features (B, Cm, H, W) at the common stride, and three levels of features
            (B, C, H, W), coarsest first.
        """
        if self.precision == "autocast":
            return self._decode(features)
        device = features[self.transformer_in_features[0]].device
        # As published: training in half precision leaves the pixel decoder in float32.
        with torch.autocast(device.type, enabled=False):
            return self._decode({name: x.float() for name, x in features.items()})

    def _decode(self, features: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Decode as :meth:`forward` does, in the precision of the features."""
        maps = self.transformer(
            [
                projection(features[name])
                for projection, name in zip(
                    self.input_proj, self.transformer_in_features, strict=True
                )
            ]
        )
        # The FPN goes from coarse to fine; its modules are numbered from fine to coarse.
        for index in range(len(self.fpn_in_features), 0, -1):
            name = self.fpn_in_features[index - 1]
            lateral = getattr(self, f"adapter_{index}")(features[name])
            above = F.interpolate(
                maps[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False
            )
            maps.append(getattr(self, f"layer_{index}")(lateral + above))
        # If the transformer has fewer levels than the query decoder, the FPN's first ones follow.
        return self.mask_features(maps[-1]), maps[:NUM_OUTPUT_LEVELS]


def _sort_by_stride(
    input_shape: Mapping[str, ShapeSpec], names: Sequence[str] | None = None
) -> list[str]:
    """Return the names of features, all or the given ones, finest first."""
    unknown = [name for name in names or () if name not in input_shape]
    if unknown:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES: {unknown} are not in "
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES {list(input_shape)}"
        )
    return sorted(names or input_shape, key=lambda name: input_shape[name].stride)
