"""Pixel decoder: multi-scale deformable attention over the backbone's features, then an FPN.

It works in float32, also under autocast: 16 bits are too coarse for sampling locations.

Legend: B batch, C channels, Cm mask channels, L levels, M heads, P points, S tokens (the pixels of
all levels, coarsest level first), H W pixels.
"""

import math
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
from ovformer.modeling.position_encoding import reference_points, sine_position_encoding
from ovformer.ops.ms_deform_attn import ms_deform_attn

# Levels that the query decoder looks at.
NUM_OUTPUT_LEVELS = 3
NUM_GROUPS = 32


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention: each query looks at a few places of each level."""

    def __init__(self, channels: int, num_levels: int, num_heads: int, num_points: int) -> None:
        """Initialise as published: heads look in different directions, points ever further away.

        Args:
            channels: C.
            num_levels: L.
            num_heads: M, a divisor of C.
            num_points: P, per head and level.

        Raises:
            ValueError: C cannot be divided into so many heads.
        """
        super().__init__()
        if num_heads < 1 or channels % num_heads:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.CONVS_DIM {channels} cannot be divided into {num_heads} heads "
                "(MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS)"
            )
        self.num_levels, self.num_heads, self.num_points = num_levels, num_heads, num_points
        self.sampling_offsets = nn.Linear(channels, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(channels, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise all parameters."""
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=1)  # on a square, not a circle
        directions = directions / directions.abs().amax(dim=1, keepdim=True)
        distances = torch.arange(1, self.num_points + 1)
        offsets = directions[:, None, None] * distances[:, None]
        offsets = offsets.expand(-1, self.num_levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())

    def forward(
        self,
        query: Tensor,
        points: Tensor,
        value: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
    ) -> Tensor:
        """Attend around each query's reference point.

        Args:
            query: (B, Q, C).
            points: (B or 1, Q, L or 1, 2), x and y from 0 to 1, of each query in each level.
            value: (B, S, C).
            spatial_shapes: (L, 2), height and width of each level, best on the CPU.
            level_start_index: (L,), first token of each level, best on the CPU.

        Returns:
            (B, Q, C).
        """
        sizes = (self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).unflatten(2, (*sizes, 2))  # pixels of the level
        weights = self.attention_weights(query).unflatten(2, (self.num_heads, -1))
        weights = weights.softmax(-1).unflatten(3, sizes[1:])
        extents = spatial_shapes.flip(1).to(offsets)[:, None]  # width and height, (L, 1, 2)
        locations = points[:, :, None, :, None] + offsets / extents
        values = self.value_proj(value).unflatten(2, (self.num_heads, -1))
        output = ms_deform_attn(values, spatial_shapes, level_start_index, locations, weights)
        return self.output_proj(output)


