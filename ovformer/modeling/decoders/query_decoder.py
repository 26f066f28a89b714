"""Query decoder: learned queries that look at an image or a clip through their own masks.

Legend: B batch, T frames of a clip, Q queries, K classes, C channels, Cm mask channels, D CLIP
width, M CLIP tokens, S pixels of a level (in a clip: of all frames), H W pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ovformer.d2 import CfgNode, Conv2d, Registry, c2_xavier_fill, configurable
from ovformer.modeling.decoders.embedding_alignment import UnifiedEmbeddingAlignment
from ovformer.modeling.decoders.position_encoding import (
    clip_position_encoding,
    sine_position_encoding,
)
from ovformer.modeling.decoders.transformer_layers import (
    MLP,
    CrossAttentionLayer,
    FFNLayer,
    SelfAttentionLayer,
)
from ovformer.ops.mask_resize import mask_logits, resize_mask_features

TRANSFORMER_DECODER_REGISTRY = Registry("TRANSFORMER_MODULE")
TRANSFORMER_DECODER_REGISTRY.__doc__ = """
Query decoders, called with the config and the width of the pixel decoder's features.
"""


@TRANSFORMER_DECODER_REGISTRY.register()
class MultiScaleMaskedTransformerDecoder(nn.Module):
    """Decoder with masked attention.

    Source: Mask2Former, https://arxiv.org/abs/2112.01527, section 3.2; the class head is
    OVFormer's.

    Args:
        in_channels: width of the pixel decoder's features.
        class_embed: class head, called with queries (B, Q, C) and CLIP features (B, M, D).
        hidden_dim: C.
        mask_dim: Cm.
        num_queries: Q.
        num_layers: decoder layers. The initial queries make one more prediction.
        num_heads: heads of all attentions.
        dim_feedforward: width of the feed-forward networks.
        deep_supervision: return the predictions of all layers in training.
        num_levels: feature levels; each layer attends to the next of them in turn.
        activation_checkpointing: recompute what is inside a layer in the backward pass.

    Raises:
        ValueError: a number is too small.
    """

    # Whether queries see all frames of a clip, and not each image by itself.
    SEES_CLIPS = False

    @configurable
    def __init__(
        self,
        in_channels: int,
        *,
        class_embed: nn.Module,
        hidden_dim: int,
        mask_dim: int,
        num_queries: int,
        num_layers: int,
        num_heads: int,
        dim_feedforward: int,
        deep_supervision: bool,
        num_levels: int = 3,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if num_layers < 1 or num_queries < 1:
            raise ValueError(
                "MODEL.MASK_FORMER: expected DEC_LAYERS of at least 2 and NUM_OBJECT_QUERIES of at "
                f"least 1, got {num_layers + 1} and {num_queries}"
            )
        self.num_levels = num_levels
        self.deep_supervision = deep_supervision
        self.activation_checkpointing = activation_checkpointing
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(hidden_dim, num_heads) for _ in range(num_layers)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(hidden_dim, num_heads) for _ in range(num_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FFNLayer(hidden_dim, dim_feedforward) for _ in range(num_layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(num_levels, hidden_dim)
        self.input_proj = nn.ModuleList()
        # Few layers do not reach all levels. A projection that gets no gradient would be an error
        # in distributed training.
        for _ in range(min(num_levels, num_layers)):
            projection = nn.Identity()
            if in_channels != hidden_dim:
                projection = Conv2d(in_channels, hidden_dim, kernel_size=1)
                c2_xavier_fill(projection)
            self.input_proj.append(projection)
        self.class_embed = class_embed
        self.object_embed = MLP(hidden_dim, hidden_dim, 2, 2)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int) -> dict[str, Any]:
        """Read the keys ``MODEL.MASK_FORMER.*`` and build the class head."""
        node = cfg.MODEL.MASK_FORMER
        return {
            "in_channels": in_channels,
            "class_embed": UnifiedEmbeddingAlignment(cfg),
            "hidden_dim": node.HIDDEN_DIM,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "num_queries": node.NUM_OBJECT_QUERIES,
            "num_layers": node.DEC_LAYERS - 1,
            "num_heads": node.NHEADS,
            "dim_feedforward": node.DIM_FEEDFORWARD,
            "deep_supervision": node.DEEP_SUPERVISION,
            "activation_checkpointing": cfg.MODEL.ACTIVATION_CHECKPOINTING,
        }

    def forward(
        self, features: Sequence[Tensor], mask_features: Tensor, clip_features: Tensor
    ) -> dict[str, Any]:
        """Predict a mask, a class and an objectness for each query.

        Class and objectness are computed for the last layer, and for all layers in training with
        deep supervision. Masks are not: a query's mask logits are the product of its mask
        embedding and the mask features, see :func:`ovformer.ops.mask_resize.mask_logits`. Most
        users of the result need the masks of a few queries, or at a few points.

        Args:
            features: one (B, in_channels, H, W) per level, coarsest first.
            mask_features: (B, Cm, H, W), or (B, T, Cm, H, W) for clips. Then ``features`` are those
                of their frames, (B * T, in_channels, H, W).
            clip_features: (B, M, D).

        Returns:
            ``pred_logits`` (B, Q, K + 1), ``pred_object_logits`` (B, Q, 2): object, no object,
            ``mask_embed`` (B, Q, Cm), ``mask_features`` as given, ``pred_embds`` (B, Q, C), and
            ``aux_outputs``: for each earlier prediction, first to last, its ``pred_logits``,
            ``pred_object_logits`` and ``mask_embed``. Empty where there is no deep supervision.
        """
        keys, values = self._embed_levels(features, mask_features.shape[:-3])
        # Attention masks are needed at the resolution of each level. Resizing the mask features
        # once per level is exact, as both steps are linear, and cheaper than resizing the masks of
        # all queries in each layer. Attention masks have no gradient, as published.
        with torch.no_grad():
            level_features = [
                x.transpose(1, -3).flatten(2, -2)  # the frames of a clip below each other
                for x in resize_mask_features(
                    mask_features, [tuple(x.shape[-2:]) for x in features]
                )
            ]
        # The first queries are learned and the same for every image.
        queries = self.query_feat.weight.expand(mask_features.shape[0], -1, -1)
        # One norm and one set of heads for all layers: each layer refines the same predictions.
        outputs = [self.decoder_norm(queries)]
        mask_embeds = [self.mask_embed(outputs[-1])]
        for index in range(len(self.transformer_ffn_layers)):
            level = index % self.num_levels
            # Each layer looks through the masks of the one before it.
            attend = make_attention_mask(mask_embeds[-1], level_features[level])
            arguments = (index, queries, keys[level], values[level], attend)
            if self.activation_checkpointing and self.training:
                queries = checkpoint(self._run_layer, *arguments, use_reentrant=False)
            else:
                queries = self._run_layer(*arguments)
            outputs.append(self.decoder_norm(queries))
            mask_embeds.append(self.mask_embed(outputs[-1]))

        *auxiliary, last = self._predict(outputs, mask_embeds, clip_features)
        return {
            **last,
            "mask_features": mask_features,
            "pred_embds": outputs[-1],
            "aux_outputs": auxiliary,
        }

    def _run_layer(
        self, index: int, queries: Tensor, keys: Tensor, values: Tensor, attend: Tensor
    ) -> Tensor:
        """Apply a decoder layer to queries (B, Q, C)."""
        position = self.query_embed.weight
        # Cross-attention first, other than in DETR: the initial queries know nothing of the image,
        # so self-attention would learn nothing from it (Mask2Former, section 3.2.3).
        queries = self.transformer_cross_attention_layers[index](
            queries, keys, values, position=position, attend=attend
        )
        queries = self.transformer_self_attention_layers[index](queries, position)
        return self.transformer_ffn_layers[index](queries)

    def _embed_levels(
        self, features: Sequence[Tensor], batch_shape: tuple[int, ...]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return keys (tokens and positions) and values (tokens), each (B, S, C), per level.

        Args:
            features: as in :meth:`forward`.
            batch_shape: (B,), or (B, T) for clips.
        """
        keys, values = [], []
        for x, projection, embed in zip(
            features, self.input_proj, self.level_embed.weight, strict=False
        ):
            x = projection(x)
            tokens = x.flatten(2).transpose(1, 2) + embed
            # Frames of a clip follow each other in one sequence: a query sees all of them.
            values.append(tokens.unflatten(0, batch_shape).flatten(1, -2))
            # Positions steer where a query looks. They are no part of what it takes from there.
            keys.append(values[-1] + self._encode_positions(batch_shape, x))
        return keys, values

    def _encode_positions(self, batch_shape: tuple[int, ...], x: Tensor) -> Tensor:
        """Return the position encoding of the tokens of a level (B, C, H, W): (S, C)."""
        return sine_position_encoding(*x.shape[-2:], x.shape[1], x.device)

    def _predict(
        self, outputs: list[Tensor], mask_embeds: list[Tensor], clip_features: Tensor
    ) -> list[dict[str, Tensor]]:
        """Apply the class and object heads to the layers whose predictions are used.

        Args:
            outputs: queries (B, Q, C) after each layer.
            mask_embeds: (B, Q, Cm) of each layer.
            clip_features: (B, M, D).
        """
        if not (self.training and self.deep_supervision):
            outputs, mask_embeds = outputs[-1:], mask_embeds[-1:]
        # The heads treat each query by itself, so those of all layers go through them together.
        queries = torch.cat(outputs, dim=1)
        parts = (self.class_embed(queries, clip_features), self.object_embed(queries))
        num_queries = outputs[0].shape[1]
        return [
            {"pred_logits": logits, "pred_object_logits": object_logits, "mask_embed": mask_embed}
            for logits, object_logits, mask_embed in zip(
                *(part.split(num_queries, dim=1) for part in parts), mask_embeds, strict=True
            )
        ]


