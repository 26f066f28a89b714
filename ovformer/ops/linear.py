"""Linear layers, and a faster way to compute them for inference on a CPU.

Legend: ... leading dimensions, I input channels, O output channels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = False) -> Tensor:
    """Return ``x @ weight.T + bias``, and the positive part of it if asked.

    Without gradients, float32 on a CPU is left to oneDNN, which adds the bias and takes the
    positive part while the result is in a register, and multiplies faster than the library that
    PyTorch calls (on processors of AMD). The results differ by rounding.

    Args:
        x: (..., I).
        weight: (O, I).
        bias: (O,).
        relu: take the positive part.

    Returns:
        (..., O).
    """
    if _can_use_onednn(x, weight):
        activation = "relu" if relu else "none"
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")
    x = F.linear(x, weight, bias)
    return F.relu_(x) if relu else x


def _can_use_onednn(x: Tensor, weight: Tensor) -> bool:
    """Tell whether oneDNN may compute: what traces a network has to see PyTorch's own operators."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
