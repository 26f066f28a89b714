"""The network. Importing this package registers its parts: backbones, heads, meta-architectures."""

from ovformer.modeling import (
    backbone,
    head,
    ovformer_model,
    ovformer_model_video,
    pixel_decoder,
    query_decoder,
    video_ovformer_model,
)

__all__ = [
    "backbone",
    "head",
    "ovformer_model",
    "ovformer_model_video",
    "pixel_decoder",
    "query_decoder",
    "video_ovformer_model",
]
