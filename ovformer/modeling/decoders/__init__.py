"""From feature maps to queries: pixel decoder, query decoder, alignment with CLIP, the head."""

from ovformer.modeling.decoders import head, pixel_decoder, query_decoder

__all__ = ["head", "pixel_decoder", "query_decoder"]
