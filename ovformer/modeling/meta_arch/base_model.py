"""What the three models share: building from a config, images, CLIP features, vocabulary, losses.

Legend: B batch, K classes, D CLIP width, M CLIP tokens, N instances, H W pixels.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovformer.d2 import (
    CfgNode,
    ImageList,
    build_backbone,
    build_model,
    build_sem_seg_head,
    configurable,
)
from ovformer.modeling.decoders.query_decoder import TRANSFORMER_DECODER_REGISTRY
from ovformer.modeling.language.clip_encoder import CLIPEncoder
from ovformer.modeling.meta_arch.execution import Execution
from ovformer.modeling.objective.criterion import build_criterion

logger = logging.getLogger(__name__)


class CLIPFeatureSource:
    """CLIP's embeddings of the images of a batch: the stored ones, or computed.

    The encoder is made when it is first needed. It is frozen and no part of the model: it is in no
    state dict and no optimizer.

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
            device: where the features are wanted.

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
        absent = [index for index, stored in enumerate(features) if stored is None]
        if absent:
            computed = self._encode([records[index] for index in absent], device)
            for index, embedding in zip(absent, computed, strict=True):
                features[index] = embedding[None]
        stacked = torch.stack([x.to(device, torch.float32) for x in features])
        return F.normalize(stacked, dim=2) if self.normalize else stacked

    def _encode(self, records: Sequence[Mapping[str, Any]], device: torch.device) -> Tensor:
        """Compute the features of records that have none, (len(records), D)."""
        encoder = self._encoder_on(device)
        images = [self._clip_image(record, encoder) for record in records]
        with torch.no_grad():
            return encoder.encode_image(torch.stack(images).to(device))

    def _clip_image(self, record: Mapping[str, Any], encoder: CLIPEncoder) -> Tensor:
        """Return the image that CLIP sees, uint8 RGB (3, S, S)."""
        if "clip_image" in record:
            return record["clip_image"]
        image = record["image"] if self.image_format == "RGB" else record["image"].flip(0)
        return encoder.preprocess(image.permute(1, 2, 0).byte().cpu().numpy())

    def _encoder_on(self, device: torch.device) -> CLIPEncoder:
        """Return the encoder, made at the first call."""
        if self._encoder is None or self._encoder_device != device:
            logger.info(
                "Records without clip_features: the model computes them with the CLIP model of "
                "MODEL.CLIP.NAME. tools/save_clip_features.py stores them, which is faster"
            )
            encoder = self.encoder_factory(device=device)
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


