"""CLIP's embeddings of the images of a batch: stored ones, or computed.

Legend: B batch, M CLIP tokens (1 for an image or a frame), D CLIP width, S side of CLIP's input in
pixels, H W pixels.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ovformer.modeling.language.clip_encoder import CLIPEncoder

logger = logging.getLogger(__name__)


class ImageEmbedder:
    """Returns CLIP's embeddings of images: those stored in the records, or else computed ones.

    The encoder is loaded when it is first needed. It is frozen and no part of the model: it is in
    no state dict and no optimizer.

    Args:
        encoder_factory: called with ``device=...``, returns the encoder.
        clip_dim: D.
        image_size: side in pixels of the images that the encoder takes.
        normalize: L2-normalise the features.
        image_format: channel order of a record's ``image``, "RGB" or "BGR".
    """

    def __init__(
        self,
        encoder_factory: Callable[..., CLIPEncoder],
        *,
        clip_dim: int,
        image_size: int,
        normalize: bool = False,
        image_format: str = "RGB",
    ) -> None:
        self.encoder_factory = encoder_factory
        self.clip_dim = clip_dim
        self.image_size = image_size
        self.normalize = normalize
        self.image_format = image_format
        self._encoder: CLIPEncoder | None = None
        self._encoder_device: torch.device | None = None

    def __call__(self, records: Sequence[Mapping[str, Any]], device: torch.device) -> Tensor:
        """Return the CLIP features of each record, float32 (B, M, D).

        Args:
            records: with ``clip_features`` (M, D), or ``clip_image`` uint8 (3, S, S), or else
                ``image`` uint8 (3, H, W).
            device: of the result.

        Raises:
            ValueError: stored features are not (M, D), or the encoder is not that of the config.
        """
        features: list[Tensor | None] = [record.get("clip_features") for record in records]
        for record, stored in zip(records, features, strict=True):
            if stored is not None and (stored.dim() != 2 or stored.shape[1] != self.clip_dim):
                raise ValueError(
                    f"clip_features of {record.get('file_name', 'a record')}: expected shape "
                    f"(tokens, {self.clip_dim}), got {tuple(stored.shape)}. MODEL.CLIP.EMBED_DIM "
                    "has to be the width of the CLIP model that the features were saved with "
                    "(tools/save_clip_features.py)"
                )
        # Only records without stored features need the encoder; often none does.
        absent = [index for index, stored in enumerate(features) if stored is None]
        if absent:
            computed = self._encode([records[index] for index in absent], device)
            for index, embedding in zip(absent, computed, strict=True):
                features[index] = embedding[None]
        # Stored features may be float16 to save space; the alignment computes in float32.
        stacked = torch.stack([x.to(device, torch.float32) for x in features])
        return F.normalize(stacked, dim=2) if self.normalize else stacked

    def _encode(self, records: Sequence[Mapping[str, Any]], device: torch.device) -> Tensor:
        """Compute the features of records that have none, (len(records), D)."""
        encoder = self._load_encoder(device)
        images = [self._clip_image(record, encoder) for record in records]
        with torch.no_grad():
            return encoder.encode_image(torch.stack(images).to(device))

    def _clip_image(self, record: Mapping[str, Any], encoder: CLIPEncoder) -> Tensor:
        """Return the input of the encoder, uint8 RGB (3, S, S)."""
        if "clip_image" in record:
            return record["clip_image"]
        # The image is the network's input, already augmented: CLIP then sees what the network sees.
        image = record["image"] if self.image_format == "RGB" else record["image"].flip(0)
        return encoder.preprocess(image.permute(1, 2, 0).byte().cpu().numpy())

    def _load_encoder(self, device: torch.device) -> CLIPEncoder:
        """Return the encoder, which the first call on a device loads."""
        if self._encoder is None or self._encoder_device != device:
            logger.info(
                "Records without clip_features: the model computes them with the CLIP model of "
                "MODEL.CLIP.NAME. tools/save_clip_features.py stores them, which is faster"
            )
            encoder = self.encoder_factory(device=device)
            # Checked here, because only the loaded model knows its sizes: a wrong width would end
            # in a shape error deep inside the alignment.
            for key, wanted, got in (
                ("EMBED_DIM", self.clip_dim, encoder.embed_dim),
                ("IMAGE_SIZE", self.image_size, encoder.image_size),
            ):
                if wanted != got:
                    raise ValueError(
                        f"MODEL.CLIP.{key} is {wanted}, but the model of MODEL.CLIP.NAME has {got}"
                    )
            self._encoder, self._encoder_device = encoder, device
        return self._encoder
