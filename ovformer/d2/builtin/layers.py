"""Layers that detectron2 adds to PyTorch's.

Legend: B batch, C channels, H W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class ShapeSpec:
    """The shape of a feature map as far as it is known; stride is in pixels of the image."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None


class Conv2d(nn.Conv2d):
    """A convolution followed by an optional normalisation and an optional activation.

    Args:
        *args: those of :class:`torch.nn.Conv2d`.
        norm: follows the convolution.
        activation: follows the norm.
        **kwargs: those of :class:`torch.nn.Conv2d`.
    """

    def __init__(
        self,
        *args: Any,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H', W')."""
        x = super().forward(x)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation whose statistics and affine parameters are constants.

    All four are buffers with the names of :class:`torch.nn.BatchNorm2d`, whose weights load
    unchanged. A new layer is the identity.

    Args:
        num_features: C.
        eps: added to the variance.
    """

    # Recorded in state dicts. Those of versions below 2 may lack the statistics.
    _version = 3

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        # The variance plus eps is 1, so that a new layer is the identity.
        self.register_buffer("running_var", torch.ones(num_features) - eps)
        # Has a value, and a state-dict key, only after a conversion from BatchNorm2d.
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        if not x.requires_grad:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        # batch_norm's backward would also compute, and keep memory for, gradients of the constants.
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1).to(x.dtype) + shift.view(1, -1, 1, 1).to(x.dtype)

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, local_metadata: dict, *args: Any
    ) -> None:
        if (local_metadata.get("version") or 0) < 2:
            state_dict.setdefault(prefix + "running_mean", torch.zeros_like(self.running_mean))
            state_dict.setdefault(prefix + "running_var", torch.ones_like(self.running_var))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def __repr__(self) -> str:
        return f"FrozenBatchNorm2d(num_features={self.num_features}, eps={self.eps})"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Replace all BatchNorm2d and SyncBatchNorm in a module, in place.

        Args:
            module: any module; if it is a normalisation itself, a new module is returned.

        Returns:
            The module with its normalisations frozen.
        """
        if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
            frozen = cls(module.num_features, module.eps)
            if module.affine:
                frozen.weight = module.weight.detach().clone()
                frozen.bias = module.bias.detach().clone()
            frozen.running_mean = module.running_mean
            frozen.running_var = module.running_var
            frozen.num_batches_tracked = module.num_batches_tracked
            return frozen
        for name, child in module.named_children():
            converted = cls.convert_frozen_batchnorm(child)
            if converted is not child:
                module.add_module(name, converted)
        return module


class LayerNorm(nn.Module):
    """Normalisation over the channels of each pixel of (B, C, H, W).

    Args:
        normalized_shape: C.
        eps: added to the variance.
    """

    def __init__(self, normalized_shape: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(normalized_shape))
        self.bias = nn.Parameter(torch.zeros(normalized_shape))
        self.eps = eps
        self.normalized_shape = (normalized_shape,)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        x = x.movedim(1, -1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).movedim(
            -1, 1
        )


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(32, channels),
    "LN": LayerNorm,
}


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    """Make a normalisation layer.

    Args:
        norm: "BN", "SyncBN", "FrozenBN", "GN" (32 groups), "LN"; "" or None for no layer; or a
            function of the number of channels.
        out_channels: C.

    Returns:
        The layer, or None.

    Raises:
        KeyError: the name is not known.
    """
    if norm is None or norm == "":
        return None
    if isinstance(norm, str):
        if norm not in _NORMS:
            raise KeyError(f"get_norm: unknown norm {norm!r}. Known: {', '.join(_NORMS)}, or ''")
        norm = _NORMS[norm]
    return norm(out_channels)
