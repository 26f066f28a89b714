"""The network in its plainest form, for comparison: the same weights and the same output.

Here each layer computes class and objectness logits and the masks of all queries, which are resized
to make the attention mask; attention to a single image token is computed in full; each batch
computes position encodings and reference points anew, each head its own mask. Our network skips
these or computes them once. Callers choose the PyTorch kernel of deformable attention with
:func:`.measure.force_kernel`. All other attention is PyTorch's function.

Legend: B batch (images or clips), T frames of a clip (1 for an image), Q queries, C channels, Cm
mask channels, M CLIP tokens, D CLIP width, L levels, S tokens, H W pixels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovformer.modeling.backbone.folded_norm import stop_folding
from ovformer.ops.ms_deform_attn import ms_deform_attn


class PlainNetwork(nn.Module):
    """Backbone, pixel decoder and query decoder of a model, computed plainly with its weights.

    Args:
        model: a model of images, of frames or of clips; its weights are shared.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = stop_folding(model.backbone)
        self.pixel_decoder = model.sem_seg_head.pixel_decoder
        self.predictor = model.sem_seg_head.predictor

    def forward(self, images: Tensor, clip_features: Tensor) -> dict[str, Any]:
        """Compute the outputs of all layers.

        Args:
            images: (B * T, 3, H, W), normalised and padded.
            clip_features: (B, M, D); for clips M is T.

        Returns:
            ``pred_logits``, ``pred_object_logits`` and ``pred_masks`` (B, Q, T, H / 4, W / 4) of
            the last layer, ``pred_embds`` (B, Q, C), and ``aux_outputs``: the first three of each
            earlier layer.
        """
        mask_features, levels = run_pixel_decoder(self.pixel_decoder, self.backbone(images))
        mask_features = mask_features.unflatten(0, (len(clip_features), -1))
        return run_query_decoder(self.predictor, levels, mask_features, clip_features)


def run_pixel_decoder(decoder: nn.Module, features: Mapping[str, Tensor]) -> tuple[Tensor, list]:
    """Compute what ``MSDeformAttnPixelDecoder`` does, in float32."""
    device = next(iter(features.values())).device
    with torch.autocast(device.type, enabled=False):
        maps = [
            projection(features[name].float())
            for projection, name in zip(
                decoder.input_proj, decoder.transformer_in_features, strict=True
            )
        ]
        maps = run_deformable_encoder(decoder.transformer, maps)
        for index in range(len(decoder.fpn_in_features), 0, -1):
            name = decoder.fpn_in_features[index - 1]
            lateral = getattr(decoder, f"adapter_{index}")(features[name].float())
            above = F.interpolate(
                maps[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False
            )
            maps.append(getattr(decoder, f"layer_{index}")(lateral + above))
        return decoder.mask_features(maps[-1]), maps[:3]


def run_deformable_encoder(encoder: nn.Module, maps: Sequence[Tensor]) -> list[Tensor]:
    """Compute what ``MSDeformAttnEncoder`` does."""
    device = maps[0].device
    sizes = [tuple(x.shape[-2:]) for x in maps]
    shapes = torch.tensor(sizes, device=device)
    starts = torch.cat((shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]))
    position = torch.cat(
        [
            make_sine_positions(x).flatten(2).transpose(1, 2) + embed
            for x, embed in zip(maps, encoder.level_embed, strict=True)
        ],
        dim=1,
    )
    points = torch.cat([make_pixel_centres(x) for x in maps], dim=1)[:, :, None].expand(
        -1, -1, len(maps), -1
    )
    tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
    for layer in encoder.encoder.layers:
        attended = run_deformable_attention(
            layer.self_attn, tokens + position, points, tokens, shapes, starts
        )
        tokens = layer.norm1(tokens + layer.dropout(attended))
        hidden = layer.dropout(F.relu(layer.linear1(tokens)))
        tokens = layer.norm2(tokens + layer.dropout(layer.linear2(hidden)))
    lengths = [height * width for height, width in sizes]
    return [
        x.transpose(1, 2).reshape(len(x), -1, *size)
        for x, size in zip(tokens.split(lengths, dim=1), sizes, strict=True)
    ]


def run_deformable_attention(
    attention: nn.Module,
    query: Tensor,
    points: Tensor,
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
) -> Tensor:
    """Compute what ``MSDeformAttn`` does."""
    batch, queries, _ = query.shape
    heads, levels, num_points = attention.num_heads, attention.num_levels, attention.num_points
    values = attention.value_proj(value).view(batch, value.shape[1], heads, -1)
    offsets = attention.sampling_offsets(query).view(batch, queries, heads, levels, num_points, 2)
    weights = attention.attention_weights(query).view(batch, queries, heads, -1).softmax(-1)
    weights = weights.view(batch, queries, heads, levels, num_points)
    extents = torch.stack((shapes[:, 1], shapes[:, 0]), dim=1)[None, None, None, :, None]
    locations = points[:, :, None, :, None] + offsets / extents
    return attention.output_proj(ms_deform_attn(values, shapes, starts, locations, weights))


def make_sine_positions(x: Tensor) -> Tensor:
    """Return the sine encoding (B, C, H, W) of the pixels of a map."""
    ones = torch.ones(len(x), *x.shape[-2:], device=x.device)
    half = x.shape[1] // 2
    index = torch.arange(half, dtype=torch.float32, device=x.device)
    period = 10000 ** (2 * torch.div(index, 2, rounding_mode="floor") / half)
    encodings = []
    for axis in (1, 2):
        place = ones.cumsum(axis)
        place = place / (place.narrow(axis, place.shape[axis] - 1, 1) + 1e-6) * 2 * math.pi
        angle = place[..., None] / period
        encoding = torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=4)
        encodings.append(encoding.flatten(3))
    return torch.cat(encodings, dim=3).permute(0, 3, 1, 2)


