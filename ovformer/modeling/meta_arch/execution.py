"""How a network is run: layout of its arrays in memory, precision of inference, compilation.

None of this changes weights or their names. Layout changes results by rounding only.

Legend: B batch, C channels, H W pixels.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ovformer.d2 import CfgNode

CHANNELS_LAST = ("auto", "always", "never")
PRECISIONS = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Execution:
    """Settings of how a network is run.

    Attributes:
        channels_last: whether the channels of a pixel are neighbours in memory: "auto" (for
            inference on CPUs, where it was measured to be faster), "always" or "never".
        precision: of inference, a key of :data:`PRECISIONS`; half types are used under autocast.
        compile_backend: of torch.compile; empty for no compilation.
    """

    channels_last: str = "auto"
    precision: str = "float32"
    compile_backend: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError for a setting that is not known."""
        # "eager" and other backends for debugging have tags by which PyTorch hides them.
        backends = torch.compiler.list_backends(exclude_tags=())
        for key, value, known in (
            ("MODEL.CHANNELS_LAST", self.channels_last, CHANNELS_LAST),
            ("TEST.PRECISION", self.precision, tuple(PRECISIONS)),
            ("MODEL.COMPILE", self.compile_backend, ("", *backends)),
        ):
            if value not in known:
                raise ValueError(f"{key}: expected one of {list(known)}, got {value!r}")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "Execution":
        """Read ``MODEL.CHANNELS_LAST``, ``TEST.PRECISION`` and ``MODEL.COMPILE``."""
        return cls(cfg.MODEL.CHANNELS_LAST, cfg.TEST.PRECISION, cfg.MODEL.COMPILE)

    def prepare_parts(self, parts: Iterable[nn.Module]) -> None:
        """Set the memory layout of weights, and mark parts for compilation at their first call."""
        for part in parts:
            # With "auto" PyTorch converts the weights in each convolution: training with the same
            # weights keeps the other layout.
            if self.channels_last == "always":
                part.to(memory_format=torch.channels_last)
            # In place, unlike torch.compile(part): a wrapper would add "_orig_mod" to the names of
            # parameters.
            if self.compile_backend:
                part.compile(backend=self.compile_backend)

    def lay_out(self, images: Tensor, training: bool) -> Tensor:
        """Return images (B, C, H, W) in the layout that the network then keeps."""
        # Layout propagates from the input through convolutions, so the images decide for all.
        last = self.channels_last == "always" or (
            self.channels_last == "auto" and images.device.type == "cpu" and not training
        )
        return images.contiguous(memory_format=torch.channels_last) if last else images

    def make_precision_context(self, device: torch.device) -> AbstractContextManager:
        """Return the context in which inference runs."""
        dtype = PRECISIONS[self.precision]
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
