"""Swin Transformer (https://arxiv.org/abs/2103.14030) as a multi-scale feature extractor.

Legend: B batch, C channels, H W height and width of a feature map, N = window * window tokens of a
window, G windows of a padded feature map, A attention heads. Feature maps are (B, H, W, C).
Parameter names are those of the authors' release, so its checkpoints load.
"""

from collections.abc import Sequence

import numpy as np
import torch
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ovformer.d2 import BACKBONE_REGISTRY, Backbone, CfgNode, ShapeSpec, configurable

STAGE_NAMES = ("res2", "res3", "res4", "res5")
# Added to attention logits between tokens that are neighbours only because of the cyclic shift.
MASKED = -100.0


def split_windows(x: Tensor, window: int) -> Tensor:
    """Cut a feature map into windows, image by image: (B, H, W, C) -> (B * G, N, C)."""
    height, width, channels = x.shape[1:]
    x = x.unflatten(2, (width // window, window)).unflatten(1, (height // window, window))
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def join_windows(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """Undo :func:`split_windows`: (B * G, N, C) -> (B, H, W, C)."""
    grid = (-1, height // window, width // window, window, window, windows.shape[-1])
    return windows.reshape(grid).transpose(2, 3).reshape(-1, height, width, windows.shape[-1])


def make_shift_mask(
    height: int, width: int, window: int, shift: int, device: torch.device
) -> Tensor:
    """Return a mask that keeps tokens apart that only the cyclic shift has made neighbours.

    Source: figure 4 of the paper. After a roll by ``-shift``, the last ``shift`` rows of the map
    come from its top: in the last row of windows they must not see the rows above them. The same
    holds for columns.

    Returns:
        (G, N, N): 0 where a pair may attend, ``MASKED`` where not.
    """
    row = (torch.arange(height, device=device) >= height - shift).int()
    column = (torch.arange(width, device=device) >= width - shift).int()
    # Number the four regions of the map: tokens may attend to those of their own region.
    region = (2 * row[:, None] + column[None, :])[None, :, :, None]
    region = split_windows(region, window)
    return MASKED * (region != region.transpose(1, 2)).float()


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learned bias per relative position."""

    def __init__(
        self,
        dim: int,
        window: int,
        num_heads: int,
        qkv_bias: bool,
        qk_scale: float | None,
        attn_drop: float,
        proj_drop: float,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.attn_drop = attn_drop
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window - 1) ** 2, num_heads)
        )
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        # Positions differ by -(window - 1) to window - 1 on each axis, so the table has a row for
        # each of (2 window - 1) ** 2 offsets, whatever the size of the map.
        # Row of the table for each pair of tokens: their offsets in y and x, counted from 0.
        axis = torch.arange(window)
        position = torch.cartesian_prod(axis, axis)
        offset = position[:, None] - position[None, :] + window - 1
        index = offset[..., 0] * (2 * window - 1) + offset[..., 1]
        self.register_buffer("relative_position_index", index)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Attend within each window.

        Args:
            windows: (B * G, N, C).
            mask: (G, N, N), added to the attention logits, or None.

        Returns:
            (B * G, N, C).
        """
        # One projection for all three, as in the release: (B G, N, 3 C) -> 3 x (B G, A, N, C / A).
        query, key, value = (
            self.qkv(windows).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )
        bias = self.relative_position_bias_table[self.relative_position_index]
        bias = bias.permute(2, 0, 1).unsqueeze(0)
        if mask is not None:
            # Windows of all images follow each other, so the mask of an image is repeated.
            bias = (bias + mask[:, None]).repeat(windows.shape[0] // mask.shape[0], 1, 1, 1)
        # PyTorch wants the mask in the type of the query, which is a half type under autocast.
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=bias.to(query.dtype),
            dropout_p=self.attn_drop if self.training else 0.0,
            scale=self.scale,
        )
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))


class SwinBlock(nn.Module):
    """(Shifted) window attention and an MLP, both pre-norm with stochastic depth."""

    def __init__(
        self,
        attention: WindowAttention,
        dim: int,
        window: int,
        shift: int,
        mlp_ratio: float,
        drop: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=drop)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Transform (B, H, W, C); ``mask`` (G, N, N) is used by shifted blocks only."""
        x = x + self.drop_path(self._attend(self.norm1(x), mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        """Pad (B, H, W, C) to whole windows, shift it, attend, and undo shift and padding."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % self.window, 0, -height % self.window))
        padded_height, padded_width = x.shape[1:3]
        # A cyclic shift keeps the number of windows; the mask parts what does not belong together.
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        windows = self.attn(split_windows(x, self.window), mask if self.shift else None)
        x = join_windows(windows, self.window, padded_height, padded_width)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width]


class PatchMerging(nn.Module):
    """Halve the resolution and double the channels: each 2 x 2 neighbourhood becomes one token."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Merge (B, H, W, C) into (B, ceil(H / 2), ceil(W / 2), 2 C)."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        # Column by column: the order of the channels in the released weights.
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class SwinStage(nn.Module):
    """Blocks of one resolution, every second one with shifted windows, then patch merging."""

    def __init__(self, blocks: Sequence[SwinBlock], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor, use_checkpoint: bool) -> Tensor:
        """Run the blocks, not the downsampling, on (B, H, W, C)."""
        window = self.blocks[0].window
        height, width = (size + -size % window for size in x.shape[1:3])
        # All blocks of a stage share size and shift, so the mask is made once.
        mask = make_shift_mask(height, width, window, window // 2, x.device)
        for block in self.blocks:
            if use_checkpoint and self.training:
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        return x


class PatchEmbed(nn.Module):
    """Cut the image into patches and project each to a token."""

    def __init__(self, patch_size: int, in_channels: int, dim: int, norm: bool) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, dim, patch_size, patch_size)
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Embed (B, in_channels, H, W) as (B, ceil(H / patch), ceil(W / patch), C)."""
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % self.patch_size, 0, -height % self.patch_size))
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


