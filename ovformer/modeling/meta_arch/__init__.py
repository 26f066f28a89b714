"""The three models: images, videos frame by frame, clips. Importing it registers them."""

from ovformer.modeling.meta_arch.clip_model import VideoOVFormer
from ovformer.modeling.meta_arch.frame_model import OVFormerVideo
from ovformer.modeling.meta_arch.image_model import OVFormer

__all__ = ["OVFormer", "OVFormerVideo", "VideoOVFormer"]
