"""What the three models share: building from a config, images, vocabulary, targets, losses.

Legend: B batch, K classes, D CLIP width, M CLIP tokens, N instances, H W pixels.
"""

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
from ovformer.modeling.language.image_embedder import ImageEmbedder
from ovformer.modeling.meta_arch.execution import Execution
from ovformer.modeling.objective.criterion import build_criterion


class OVFormerBase(nn.Module):
    """A backbone, a head, and a criterion for training; subclasses define ``forward``.

    Args:
        backbone: from normalised images to a dict of features.
        sem_seg_head: from these and CLIP features to predictions.
        criterion: from predictions and targets to losses; None if there is no training.
        image_embedder: from a batch and a device to CLIP features (B, M, D).
        pixel_mean: mean of each channel, in the channel order of the images.
        pixel_std: standard deviation of each channel.
        size_divisibility: images are padded to multiples of this number of pixels; 0 takes the
            backbone's own number.
        detections_per_image: number of predictions per image or video.
        execution: how the network is run; None for the defaults.
    """

    # Whether the queries of the model see the frames of a record together, as one clip.
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
        image_embedder: Callable[[Sequence[Mapping[str, Any]], torch.device], Tensor],
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
        # No module: CLIP stays out of the state dict and of the optimizer.
        self.image_embedder = image_embedder
        # Buffers, so that they move with the model; not persistent, because released checkpoints
        # lack them and the config has them.
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.size_divisibility = (
            size_divisibility if size_divisibility > 0 else backbone.size_divisibility
        )
        self.detections_per_image = detections_per_image
        self.execution = execution or Execution()
        # The head's own forward only calls its two decoders: they are compiled one by one.
        self.execution.prepare_parts((backbone, *sem_seg_head.children()))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts that the config names.

        Raises:
            ValueError: the model sees clips and the decoder does not, or the other way round.
        """
        # Before anything is built: a large backbone takes seconds.
        cls.check_decoder(cfg)
        backbone = build_backbone(cfg)
        clip = cfg.MODEL.CLIP
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "criterion": build_criterion(cfg, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES),
            # The encoder is made on demand: with stored features no CLIP model is ever loaded.
            "image_embedder": ImageEmbedder(
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
        """Raise ValueError unless model and configured decoder both see clips, or both images."""
        decoder = cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME
        decoder_class = TRANSFORMER_DECODER_REGISTRY.get(decoder)
        # A decoder registered by another package need not know of clips.
        if getattr(decoder_class, "SEES_CLIPS", False) != cls.SEES_CLIPS:
            seen, prefix = ("clips", "Video") if cls.SEES_CLIPS else ("single images", "")
            raise ValueError(
                f"MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME: {decoder} does not go with "
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}, which sees "
                f"{seen}. Set it to {prefix}MultiScaleMaskedTransformerDecoder"
            )

    @property
    def device(self) -> torch.device:
        """The device of the model, to which it moves images and features."""
        return self.pixel_mean.device

    @property
    def num_classes(self) -> int:
        """K, the size of the current vocabulary; 0 if there is none yet."""
        return self.sem_seg_head.predictor.class_embed.num_classes

    @property
    def vocabulary(self) -> list[str] | None:
        """The K class names, or None where the text classifier has no names."""
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
            least_size: smallest height and width of the common size, in pixels.
        """
        sizes = [tuple(image.shape[-2:]) for image in images]
        normalized = [(x.to(self.device) - self.pixel_mean) / self.pixel_std for x in images]
        # Padding after the normalisation, with zeros: the mean colour.
        # A micro-batch is padded to the size of its whole batch: padding changes the features near
        # the border, so gradients would otherwise depend on how the batch is split.
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
            num_clips: number of clips that the frames belong to; None for images.

        Returns:
            The head's predictions, and the normalised and padded images.
        """
        images = self.normalize_images(
            [record["image"] for record in records], records[0].get("least_size", (0, 0))
        )
        clip_features = self.image_embedder(records, self.device)
        if num_clips is not None:
            # The alignment reads the embeddings of all frames of a clip as tokens of one image.
            clip_features = clip_features.flatten(0, 1).unflatten(0, (num_clips, -1))
        # Training chooses its own precision: the trainer calls the model under autocast.
        with nullcontext() if self.training else self.execution.make_precision_context(self.device):
            features = self.backbone(self.execution.lay_out(images.tensor, self.training))
            return self.sem_seg_head(features, clip_features), images

    def prepare_targets(
        self, records: Sequence[Mapping[str, Any]], padded_size: tuple[int, int]
    ) -> list[dict[str, Tensor]]:
        """Return the targets that the criterion compares predictions with.

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
            instance_counts: instances of each image of the whole batch, if these are the outputs
                of a part of it.

        Raises:
            ValueError: the model has no criterion, or one for another number of classes.
        """
        if self.criterion is None:
            raise ValueError("the model was built without a criterion, so it cannot be trained")
        # set_text_classifier changes the head only, the criterion keeps its weights per class.
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
    # Trained weights would replace those of timm anyway.
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
    """Return the ``instances`` of an image, or the list of those of a video's frames.

    Raises:
        ValueError: the record has no instances.
    """
    if "instances" not in record:
        name = record.get("file_name") or record.get("video_id", "a record")
        raise ValueError(
            f"{name} has no 'instances', which training needs. Call model.eval() before inference"
        )
    return record["instances"]