class OVFormerBase(nn.Module):
    """A backbone, a head, and a criterion for training; subclasses define ``forward``.

    Args:
        backbone: from normalised images to a dict of features.
        sem_seg_head: from these and CLIP features to predictions.
        criterion: from predictions and targets to losses; None if there is no training.
        clip_features: from a batch and a device to CLIP features (B, M, D).
        pixel_mean: mean of each channel, in the channel order of the images.
        pixel_std: standard deviation of each channel.
        size_divisibility: images are padded to multiples of so many pixels; 0 takes the
            backbone's own number.
        detections_per_image: predictions kept per image or video.
        execution: how the network is run; None for the defaults.
    """

    # Whether a record of several frames is seen as one clip.
    SEES_CLIPS = False
    # State-dict entries that follow from the configured vocabulary and class frequencies. A
    # checkpoint must not replace them, and may have them for another number of classes.
    VOCABULARY_KEYS = (
        "sem_seg_head.predictor.class_embed.zs_weight",
        "criterion.empty_weight",
        "criterion.empty_object_weight",
        "criterion.freq_weight",
    )

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        sem_seg_head: nn.Module,
        criterion: nn.Module | None,
        clip_features: Callable[[Sequence[Mapping[str, Any]], torch.device], Tensor],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int,
        detections_per_image: int,
        execution: Execution | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.clip_features = clip_features
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.size_divisibility = (
            size_divisibility if size_divisibility > 0 else backbone.size_divisibility
        )
        self.detections_per_image = detections_per_image
        self.execution = execution or Execution()
        self.execution.prepare((backbone, *sem_seg_head.children()))  # the head is its two decoders

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts that the config names.

        Raises:
            ValueError: the model sees clips and the decoder does not, or the other way round.
        """
        cls.check_decoder(cfg)
        backbone = build_backbone(cfg)
        clip = cfg.MODEL.CLIP
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "criterion": build_criterion(cfg, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES),
            "clip_features": CLIPFeatureSource(
                partial(CLIPEncoder.from_pretrained, clip.NAME, clip.PRETRAINED),
                clip_dim=clip.EMBED_DIM,
                image_size=clip.IMAGE_SIZE,
                normalize=clip.NORMALIZE_IMAGE_FEATURES,
                image_format=cfg.INPUT.FORMAT,
            ),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "size_divisibility": cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "execution": Execution.from_config(cfg),
        }

    @classmethod
    def check_decoder(cls, cfg: CfgNode) -> None:
        """Raise ValueError if the model sees clips and the configured decoder does not, or v.v."""
        decoder = cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME
        decoder_class = TRANSFORMER_DECODER_REGISTRY.get(decoder)
        if getattr(decoder_class, "SEES_CLIPS", False) != cls.SEES_CLIPS:
            raise ValueError(
                f"MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME: {decoder} does not go with "
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}, which sees "
                f"{'clips' if cls.SEES_CLIPS else 'single images'}. Set it to "
                f"{'Video' * cls.SEES_CLIPS}MultiScaleMaskedTransformerDecoder"
            )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    @property
    def num_classes(self) -> int:
        """K, the size of the current vocabulary."""
        return self.sem_seg_head.predictor.class_embed.num_classes

    @property
    def vocabulary(self) -> list[str] | None:
        """The K class names, or None where the text classifier came without names."""
        return self.sem_seg_head.predictor.class_embed.class_names

    def set_text_classifier(self, weights: Tensor, names: Sequence[str] | None = None) -> None:
        """Replace the vocabulary, for inference on other classes.

        Args:
            weights: (K, D) embeddings of the class names; any K.
            names: the K class names.

        Raises:
            ValueError: the width or the number of names does not fit.
        """
        self.sem_seg_head.predictor.class_embed.set_text_classifier(weights, names)

    def normalize_images(
        self, images: Sequence[Tensor], least_size: tuple[int, int] = (0, 0)
    ) -> ImageList:
        """Normalise images and pad them, at the bottom and on the right, to a common size.

        Args:
            images: (3, H, W) each, 0 to 255.
            least_size: height and width in pixels, which the common size is no less than.
        """
        sizes = [tuple(image.shape[-2:]) for image in images]
        normalized = [(x.to(self.device) - self.pixel_mean) / self.pixel_std for x in images]
        normalized = [
            pad_masks(image, tuple(map(max, size, least_size)))
            for image, size in zip(normalized, sizes, strict=True)
        ]
        return ImageList(ImageList.from_tensors(normalized, self.size_divisibility).tensor, sizes)

    def run_network(
        self, records: Sequence[Mapping[str, Any]], num_clips: int | None = None
    ) -> tuple[dict[str, Any], ImageList]:
        """Run the network on images, or on the frames of clips of equal length.

        Args:
            records: of images or frames, the frames of a clip after each other.
            num_clips: into how many clips the frames are to be cut; None is for images.

        Returns:
            The head's predictions, and the normalised and padded images.
        """
        images = self.normalize_images(
            [record["image"] for record in records], records[0].get("least_size", (0, 0))
        )
        clip_features = self.clip_features(records, self.device)
        if num_clips is not None:  # the alignment takes the frames' embeddings as tokens
            clip_features = clip_features.flatten(0, 1).unflatten(0, (num_clips, -1))
        with nullcontext() if self.training else self.execution.inference_precision(self.device):
            features = self.backbone(self.execution.lay_out(images.tensor, self.training))
            return self.sem_seg_head(features, clip_features), images

    def prepare_targets(
        self, records: Sequence[Mapping[str, Any]], padded_size: tuple[int, int]
    ) -> list[dict[str, Tensor]]:
        """Return what the criterion compares with.

        Args:
            records: with ``instances``, which have gt_classes (N,) and gt_masks.
            padded_size: height and width of the padded images.

        Returns:
            For each image ``labels`` (N,) and ``masks`` (N, *padded_size) bool.

        Raises:
            ValueError: a record has no instances.
        """
        targets = []
        for record in records:
            instances = get_instances(record).to(self.device)
            masks = pad_masks(instances.gt_masks.tensor, padded_size)
            targets.append({"labels": instances.gt_classes, "masks": masks})
        return targets

    def instance_counts(self, record: Mapping[str, Any]) -> list[int]:
        """Return the number of instances of each target that a record becomes in training.

        Raises:
            ValueError: the record has no instances.
        """
        return [len(get_instances(record))]

    @staticmethod
    def least_size(records: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
        """Return the height and width, in pixels, that the images or clips of a batch fit in."""
        images = [record["image"] for record in records]
        first_frames = [image if isinstance(image, Tensor) else image[0] for image in images]
        return tuple(max(frame.shape[axis] for frame in first_frames) for axis in (-2, -1))

    def compute_losses(
        self,
        outputs: Mapping[str, Any],
        targets: Sequence[Mapping[str, Tensor]],
        instance_counts: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Return the weighted losses by name.

        Args:
            outputs: of the head.
            targets: of :meth:`prepare_targets`.
            instance_counts: instances of each image of the whole batch, if this is a part of it.

        Raises:
            ValueError: the model cannot be trained as it is.
        """
        if self.criterion is None:
            raise ValueError("the model was built without a criterion, so it cannot be trained")
        if self.criterion.num_classes != self.num_classes:
            raise ValueError(
                f"the model's criterion is for {self.criterion.num_classes} classes, but its text "
                f"classifier has {self.num_classes}. set_text_classifier is for inference; to "
                "train on other classes, set MODEL.MASK_FORMER.CLIP_TEXT_PATH and "
                "MODEL.SEM_SEG_HEAD.NUM_CLASSES"
            )
        weights = self.criterion.weight_dict
        losses = self.criterion(outputs, targets, instance_counts)
        return {name: loss * weights[name] for name, loss in losses.items()}


