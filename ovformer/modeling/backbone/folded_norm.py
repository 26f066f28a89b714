"""Frozen batch norms as part of the convolution before them, where no gradient is wanted.

A frozen norm multiplies each channel by a constant and adds another. Both can be done to the
convolution's weights instead of its output. Results change by rounding only, and a pass over the
largest arrays of the network is saved. Weights, their names and training do not change.

Legend: B batch, C channels, H W pixels.
"""

import copy

import torch
from timm.models import FeatureListNet
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from ovformer.d2 import FrozenBatchNorm2d


class FoldingConv2d(nn.Conv2d):
    """A convolution that does the work of the frozen norm after it, unless gradients are on.

    Args:
        conv: the convolution that this module replaces.
        norm: the norm after it, which is applied to nothing else.

    Attributes:
        folds: set it to False to have the norm do its own work.
    """

    def __init__(self, conv: nn.Conv2d, norm: FrozenBatchNorm2d) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            device="meta",
        )
        # The same parameters, not copies: "meta" above allocates nothing for them.
        self.weight, self.bias = conv.weight, conv.bias
        self.folds = True
        self._norm = (norm,)  # in a tuple, so that it is no submodule and in no state dict
        self._folded: tuple[tuple, Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W), and normalise where no gradient is wanted."""
        if not self.is_folding():
            return super().forward(x)
        return self._conv_forward(x, *self._folded_parameters())

    def is_folding(self) -> bool:
        """Return whether the convolution does the norm's work now."""
        return self.folds and not torch.is_grad_enabled()

    def _folded_parameters(self) -> tuple[Tensor, Tensor]:
        """Return folded weight and bias, computed again only after one of their sources changed."""
        (norm,) = self._norm
        sources = (self.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
        # A compiled graph can't ask for addresses, and inference tensors have no version: nothing
        # would tell that a kept result is out of date.
        if torch.compiler.is_compiling() or any(x.is_inference() for x in sources):
            return self._fold(*sources)
        # An in-place change raises a tensor's version; another tensor has another address.
        state = tuple((x.data_ptr(), x._version) for x in sources)
        if self._folded is None or self._folded[0] != state:
            # Kept beyond this call, so it must not become an inference tensor of the caller's mode.
            with torch.inference_mode(False), torch.no_grad():
                self._folded = (state, *self._fold(*sources))
        return self._folded[1:]

    def _fold(
        self, weight: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return w s / sqrt(v + eps) and b - m s / sqrt(v + eps), per output channel."""
        (norm,) = self._norm
        scale = scale * (variance + norm.eps).rsqrt()
        bias = shift - mean * scale
        if self.bias is not None:
            bias = bias + self.bias * scale
        return weight * scale.view(-1, 1, 1, 1), bias

    def to_plain_convolution(self) -> nn.Conv2d:
        """Return an ordinary convolution that always does the norm's work, too."""
        with torch.no_grad():
            weight, bias = self._folded_parameters()
        conv = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            padding_mode=self.padding_mode,
            device="meta",
        )
        conv.weight, conv.bias = (nn.Parameter(x, requires_grad=False) for x in (weight, bias))
        return conv

    def train(self, mode: bool = True) -> "FoldingConv2d":
        """Switch the mode, and drop folded weights: a change through ``data`` is not noticed."""
        self._folded = None
        return super().train(mode)

    def __getstate__(self) -> dict:
        """Leave the folded weights out of copies and pickles: they can be computed again."""
        return {**self.__dict__, "_folded": None}


class FoldedNorm(FrozenBatchNorm2d):
    """A frozen norm that does nothing while the convolution before it does its work."""

    def __init__(self, norm: FrozenBatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps)
        for name, constant in norm.named_buffers():
            setattr(self, name, constant)
        # In a tuple, as the norm in FoldingConv2d; fold_frozen_norms fills it, because each of the
        # two refers to the other.
        self.conv: tuple[FoldingConv2d, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W), unless the convolution did."""
        return x if self.conv[0].is_folding() else super().forward(x)


def fold_frozen_norms(network: nn.Module) -> None:
    """Let convolutions do the work of the frozen norms that follow them, in place.

    Args:
        network: of timm. A convolution keeps its norm where it is not known what follows it.
    """
    # A list, because the loop replaces children while it walks over them.
    for parent in list(network.modules()):
        for conv_name, norm_name in _list_consecutive(parent):
            conv, norm = (parent.get_submodule(name) for name in (conv_name, norm_name))
            # Exact types: a subclass may do more in its forward, such as an activation.
            if type(conv) is nn.Conv2d and type(norm) is FrozenBatchNorm2d:
                folded = FoldedNorm(norm)
                folding = FoldingConv2d(conv, folded)
                folded.conv = (folding,)
                parent.add_module(conv_name, folding)
                parent.add_module(norm_name, folded)


def _list_consecutive(parent: nn.Module) -> list[tuple[str, str]]:
    """Return pairs of children: the second is applied to the output of the first, and only to that.

    The children may be of any kind.
    """
    # The order of children says nothing about the order of calls, except in modules whose forward
    # is known: timm's sequences, and the blocks of its ResNets.
    names = [name for name, _ in parent.named_children()]
    if type(parent) in (nn.Sequential, FeatureListNet):
        return list(zip(names, names[1:], strict=False))
    if type(parent) in (BasicBlock, Bottleneck):
        return [(f"conv{n}", f"bn{n}") for n in (1, 2, 3) if f"conv{n}" in names]
    return []


def stop_folding(module: nn.Module) -> nn.Module:
    """Let all norms of a network do their own work, in place; return the network."""
    for part in module.modules():
        if isinstance(part, FoldingConv2d):
            part.folds = False
    return module


def copy_without_norms(network: nn.Module) -> nn.Module:
    """Return a copy for inference only: ordinary convolutions that include their norms."""
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, part in list(parent.named_children()):
            if isinstance(part, FoldingConv2d):
                parent.add_module(name, part.to_plain_convolution())
            elif isinstance(part, FoldedNorm):
                parent.add_module(name, nn.Identity())
    return network