def make_pixel_centres(x: Tensor) -> Tensor:
    """Return x and y of the pixels of a map, (B, H * W, 2), from 0 to 1."""
    height, width = x.shape[-2:]
    y, x_ = torch.meshgrid(
        torch.linspace(0.5, height - 0.5, height, device=x.device) / height,
        torch.linspace(0.5, width - 0.5, width, device=x.device) / width,
        indexing="ij",
    )
    return torch.stack((x_.flatten(), y.flatten()), dim=1)[None].repeat(len(x), 1, 1)


def make_frame_positions(frames: int, channels: int, device: torch.device) -> Tensor:
    """Return the sine encoding (T, C) of the frames of a clip."""
    index = torch.arange(channels, dtype=torch.float32, device=device)
    period = 10000 ** (2 * torch.div(index, 2, rounding_mode="floor") / channels)
    place = torch.arange(1, frames + 1, dtype=torch.float32, device=device)
    angle = (place / (frames + 1e-6) * 2 * math.pi)[:, None] / period
    return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)


def run_query_decoder(
    decoder: nn.Module, levels: Sequence[Tensor], mask_features: Tensor, clip_features: Tensor
) -> dict[str, Any]:
    """Compute what the query decoder of images or of clips does, with masks in all outputs."""
    batch, frames = mask_features.shape[:2]
    tokens, positions, sizes = [], [], []
    for x, projection, embed in zip(
        levels, decoder.input_proj, decoder.level_embed.weight, strict=False
    ):
        x = projection(x)
        sizes.append(tuple(x.shape[-2:]))
        position = make_sine_positions(x).unflatten(0, (batch, frames))
        if decoder.SEES_CLIPS:
            position = (
                position + make_frame_positions(frames, x.shape[1], x.device)[..., None, None]
            )
        positions.append(position.flatten(3).transpose(2, 3).flatten(1, 2))
        x = x.unflatten(0, (batch, frames)).flatten(3)
        tokens.append(x.transpose(2, 3).flatten(1, 2) + embed)
    place = decoder.query_embed.weight[None].repeat(batch, 1, 1)
    queries = decoder.query_feat.weight[None].repeat(batch, 1, 1)
    outputs = [predict(decoder, queries, mask_features, clip_features)]
    for index, (cross, own, ffn) in enumerate(
        zip(
            decoder.transformer_cross_attention_layers,
            decoder.transformer_self_attention_layers,
            decoder.transformer_ffn_layers,
            strict=True,
        )
    ):
        level = index % decoder.num_levels
        hidden = make_attention_mask(
            outputs[-1]["pred_masks"], sizes[level], cross.multihead_attn.num_heads
        )
        keys = tokens[level] + positions[level]
        attended = attend(cross.multihead_attn, queries + place, keys, tokens[level], hidden)
        queries = cross.norm(queries + attended)
        placed = queries + place
        queries = own.norm(queries + attend(own.self_attn, placed, placed, queries))
        queries = ffn.norm(queries + ffn.linear2(F.relu(ffn.linear1(queries))))
        outputs.append(predict(decoder, queries, mask_features, clip_features))
    return {**outputs[-1], "aux_outputs": outputs[:-1]}


def predict(
    decoder: nn.Module, queries: Tensor, mask_features: Tensor, clip_features: Tensor
) -> dict[str, Tensor]:
    """Apply all heads to the queries of a layer."""
    queries = decoder.decoder_norm(queries)
    head = decoder.class_embed
    aligned = head.linear(queries)
    layer = head.cross_attention
    attended = attend(layer.multihead_attn, aligned, clip_features, clip_features)
    aligned = layer.norm(aligned + attended)
    with torch.autocast(queries.device.type, enabled=False):
        logits = head.temperature * F.normalize(aligned.float(), dim=2) @ head.zs_weight
    return {
        "pred_logits": logits,
        "pred_object_logits": decoder.object_embed(queries),
        "pred_masks": torch.einsum("bqc,btchw->bqthw", decoder.mask_embed(queries), mask_features),
        "pred_embds": queries,
    }


def make_attention_mask(masks: Tensor, size: tuple[int, int], heads: int) -> Tensor:
    """Return the tokens that each query must not attend to: (B * heads, Q, S) bool."""
    resized = F.interpolate(masks.flatten(1, 2), size=size, mode="bilinear", align_corners=False)
    resized = resized.unflatten(1, masks.shape[1:3])
    hidden = (resized.sigmoid() < 0.5).flatten(2)[:, None].repeat(1, heads, 1, 1).flatten(0, 1)
    hidden = hidden.detach()
    # A query whose mask is empty attends to all tokens; the softmax would be NaN without any.
    hidden[hidden.all(dim=2)] = False
    return hidden


def attend(
    attention: nn.Module, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None = None
) -> Tensor:
    """Attend with PyTorch's own function, which takes queries first and the batch second."""
    attended, _ = F.multi_head_attention_forward(
        query.transpose(0, 1),
        key.transpose(0, 1),
        value.transpose(0, 1),
        query.shape[2],
        attention.num_heads,
        attention.in_proj_weight,
        attention.in_proj_bias,
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=attention.out_proj.weight,
        out_proj_bias=attention.out_proj.bias,
        need_weights=False,
        attn_mask=hidden,
    )
    return attended.transpose(0, 1)