@TRANSFORMER_DECODER_REGISTRY.register()
class VideoMultiScaleMaskedTransformerDecoder(MultiScaleMaskedTransformerDecoder):
    """The same decoder for clips: a query sees all frames, and has one mask embedding for them."""

    SEES_CLIPS = True

    def forward(
        self, features: Sequence[Tensor], mask_features: Tensor, clip_features: Tensor
    ) -> dict[str, Any]:
        """Predict a tube, a class and an objectness for each query.

        Args:
            features: one (B * T, in_channels, H, W) per level, coarsest first; the frames of a clip
                follow each other.
            mask_features: (B * T, Cm, H, W).
            clip_features: (B, T, D), of each frame.

        Returns:
            As of the decoder of images, with ``mask_features`` (B, T, Cm, H, W). The product of a
            mask embedding with them is a tube (T, H, W).
        """
        mask_features = mask_features.unflatten(0, clip_features.shape[:2])
        return super().forward(features, mask_features, clip_features)

    def _encode_positions(self, batch_shape: tuple[int, ...], x: Tensor) -> Tensor:
        """Return the encoding of the tokens of a level (B * T, C, H, W) in their clip: (S, C)."""
        return clip_position_encoding(batch_shape[1], *x.shape[-2:], x.shape[1], x.device)


@torch.no_grad()
def make_attention_mask(mask_embed: Tensor, mask_features: Tensor) -> Tensor:
    """Return where queries may look: at the foreground of their masks.

    A query whose mask is empty may look everywhere.

    Args:
        mask_embed: (B, Q, Cm).
        mask_features: (B, Cm, H, W), resized to the level that is looked at.

    Returns:
        (B, Q, H * W) bool, true where the mask probability is at least one half.
    """
    attend = (mask_logits(mask_embed, mask_features) >= 0).flatten(2)
    return attend | ~attend.any(dim=2, keepdim=True)
