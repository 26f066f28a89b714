"""Unified embedding alignment: the class head that takes queries to CLIP's space.

Queries see CLIP's embedding of the image, and are compared with CLIP's embeddings of class names.

Legend: B batch, Q queries, K classes, C channels, D CLIP width, M image tokens (1 for an image or a
frame, T for a clip of T frames).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovformer.d2 import CfgNode, configurable
from ovformer.modeling.decoders.transformer_layers import CrossAttentionLayer
from ovformer.modeling.language.text_classifier import load_text_classifier
from ovformer.paths import resolve_path


class UnifiedEmbeddingAlignment(nn.Module):
    """Class logits of queries: scaled cosines between aligned queries and class names.

    Source: the unified embedding alignment of OVFormer, https://arxiv.org/abs/2407.07427.

    Args:
        query_dim: C.
        clip_dim: D.
        text_embeddings: (K, D), the text classifier; rows need not have unit length. None for a
            head without a vocabulary, which :meth:`set_text_classifier` gives it before it is used.
        class_names: K names, where they are known.
        hidden_dim: width of the MLP from C to D; 0 is D / 2.
        num_heads: heads of the attention to the image, a divisor of D.
        temperature: factor of the cosines.

    Raises:
        ValueError: the widths or numbers do not fit together.
    """

    @configurable
    def __init__(
        self,
        query_dim: int,
        *,
        clip_dim: int,
        text_embeddings: Tensor | None = None,
        class_names: Sequence[str] | None = None,
        hidden_dim: int = 0,
        num_heads: int = 8,
        temperature: float = 50.0,
    ) -> None:
        super().__init__()
        hidden_dim = hidden_dim or clip_dim // 2
        self.linear = nn.Sequential(
            nn.Linear(query_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, clip_dim)
        )
        self.cross_attention = CrossAttentionLayer(clip_dim, num_heads)
        self.clip_dim = clip_dim
        self.temperature = temperature
        # A buffer, as published: checkpoints hold it, and it follows the model to its device.
        self.register_buffer("zs_weight", torch.zeros(clip_dim, 1))
        self.class_names: list[str] | None = None
        if text_embeddings is not None:
            self.set_text_classifier(text_embeddings, class_names)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Load ``MODEL.MASK_FORMER.CLIP_TEXT_PATH``, if it is set, and compare it with the config.

        Raises:
            ValueError: the classifier has another number of classes or another width than the
                config says.
        """
        node = cfg.MODEL.MASK_FORMER
        arguments = {
            "query_dim": node.HIDDEN_DIM,
            "clip_dim": cfg.MODEL.CLIP.EMBED_DIM,
            "hidden_dim": node.ALIGNMENT_HIDDEN_DIM,
            "num_heads": node.ALIGNMENT_NHEADS,
            "temperature": node.CLASS_TEMPERATURE,
        }
        # A model for inference gets its vocabulary later.
        if not node.CLIP_TEXT_PATH:
            return arguments
        classifier = load_text_classifier(resolve_path(node.CLIP_TEXT_PATH))
        # The keys also shape other parts of the model, so the file must not overrule them.
        num_classes, width = classifier.weights.shape
        expected = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if num_classes != expected:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {expected}, but the text classifier "
                f"{node.CLIP_TEXT_PATH!r} has {num_classes} classes. Set the key to {num_classes}, "
                "or MODEL.MASK_FORMER.CLIP_TEXT_PATH to a classifier of the data set's classes"
            )
        if width != cfg.MODEL.CLIP.EMBED_DIM:
            raise ValueError(
                f"MODEL.CLIP.EMBED_DIM is {cfg.MODEL.CLIP.EMBED_DIM}, but the text classifier "
                f"{node.CLIP_TEXT_PATH!r} has width {width}. Both have to be those of the CLIP "
                f"model {cfg.MODEL.CLIP.NAME!r}"
            )
        return {
            **arguments,
            "text_embeddings": classifier.weights,
            "class_names": classifier.names,
        }

    @property
    def num_classes(self) -> int:
        """K, without "no object"; 0 while there is no vocabulary."""
        return self.zs_weight.shape[1] - 1

    def set_text_classifier(self, weights: Tensor, names: Sequence[str] | None = None) -> None:
        """Replace the vocabulary.

        Args:
            weights: (K, D); rows need not have unit length.
            names: K class names, where they are known.

        Raises:
            ValueError: the weights have another shape, or the names another number.
        """
        if weights.dim() != 2 or weights.shape[0] < 1 or weights.shape[1] != self.clip_dim:
            raise ValueError(
                f"text classifier: expected a shape of (classes, {self.clip_dim}), got "
                f"{tuple(weights.shape)}. Its width has to be that of MODEL.CLIP.EMBED_DIM"
            )
        if names is not None and len(names) != len(weights):
            raise ValueError(
                f"text classifier: {len(names)} class names for {len(weights)} classes"
            )
        self.zs_weight = make_classifier_columns(weights.detach().to(self.zs_weight))
        self.class_names = None if names is None else list(names)

    def forward(self, queries: Tensor, clip_features: Tensor) -> Tensor:
        """Classify queries.

        Args:
            queries: (B, Q, C).
            clip_features: (B, M, D), CLIP's embeddings of the image or the frames.

        Returns:
            (B, Q, K + 1) logits, float32 also under autocast; the last is "no object".

        Raises:
            ValueError: there is no vocabulary yet, or the CLIP features have another width than the
                text classifier.
        """
        if self.num_classes == 0:
            raise ValueError(
                "the model has no vocabulary, so it can't classify. Set "
                "MODEL.MASK_FORMER.CLIP_TEXT_PATH to a file of tools/build_text_classifier.py or "
                "to a .npy file of shape (classes, D), or call set_text_classifier"
            )
        if clip_features.dim() != 3 or clip_features.shape[2] != self.clip_dim:
            raise ValueError(
                f"clip_features: expected (batch, tokens, {self.clip_dim}), got "
                f"{tuple(clip_features.shape)}. They have to come from the CLIP model of the text "
                "classifier (MODEL.CLIP.NAME, MODEL.CLIP.EMBED_DIM)"
            )
        # The MLP brings queries to CLIP's width only. Attending to CLIP's embedding of the image
        # brings them to CLIP's space, where they can be compared with class names.
        aligned = self.cross_attention(self.linear(queries), clip_features, clip_features)
        # The temperature would multiply the rounding of half types: cosines are float32.
        with torch.autocast(aligned.device.type, enabled=False):
            return self.temperature * F.normalize(aligned.float(), dim=2) @ self.zs_weight


def make_classifier_columns(weights: Tensor) -> Tensor:
    """Return text embeddings (K, D) as ``zs_weight`` (D, K + 1).

    All columns have unit length except the last, which is zero: the logit of "no object" is always
    zero.
    """
    columns = F.normalize(weights.t(), dim=0)
    return torch.cat((columns, columns.new_zeros(columns.shape[0], 1)), dim=1)
