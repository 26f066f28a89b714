"""The network. Importing this package registers its parts: backbones, heads, meta-architectures."""

from ovformer.modeling import backbone, decoders, meta_arch

__all__ = ["backbone", "decoders", "meta_arch"]