class MSDeformAttnEncoderLayer(nn.Module):
    """Deformable self-attention of all pixels, and a feed-forward network; post-norm."""

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        dropout: float,
        num_levels: int,
        num_heads: int,
        num_points: int,
    ) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(channels, num_levels, num_heads, num_points)
        self.norm1 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, hidden_channels)
        self.linear2 = nn.Linear(hidden_channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(
        self,
        tokens: Tensor,
        position: Tensor,
        points: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
    ) -> Tensor:
        """Update tokens (B, S, C); see :class:`MSDeformAttn` for the other arguments."""
        attended = self.self_attn(
            tokens + position, points, tokens, spatial_shapes, level_start_index
        )
        tokens = self.norm1(tokens + self.dropout(attended))
        hidden = self.dropout(F.relu(self.linear1(tokens)))
        return self.norm2(tokens + self.dropout(self.linear2(hidden)))


class MSDeformAttnEncoder(nn.Module):
    """Deformable attention layers over several feature maps of equal width."""

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        dropout: float,
        num_levels: int,
        num_heads: int,
        num_points: int,
        num_layers: int,
    ) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.randn(num_levels, channels))
        self.encoder = nn.Module()  # the published names have this level
        self.encoder.layers = nn.ModuleList(
            MSDeformAttnEncoderLayer(
                channels, hidden_channels, dropout, num_levels, num_heads, num_points
            )
            for _ in range(num_layers)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Update the maps: one (B, C, H, W) per level, of any sizes."""
        shapes = [tuple(x.shape[-2:]) for x in maps]
        device = maps[0].device
        position = torch.cat(
            [
                sine_position_encoding(*shape, x.shape[1], device) + embed
                for shape, x, embed in zip(shapes, maps, self.level_embed, strict=True)
            ]
        )
        points = reference_points(shapes, device)[None, :, None]
        lengths = [height * width for height, width in shapes]
        spatial_shapes = torch.tensor(shapes)
        level_start_index = torch.tensor([0, *lengths[:-1]]).cumsum(0)

        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
        for layer in self.encoder.layers:
            tokens = layer(tokens, position, points, spatial_shapes, level_start_index)
        return [
            x.transpose(1, 2).unflatten(2, shape)
            for x, shape in zip(tokens.split(lengths, dim=1), shapes, strict=True)
        ]


@SEM_SEG_HEADS_REGISTRY.register()
class MSDeformAttnPixelDecoder(nn.Module):
    """From backbone features to mask features and three levels of features for the query decoder."""

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
    ) -> None:
        """Build the decoder.

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

        Raises:
            ValueError: the features do not exist or do not reach ``common_stride``, or a width
                does not fit.
        """
        super().__init__()
        if conv_dim % NUM_GROUPS:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.CONVS_DIM: expected a multiple of {NUM_GROUPS} (groups of the "
                f"group normalisation), got {conv_dim}"
            )
        coarse = _by_stride(input_shape, transformer_in_features)
        self.transformer_in_features = coarse[::-1]  # coarsest first
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
            conv_dim, dim_feedforward, dropout, len(coarse), num_heads, num_points, num_layers
        )
        self.mask_features = Conv2d(conv_dim, mask_dim, kernel_size=1)
        c2_xavier_fill(self.mask_features)

        finest = input_shape[coarse[0]].stride
        fine = [
            name
            for name in _by_stride(input_shape)
            if common_stride <= input_shape[name].stride < finest
        ]
        levels = [input_shape[name].stride for name in fine + coarse]
        if levels[0] != common_stride or len(levels) < NUM_OUTPUT_LEVELS:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES: expected {NUM_OUTPUT_LEVELS} or more levels from "
                f"COMMON_STRIDE {common_stride} up, got strides {levels}, of which the deformable "
                f"encoder takes {list(transformer_in_features)}"
            )
        self.fpn_in_features = fine
        for index, name in enumerate(fine, 1):
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
            self.add_module(f"adapter_{index}", lateral)
            self.add_module(f"layer_{index}", output)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        """Read the keys ``MODEL.SEM_SEG_HEAD.*`` and the dropout of ``MODEL.MASK_FORMER``."""
        head = cfg.MODEL.SEM_SEG_HEAD
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
        }

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Decode backbone features.

        Args:
            features: name -> (B, channels, H, W).

        Returns:
            Mask features (B, Cm, H, W) at the common stride, and three levels of features
            (B, C, H, W), coarsest first.
        """
        with torch.autocast(features[self.transformer_in_features[0]].device.type, enabled=False):
            maps = self.transformer(
                [
                    projection(features[name].float())
                    for projection, name in zip(
                        self.input_proj, self.transformer_in_features, strict=True
                    )
                ]
            )
            for index in range(len(self.fpn_in_features), 0, -1):
                name = self.fpn_in_features[index - 1]
                lateral = self.get_submodule(f"adapter_{index}")(features[name].float())
                above = F.interpolate(
                    maps[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False
                )
                maps.append(self.get_submodule(f"layer_{index}")(lateral + above))
            return self.mask_features(maps[-1]), maps[:NUM_OUTPUT_LEVELS]


def _by_stride(
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