def build_without_vocabulary(cfg: CfgNode, device: str) -> nn.Module:
    """Build a model of random weights that has no vocabulary yet, for inference.

    Neither the text classifier nor anything of the training set is read, and nothing is downloaded.
    Set a vocabulary with :meth:`OVFormerBase.set_text_classifier`.

    Args:
        cfg: the config.
        device: where the model is.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    cfg.MODEL.TIMM.PRETRAINED = False
    cfg.MODEL.MASK_FORMER.CLIP_TEXT_PATH = ""
    # The criterion is not used: one class is enough for it, without the counts of a training set.
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 1
    cfg.MODEL.MASK_FORMER.CAT_INFO_PATH = ""
    cfg.DATASETS.TRAIN = ()
    return build_model(cfg)


def pad_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Pad masks (..., H, W) with zeros, as their images were, to a height and width in pixels."""
    height, width = masks.shape[-2:]
    return F.pad(masks, (0, size[1] - width, 0, size[0] - height))


def get_instances(record: Mapping[str, Any]) -> Any:
    """Return the ``instances`` of a record: of an image, or a list of those of a video's frames.

    Raises:
        ValueError: there are none.
    """
    if "instances" not in record:
        name = record.get("file_name") or record.get("video_id", "a record")
        raise ValueError(
            f"{name} has no 'instances', which training needs. Call model.eval() before inference"
        )
    return record["instances"]