@BACKBONE_REGISTRY.register()
class D2SwinTransformer(Backbone):
    """Swin Transformer with features ``res2`` to ``res5`` at strides 4 to 32.

    Args:
        pretrain_img_size: side in pixels of the pre-training images, for ``ape``.
        patch_size: side of a patch in pixels.
        in_channels: channels of the image.
        embed_dim: channels of the first stage; each further stage has twice as many.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        window_size: side of a window in tokens.
        mlp_ratio: hidden width of a block's MLP relative to its channels.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: factor of the attention logits; None is (channels per head) ** -0.5.
        drop_rate: dropout of tokens, projections and MLPs.
        attn_drop_rate: dropout of attention weights.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        ape: add a learned absolute position embedding to the patches.
        patch_norm: normalise the patch embedding.
        out_features: which of ``res2`` to ``res5`` are returned.
        use_checkpoint: recompute activations in the backward pass, to save memory.

    Raises:
        ValueError: numbers of stages differ, heads do not divide channels, unknown feature.
    """

    @configurable
    def __init__(
        self,
        *,
        pretrain_img_size: int = 224,
        patch_size: int = 4,
        in_channels: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        ape: bool = False,
        patch_norm: bool = True,
        out_features: Sequence[str] = STAGE_NAMES,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        dims = [embed_dim * 2**stage for stage in range(len(depths))]
        _check_stages(dims, depths, num_heads, out_features)
        self.use_checkpoint = use_checkpoint
        self.patch_embed = PatchEmbed(patch_size, in_channels, embed_dim, patch_norm)
        self.absolute_pos_embed = None
        if ape:
            side = pretrain_img_size // patch_size
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, embed_dim, side, side))
            trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.pos_drop = nn.Dropout(drop_rate)

        # Deep blocks are dropped more often than early ones.
        drop_paths = iter(np.linspace(0, drop_path_rate, sum(depths)).tolist())
        self.layers = nn.ModuleList()
        for stage, (dim, depth, heads) in enumerate(zip(dims, depths, num_heads, strict=True)):
            blocks = []
            for index in range(depth):
                attention = WindowAttention(
                    dim, window_size, heads, qkv_bias, qk_scale, attn_drop_rate, drop_rate
                )
                # Every second block shifts its windows, so that neighbouring windows exchange.
                shift = window_size // 2 if index % 2 else 0
                settings = (dim, window_size, shift, mlp_ratio, drop_rate, next(drop_paths))
                blocks.append(SwinBlock(attention, *settings))
            last = stage == len(depths) - 1
            self.layers.append(SwinStage(blocks, None if last else PatchMerging(dim)))
        # Only for features that are returned: a norm without gradient breaks training on several
        # GPUs.
        for stage, dim in enumerate(dims):
            if STAGE_NAMES[stage] in out_features:
                self.add_module(f"norm{stage}", nn.LayerNorm(dim))
        self.apply(_init_linear)

        self._out_features = list(out_features)
        names = STAGE_NAMES[: len(dims)]
        self._out_feature_channels = dict(zip(names, dims, strict=True))
        self._out_feature_strides = {name: patch_size * 2**i for i, name in enumerate(names)}

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """Read the keys ``MODEL.SWIN.*``, which are this class's arguments in capitals."""
        return {"in_channels": input_shape.channels} | {
            key.lower(): value for key, value in cfg.MODEL.SWIN.items()
        }

    @property
    def size_divisibility(self) -> int:
        """The largest stride: sides of the input should be multiples of it."""
        return max(self._out_feature_strides.values())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute features of normalised images.

        Args:
            images: (B, in_channels, H, W) of any size.

        Returns:
            feature name -> (B, C, H / stride, W / stride), sizes rounded up.
        """
        x = self.patch_embed(images)
        if self.absolute_pos_embed is not None:
            # Learned at the size of pre-training; images here have any size.
            position = F.interpolate(self.absolute_pos_embed, size=x.shape[1:3], mode="bicubic")
            x = x + position.permute(0, 2, 3, 1)
        x = self.pos_drop(x)
        features = {}
        for stage, layer in enumerate(self.layers):
            # The feature is taken before the downsampling, with a norm of its own, which the next
            # stage does not see.
            x = layer(x, self.use_checkpoint)
            if STAGE_NAMES[stage] in self._out_features:
                normed = getattr(self, f"norm{stage}")(x)
                features[STAGE_NAMES[stage]] = normed.permute(0, 3, 1, 2)
            if layer.downsample is not None:
                x = layer.downsample(x)
        return features


def _check_stages(
    dims: list[int], depths: Sequence[int], num_heads: Sequence[int], names: Sequence[str]
) -> None:
    """Raise ValueError when numbers, heads, channels or names of stages do not fit together."""
    if not 0 < len(depths) <= len(STAGE_NAMES) or len(num_heads) != len(depths):
        raise ValueError(
            "MODEL.SWIN: DEPTHS and NUM_HEADS need one entry for each of the same 1 to 4 stages, "
            f"got {list(depths)} and {list(num_heads)}"
        )
    for dim, heads in zip(dims, num_heads, strict=True):
        if dim % heads:
            raise ValueError(f"MODEL.SWIN.NUM_HEADS: {heads} heads do not divide {dim} channels")
    known = list(STAGE_NAMES[: len(depths)])
    if not names or not set(names) <= set(known):
        raise ValueError(f"MODEL.SWIN.OUT_FEATURES: expected some of {known}, got {list(names)}")


def _init_linear(module: nn.Module) -> None:
    """Initialise a linear layer as the Swin paper does; other modules keep PyTorch's defaults."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
