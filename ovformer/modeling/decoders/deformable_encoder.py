"""Multi-scale deformable attention encoder: pixels of several feature maps attend to each other.

Legend: B batch, Q queries, C channels, L levels, M heads, P points, S tokens (the pixels of all
levels, one level after the other), H W pixels.
"""

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ovformer.modeling.decoders.position_encoding import reference_points, sine_position_encoding
from ovformer.ops.linear import linear
from ovformer.ops.ms_deform_attn import ms_deform_attn, to_host_tensor


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention: each query samples a few locations of each level.

    Source: Deformable DETR, https://arxiv.org/abs/2010.04159, equation 3.

    Args:
        channels: C.
        num_levels: L.
        num_heads: M, a divisor of C.
        num_points: P, per head and level.

    Raises:
        ValueError: M does not divide C.
    """

    def __init__(self, channels: int, num_levels: int, num_heads: int, num_points: int) -> None:
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
        """Initialise all parameters as Deformable DETR does."""
        # With zero weights, the biases below alone place the first sampling locations.
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        # Each head starts in a direction of its own, and each further point one pixel further away.
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=1)
        # On a square, not on a circle: the first points are whole pixels away in x or y.
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
        spatial_shapes: Tensor | Sequence[tuple[int, int]],
        level_start_index: Tensor | Sequence[int],
    ) -> Tensor:
        """Attend around each query's reference point.

        Sampling locations and weights are float32 also under autocast: 16 bits are too coarse for
        a location in a large feature map.

        Args:
            query: (B, Q, C).
            points: (B or 1, Q, L or 1, 2), x and y from 0 to 1, of each query in each level.
            value: (B, S, C).
            spatial_shapes: (L, 2), height and width of each level, best not on a GPU.
            level_start_index: (L,), first token of each level, best not on a GPU.

        Returns:
            (B, Q, C).
        """
        sizes = (self.num_heads, self.num_levels, self.num_points)
        with torch.autocast(query.device.type, enabled=False):
            precise = query.to(self.sampling_offsets.weight.dtype)
            # The layer predicts offsets in pixels, the operator wants shares of a level's height
            # and width. Dividing the small weights is cheaper than dividing all offsets.
            extents = to_host_tensor(spatial_shapes).flip(1).to(precise)
            extents = extents.repeat_interleave(self.num_points, dim=0).flatten()
            extents = extents.repeat(self.num_heads)
            offsets = linear(
                precise,
                self.sampling_offsets.weight / extents[:, None],
                self.sampling_offsets.bias / extents,
            )
            # (B, Q, 1, L, 1, 2) + (B, Q, M, L, P, 2): one reference point for all heads and points.
            locations = points[:, :, None, :, None] + offsets.unflatten(2, (*sizes, 2))
            # One softmax over the points of all levels: levels compete for a query's attention.
            weights = _apply(self.attention_weights, precise).unflatten(2, (self.num_heads, -1))
            weights = weights.softmax(-1).unflatten(3, sizes[1:])
        # Values may be of a half type: they are averaged, and no location depends on them.
        values = _apply(self.value_proj, value).unflatten(2, (self.num_heads, -1))
        output = ms_deform_attn(values, spatial_shapes, level_start_index, locations, weights)
        return _apply(self.output_proj, output)


class MSDeformAttnEncoderLayer(nn.Module):
    """Deformable self-attention of all pixels, and a feed-forward network; post-norm.

    Args:
        channels: C.
        hidden_channels: width of the feed-forward network.
        dropout: probability, after each of its layers and after the attention.
        num_levels: L.
        num_heads: M, a divisor of C.
        num_points: P, per head and level.
    """

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
        spatial_shapes: Tensor | Sequence[tuple[int, int]],
        level_start_index: Tensor | Sequence[int],
    ) -> Tensor:
        """Update tokens (B, S, C); see :class:`MSDeformAttn` for the other arguments."""
        attended = self.self_attn(
            tokens + position, points, tokens, spatial_shapes, level_start_index
        )
        tokens = self.norm1(tokens + self.dropout(attended))
        hidden = self.dropout(_apply(self.linear1, tokens, relu=True))
        return self.norm2(tokens + self.dropout(_apply(self.linear2, hidden)))


class MSDeformAttnEncoder(nn.Module):
    """Deformable attention layers over several feature maps of equal width.

    Args:
        channels: C.
        hidden_channels: width of each layer's feed-forward network.
        dropout: probability, in each layer.
        num_levels: L.
        num_heads: M, a divisor of C.
        num_points: P, per head and level.
        num_layers: deformable attention layers.
        activation_checkpointing: recompute what is inside a layer in the backward pass, to save
            memory.
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        dropout: float,
        num_levels: int,
        num_heads: int,
        num_points: int,
        num_layers: int,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.level_embed = nn.Parameter(torch.randn(num_levels, channels))
        self.encoder = nn.Module()  # the published names have this level
        self.encoder.layers = nn.ModuleList(
            MSDeformAttnEncoderLayer(
                channels, hidden_channels, dropout, num_levels, num_heads, num_points
            )
            for _ in range(num_layers)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Update the feature maps.

        Args:
            maps: one (B, C, H, W) per level, of any sizes.

        Returns:
            Maps of the same shapes.
        """
        shapes = [tuple(x.shape[-2:]) for x in maps]
        device = maps[0].device
        # The position of a pixel in its level does not say which level: a learned embedding does.
        position = torch.cat(
            [
                sine_position_encoding(*shape, x.shape[1], device) + embed
                for shape, x, embed in zip(shapes, maps, self.level_embed, strict=True)
            ]
        )
        # A pixel looks around its own place in all levels.
        points = reference_points(shapes, device)[None, :, None]
        lengths = [height * width for height, width in shapes]
        starts = list(accumulate(lengths[:-1], initial=0))

        # One sequence of all levels, so that pixels of one attend to those of the others.
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
        # Neither positions nor points change from layer to layer: they are made once, above.
        for layer in self.encoder.layers:
            arguments = (tokens, position, points, shapes, starts)
            if self.activation_checkpointing and self.training:
                tokens = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                tokens = layer(*arguments)
        return [
            x.transpose(1, 2).unflatten(2, shape)
            for x, shape in zip(tokens.split(lengths, dim=1), shapes, strict=True)
        ]


def _apply(layer: nn.Linear, x: Tensor, relu: bool = False) -> Tensor:
    return linear(x, layer.weight, layer.bias, relu)
