"""Linear layers, and a faster way to compute them for inference on a CPU.

Legend: ... leading dimensions, I input channels, O output channels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = False) -> Tensor:
    """Return ``x @ weight.T + bias``, optionally followed by a ReLU.

    Without gradients, oneDNN computes float32 on a CPU: it adds the bias and applies the ReLU
    while the result is in a register, and on processors of AMD it multiplies faster than the
    library that PyTorch calls. The results differ by rounding.

    Args:
        x: (..., I).
        weight: (O, I).
        bias: (O,).
        relu: apply a ReLU.

    Returns:
        (..., O).
    """
    if _can_use_onednn(x, weight):
        activation = "relu" if relu else "none"
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")
    x = F.linear(x, weight, bias)
    # In place, as the gradient of a ReLU needs its result alone.
    return F.relu_(x) if relu else x


def _can_use_onednn(x: Tensor, weight: Tensor) -> bool:
    """Return whether oneDNN may compute; a trace must see PyTorch's own operators instead."""
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
