"""The network of a model as a function of tensors alone, which can be exported.

The rest of a model, which selects and tracks instances, needs no network.

Legend: B images, or frames of one clip, Q queries, K classes, C channels, D CLIP width, H W pixels,
h w padded pixels / stride of the mask features.
"""

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ovformer.modeling.backbone.folded_norm import copy_without_norms
from ovformer.modeling.decoders.embedding_alignment import make_classifier_columns
from ovformer.modeling.meta_arch.base_model import OVFormerBase
from ovformer.modeling.tracks.postprocess import class_scores
from ovformer.ops.mask_resize import mask_logits

INPUTS = ("images", "clip_features", "text_embeddings")
_HEAD_OUTPUTS = (
    "pred_logits",
    "pred_object_logits",
    "mask_embed",
    "mask_features",
    "pred_embds",
)
OUTPUTS = ("scores", "class_logits", "object_logits", "mask_logits", "query_embeddings")


class ExportableNetwork(nn.Module):
    """Backbone and head of a model, in float32, with pixels and vocabulary as inputs.

    Args:
        model: in evaluation mode. It does not change.

    Attributes:
        sees_clips: whether the images are the frames of one clip.
        size_divisibility: images are padded, at the bottom and on the right, to multiples of this
            number of pixels.
    """

    def __init__(self, model: OVFormerBase) -> None:
        super().__init__()
        # Copies: freezing this network must not freeze the model.
        self.backbone = copy_without_norms(model.backbone)
        self.head = copy.deepcopy(model.sem_seg_head)
        self.requires_grad_(False)  # the file then runs without gradients by default
        self.register_buffer("pixel_mean", model.pixel_mean)
        self.register_buffer("pixel_std", model.pixel_std)
        self.sees_clips = model.SEES_CLIPS
        self.size_divisibility = model.size_divisibility
        self._is_bgr = model.image_embedder.image_format == "BGR"
        self._normalizes_clip_features = model.image_embedder.normalize

    def forward(
        self, images: Tensor, clip_features: Tensor, text_embeddings: Tensor
    ) -> dict[str, Tensor]:
        """Predict for images, each by itself, or for the frames of one clip together.

        Args:
            images: uint8 (B, 3, H, W), RGB. In a graph, sides exceed ``size_divisibility``.
            clip_features: float32 (B, D), CLIP's embedding of each image, not normalised.
            text_embeddings: float32 (K, D), CLIP's embeddings of the class names, of any length.

        Returns:
            Float32, for images: ``scores`` (B, Q, K), the geometric mean of the probabilities of
            class and objectness; ``class_logits`` (B, Q, K); ``object_logits`` (B, Q, 2), of object
            and no object; ``mask_logits`` (B, Q, h, w); ``query_embeddings`` (B, Q, C), by which
            queries of frames are matched over time. For a clip, all but ``mask_logits`` lack the
            dimension B.
        """
        features = self.backbone(self._prepare(images))
        if self._normalizes_clip_features:
            clip_features = F.normalize(clip_features, dim=1)
        clip_features = clip_features.unsqueeze(0 if self.sees_clips else 1)
        # The vocabulary is a buffer of the head; as an argument it becomes an input of the graph.
        vocabulary = {"predictor.class_embed.zs_weight": make_classifier_columns(text_embeddings)}
        outputs = functional_call(self.head, vocabulary, (features, clip_features))
        found = [outputs[key] for key in _HEAD_OUTPUTS]
        if self.sees_clips:
            found = [value[0] for value in found]  # there is one clip
        logits, object_logits, mask_embed, mask_features, embeddings = found
        if self.sees_clips:  # ONNX Runtime needs the same dimensions on both sides
            mask_embed = mask_embed.expand(mask_features.shape[0], -1, -1)
        return {
            "scores": class_scores(logits, object_logits),
            "class_logits": logits[..., :-1],  # without the column of "no object"
            "object_logits": object_logits,
            "mask_logits": mask_logits(mask_embed, mask_features),
            "query_embeddings": embeddings,
        }

    def _prepare(self, images: Tensor) -> Tensor:
        """Return the input of the backbone: normalised images, padded with zeros."""
        if self._is_bgr:
            images = images.flip(1)
        # Normalised first: the padding has to be 0 for the network, as in training.
        normalized = (images.to(torch.float32) - self.pixel_mean) / self.pixel_std
        below, right = (self._compute_padding(side) for side in images.shape[-2:])
        return F.pad(normalized, (0, right, 0, below))

    def _compute_padding(self, side: int) -> int:
        """Return the padding of a side in pixels, in a form that keeps symbolic sizes simple."""
        whole = (side + self.size_divisibility - 1) // self.size_divisibility
        return whole * self.size_divisibility - side
