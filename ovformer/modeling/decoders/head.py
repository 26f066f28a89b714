"""The head of all three models: pixel decoder and query decoder.

Legend: B batch, D CLIP width, M CLIP tokens, H W pixels.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ovformer.d2 import SEM_SEG_HEADS_REGISTRY, CfgNode, ShapeSpec, configurable
from ovformer.modeling.decoders.query_decoder import TRANSFORMER_DECODER_REGISTRY


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """From backbone features and CLIP features to predictions.

    Args:
        pixel_decoder: from backbone features to mask features and a list of features.
        predictor: query decoder, from these and CLIP features to predictions.
    """

    @configurable
    def __init__(self, *, pixel_decoder: nn.Module, predictor: nn.Module) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """Build the decoders that the config names."""
        pixel_decoder = SEM_SEG_HEADS_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME)
        predictor = TRANSFORMER_DECODER_REGISTRY.get(cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME)
        return {
            "pixel_decoder": pixel_decoder(cfg, input_shape),
            "predictor": predictor(cfg, cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM),
        }

    def forward(self, features: Mapping[str, Tensor], clip_features: Tensor) -> dict[str, Any]:
        """Predict a mask, a class and an objectness for each query.

        Args:
            features: name -> (B, channels, H, W), from the backbone.
            clip_features: (B, M, D).

        Returns:
            The query decoder's predictions.
        """
        mask_features, multi_scale_features = self.pixel_decoder(features)
        return self.predictor(multi_scale_features, mask_features, clip_features)
