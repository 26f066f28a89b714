"""Layers that the decoders are made of: attention, feed-forward and multi-layer perceptron.

All are post-norm: a layer returns ``norm(x + f(x))``. Parameter names are those of the published
checkpoints (of :class:`torch.nn.MultiheadAttention`, for attention).

Legend: B batch, Q queries, S tokens that queries attend to, C channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovformer.ops.linear import linear


class MultiheadAttention(nn.Module):
    """Scaled dot-product attention with the parameters of :class:`torch.nn.MultiheadAttention`.

    Unlike that, it takes one mask for all heads and skips the softmax over a single token. Source:
    "Attention is all you need", https://arxiv.org/abs/1706.03762, section 3.2.

    Args:
        channels: C.
        num_heads: a divisor of C.

    Raises:
        ValueError: the number of heads does not divide C.
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or channels % num_heads:
            raise ValueError(
                f"attention of width {channels} cannot have {num_heads} heads. Choose a divisor "
                "(MODEL.MASK_FORMER.NHEADS, MODEL.MASK_FORMER.ALIGNMENT_NHEADS)"
            )
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attend: Tensor | None = None
    ) -> Tensor:
        """Attend from each query to all tokens, or to those that a mask allows.

        Args:
            query: (B, Q, C).
            key: (B, S, C).
            value: (B, S, C).
            attend: (B, Q, S), true where the query may look. Each query needs a true one.

        Returns:
            (B, Q, C).
        """
        # PyTorch's module keeps the three projections in one matrix, and so do the checkpoints.
        query_weight, key_weight, value_weight = self.in_proj_weight.chunk(3)
        query_bias, key_bias, value_bias = self.in_proj_bias.chunk(3)
        value = linear(value, value_weight, value_bias)
        if key.shape[1] == 1 and attend is None:
            # The softmax over one token is 1, whatever query and key are. Their parameters get a
            # gradient of zero, as they would from the softmax: they are parts of in_proj_*.
            return self.out_proj(value).expand(-1, query.shape[1], -1)
        attended = F.scaled_dot_product_attention(
            self._split_heads(linear(query, query_weight, query_bias)),
            self._split_heads(linear(key, key_weight, key_bias)),
            self._split_heads(value),
            attn_mask=None if attend is None else attend.unsqueeze(1),  # one mask for all heads
        )
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        """Return (B, S, C) as (B, heads, S, C / heads)."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class SelfAttentionLayer(nn.Module):
    """Attention of the queries to each other."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(channels, num_heads)
        self.norm = nn.LayerNorm(channels)

    def forward(self, queries: Tensor, position: Tensor) -> Tensor:
        """Update the queries.

        Args:
            queries: (B, Q, C).
            position: of the queries; any shape that can be added to them.

        Returns:
            (B, Q, C).
        """
        placed = queries + position
        # Positions say where a query looks. They are no part of what it passes on.
        return self.norm(queries + self.self_attn(placed, placed, queries))


class CrossAttentionLayer(nn.Module):
    """Attention of the queries to other tokens, such as pixels or CLIP's embeddings."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.multihead_attn = MultiheadAttention(channels, num_heads)
        self.norm = nn.LayerNorm(channels)

    def forward(
        self,
        queries: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        position: Tensor | None = None,
        attend: Tensor | None = None,
    ) -> Tensor:
        """Update the queries.

        Args:
            queries: (B, Q, C).
            key: (B, S, C), the tokens with their positions added.
            value: (B, S, C), the tokens.
            position: of the queries; any shape that can be added to them.
            attend: (B, Q, S), true where a query may look; None for everywhere.

        Returns:
            (B, Q, C).
        """
        placed = queries if position is None else queries + position
        return self.norm(queries + self.multihead_attn(placed, key, value, attend))


class FFNLayer(nn.Module):
    """The feed-forward network that follows attention: two linear layers."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, hidden_channels)
        self.linear2 = nn.Linear(hidden_channels, channels)
        self.norm = nn.LayerNorm(channels)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Update (..., C)."""
        hidden = linear(x, self.linear1.weight, self.linear1.bias, relu=True)
        return self.norm(x + linear(hidden, self.linear2.weight, self.linear2.bias))


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(
        self, in_channels: int, hidden_channels: int, out_channels: int, num_layers: int
    ) -> None:
        super().__init__()
        widths = [in_channels] + [hidden_channels] * (num_layers - 1) + [out_channels]
        self.layers = nn.ModuleList(
            nn.Linear(before, after) for before, after in zip(widths, widths[1:], strict=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_channels) to (..., out_channels)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
