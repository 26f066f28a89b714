"""The training objective: matching, then losses of class, objectness and mask for each layer.

The masks of an image are (N, H, W), those of a clip (N, T, H, W). Points are drawn for each mask:
in a clip for each instance and frame. Numbers of instances count a clip as one image.

Sources: Mask2Former, https://arxiv.org/abs/2112.01527 (losses of masks at points); the federated
class loss of https://arxiv.org/abs/2103.07461.

Legend: B batch, T frames of a clip, Q queries, N matched instances of the batch, K classes, P
points, Cm channels of the mask features, h w their height and width, H W those of the padded image.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovformer.d2 import (
    CfgNode,
    comm,
    get_uncertain_point_coords_with_randomness,
    point_sample,
)
from ovformer.modeling.objective.federated_loss import (
    federated_class_loss,
    freq_weight_from_config,
    sample_federated_classes,
)
from ovformer.modeling.objective.losses import dice_loss, mask_bce_loss
from ovformer.modeling.objective.matcher import HungarianMatcher

CLASS_LOSS_NORMS = ("queries", "instances")


class LossNormalizers(NamedTuple):
    """What sums over a batch are divided by: means over all parts of the whole batch.

    The parts are processes and micro-batches. The mean of their losses is then the loss of one
    process with all images.
    """

    num_masks: Tensor  # instances, at least 1 in the whole batch
    object_weight: Tensor  # sum of the objectness loss's weights over queries


class SetCriterion(nn.Module):
    """Losses of a set prediction against the instances of a batch.

    Args:
        num_classes: K.
        matcher: assigns queries to instances.
        weight_dict: weight of each loss by name. Layers whose losses are not in it are skipped.
        freq_weight: (K,) weights with which classes are drawn for the federated loss.
        no_object_weight: weight of "no object" in the objectness loss, relative to objects.
        class_loss_scale: factor of the class loss.
        class_loss_norm: what the class loss is divided by: "queries" (B * Q) or "instances".
        fed_loss_num_classes: classes that the class loss of a batch is computed over.
        num_points: P, points per mask.
        oversample_ratio: candidates drawn per point (PointRend).
        importance_sample_ratio: share of points taken where the mask is most uncertain.

    Raises:
        ValueError: a setting is out of its range.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        weight_dict: Mapping[str, float],
        freq_weight: Tensor,
        *,
        no_object_weight: float = 0.4,
        class_loss_scale: float = 1.7,
        class_loss_norm: str = "queries",
        fed_loss_num_classes: int = 50,
        num_points: int = 112 * 112,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
    ) -> None:
        super().__init__()
        if freq_weight.shape != (num_classes,):
            raise ValueError(
                f"expected one drawing weight for each of {num_classes} classes, got "
                f"{len(freq_weight)}: compare the category info with MODEL.SEM_SEG_HEAD.NUM_CLASSES"
            )
        if class_loss_norm not in CLASS_LOSS_NORMS:
            raise ValueError(
                "MODEL.MASK_FORMER.CLASS_LOSS_NORM: expected one of "
                f"{', '.join(CLASS_LOSS_NORMS)}, got {class_loss_norm!r}"
            )
        if oversample_ratio < 1 or not 0 <= importance_sample_ratio <= 1:
            raise ValueError(
                "MODEL.MASK_FORMER: expected OVERSAMPLE_RATIO >= 1 and IMPORTANCE_SAMPLE_RATIO in "
                f"[0, 1], got {oversample_ratio} and {importance_sample_ratio}"
            )
        self.num_classes = num_classes
        self.matcher = matcher
        self.weight_dict = dict(weight_dict)
        self.class_loss_scale = class_loss_scale
        self.class_loss_norm = class_loss_norm
        self.fed_loss_num_classes = fed_loss_num_classes
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        # The losses don't use it, but released checkpoints have it.
        self.register_buffer("empty_weight", F.pad(torch.ones(num_classes), (0, 1)))
        self.register_buffer("empty_object_weight", torch.tensor([1.0, no_object_weight]))
        self.register_buffer("freq_weight", freq_weight.float())

    def forward(
        self,
        outputs: Mapping[str, Any],
        targets: Sequence[Mapping[str, Tensor]],
        instance_counts: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Compute all losses in float32, unweighted.

        Args:
            outputs: ``pred_logits`` (B, Q, K + 1), ``pred_object_logits`` (B, Q, 2), ``mask_embed``
                (B, Q, Cm), ``mask_features`` (B, Cm, h, w) or (B, T, Cm, h, w), and
                ``aux_outputs``: the first three again for each earlier layer.
            targets: for each image ``labels`` (n,) int64, where K means "no object", and
                ``masks`` bool (n, H, W) or (n, T, H, W).
            instance_counts: instances of each image of the whole batch, over all processes and
                micro-batches. None if the batch is not cut into micro-batches.

        Returns:
            ``loss_ce``, ``loss_object_ce``, ``loss_mask`` and ``loss_dice`` of the last layer, and
            the same with suffix ``_{i}`` for ``aux_outputs[i]``.

        Raises:
            ValueError: a label is out of range.
            FloatingPointError: an output is NaN.
        """
        mask_features = outputs["mask_features"].float()
        self._check_labels(targets)
        num_queries = outputs["pred_logits"].shape[1]
        normalizers = self._compute_normalizers(targets, num_queries, instance_counts)

        layers = {"": outputs}
        layers |= {f"_{i}": aux for i, aux in enumerate(outputs.get("aux_outputs", ()))}
        losses = {}
        # Half types are too coarse for sums over thousands of points and for costs near each other.
        with torch.autocast(mask_features.device.type, enabled=False):
            for suffix, layer in layers.items():
                # Without deep supervision, matching the earlier layers would only take time.
                if f"loss_ce{suffix}" not in self.weight_dict:
                    continue
                precise = {
                    key: layer[key].float()
                    for key in ("pred_logits", "pred_object_logits", "mask_embed")
                }
                precise["mask_features"] = mask_features
                for name, loss in self._layer_losses(precise, targets, normalizers).items():
                    losses[name + suffix] = loss
        return losses

    def _check_labels(self, targets: Sequence[Mapping[str, Tensor]]) -> None:
        """Raise ValueError when a label is neither a class of the model nor "no object"."""
        # On a GPU such an index ends the process with an assertion that names no label.
        labels = torch.cat([target["labels"] for target in targets])
        if len(labels) and not 0 <= labels.min() <= labels.max() <= self.num_classes:
            raise ValueError(
                f"labels from {labels.min()} to {labels.max()} in the batch, but the model has "
                f"{self.num_classes} classes: compare MODEL.SEM_SEG_HEAD.NUM_CLASSES with the data"
            )

    def _compute_normalizers(
        self,
        targets: Sequence[Mapping[str, Tensor]],
        num_queries: int,
        instance_counts: Sequence[int] | None,
    ) -> LossNormalizers:
        """Count the instances of the whole batch and sum up the weights of its queries."""
        device = self.empty_object_weight.device
        if instance_counts is None:
            # Each process knows its own images only: the mean needs all of them.
            counts = torch.tensor([len(target["labels"]) for target in targets], device=device)
            objects = torch.stack([(t["labels"] < self.num_classes).sum() for t in targets])
            parts = comm.get_world_size()
        else:
            # Labels of other micro-batches are not known here: all instances count as objects.
            counts = objects = torch.tensor(instance_counts, device=device)
            parts = len(instance_counts) / len(targets)
        sums = torch.stack([counts.sum(), objects.clamp(max=num_queries).sum()])
        sums = average_over_processes(sums) if instance_counts is None else sums / parts
        # No more instances than queries can be matched; the other queries are "no object".
        matched = sums[1]
        queries = torch.stack([matched, len(targets) * num_queries - matched])
        # The whole batch counts as at least one instance; this is the share of one part.
        return LossNormalizers(
            sums[0].clamp(min=1 / parts), (self.empty_object_weight * queries).sum()
        )

    def _layer_losses(
        self,
        layer: Mapping[str, Tensor],
        targets: Sequence[Mapping[str, Tensor]],
        normalizers: LossNormalizers,
    ) -> dict[str, Tensor]:
        """Match the queries of one layer and compute its four losses."""
        matches = self.matcher(layer, targets)
        return self._label_losses(layer, targets, matches, normalizers) | self._mask_losses(
            layer, targets, matches, normalizers.num_masks
        )

    def _label_losses(
        self,
        layer: Mapping[str, Tensor],
        targets: Sequence[Mapping[str, Tensor]],
        matches: Sequence[tuple[Tensor, Tensor]],
        normalizers: LossNormalizers,
    ) -> dict[str, Tensor]:
        """Compute the losses of class (matched queries) and objectness (all queries)."""
        logits, object_logits = layer["pred_logits"], layer["pred_object_logits"]
        labels = torch.full(
            logits.shape[:2], self.num_classes, dtype=torch.int64, device=logits.device
        )
        for row, target, (query, instance) in zip(labels, targets, matches, strict=True):
            row[query] = target["labels"][instance]
        is_object = labels < self.num_classes

        # Drawn for each layer: its matches decide which classes are present.
        chosen = sample_federated_classes(
            labels.unique(), self.freq_weight, self.fed_loss_num_classes
        )
        loss = federated_class_loss(logits[is_object][:, :-1], labels[is_object], chosen)
        norm = normalizers.num_masks if self.class_loss_norm == "instances" else labels.numel()

        object_loss = F.cross_entropy(
            object_logits.flatten(0, 1),
            (~is_object).flatten().long(),
            self.empty_object_weight,
            reduction="sum",
        )
        return {
            "loss_ce": self.class_loss_scale * loss / norm,
            "loss_object_ce": object_loss / normalizers.object_weight,
        }

    def _mask_losses(
        self,
        layer: Mapping[str, Tensor],
        targets: Sequence[Mapping[str, Tensor]],
        matches: Sequence[tuple[Tensor, Tensor]],
        num_masks: Tensor,
    ) -> dict[str, Tensor]:
        """Compute the losses of matched masks at points, most of them where masks are uncertain.

        Source: PointRend, https://arxiv.org/abs/1912.08193, section 3.1.
        """
        # Only matched queries get a mask: the losses use no other.
        logits = [
            torch.einsum("nc,...chw->n...hw", embed[query], features).flatten(0, -3)
            for embed, features, (query, _) in zip(
                layer["mask_embed"], layer["mask_features"], matches, strict=True
            )
        ]
        counts = [len(masks) for masks in logits]
        logits = torch.cat(logits)[:, None]
        # The choice of points and the labels at the points need no gradients.
        with torch.no_grad():
            points = get_uncertain_point_coords_with_randomness(
                logits,
                lambda point_logits: -point_logits.abs(),  # logits near 0 are the least certain
                self.num_points,
                self.oversample_ratio,
                self.importance_sample_ratio,
            )
            # Frames of a clip become masks of their own, in the order of the logits.
            masks = [
                target["masks"][instance].flatten(0, -3)[:, None]
                for target, (_, instance) in zip(targets, matches, strict=True)
            ]
            # Image by image, so that only the masks of one image are floats at a time.
            point_labels = torch.cat(
                [
                    point_sample(of_image.to(logits), at, align_corners=False)
                    for of_image, at in zip(masks, points.split(counts), strict=True)
                ]
            ).squeeze(1)
        point_logits = point_sample(logits, points, align_corners=False).squeeze(1)
        return {
            "loss_mask": mask_bce_loss(point_logits, point_labels, num_masks),
            "loss_dice": dice_loss(point_logits, point_labels, num_masks),
        }


def average_over_processes(values: Tensor) -> Tensor:
    """Return the mean of a tensor without gradient over all processes."""
    world_size = comm.get_world_size()
    if world_size > 1:
        # all_reduce works in place, and the caller keeps its tensor.
        values = values.clone()
        torch.distributed.all_reduce(values)
    return values / world_size


def build_criterion(cfg: CfgNode, num_classes: int) -> SetCriterion:
    """Build the criterion that the keys ``MODEL.MASK_FORMER.*`` describe.

    Args:
        cfg: the config.
        num_classes: K.

    Raises:
        FileNotFoundError: the category info file does not exist.
        ValueError: a setting is out of range, or the category info does not fit.
    """
    node = cfg.MODEL.MASK_FORMER
    weights = {
        "loss_ce": node.CLASS_WEIGHT,
        "loss_object_ce": node.OBJECT_WEIGHT,
        "loss_mask": node.MASK_WEIGHT,
        "loss_dice": node.DICE_WEIGHT,
    }
    suffixes = [""]
    if node.DEEP_SUPERVISION:
        suffixes += [f"_{layer}" for layer in range(node.DEC_LAYERS - 1)]
    return SetCriterion(
        num_classes,
        HungarianMatcher(
            node.CLASS_WEIGHT, node.MASK_WEIGHT, node.DICE_WEIGHT, node.TRAIN_NUM_POINTS
        ),
        {name + suffix: weight for suffix in suffixes for name, weight in weights.items()},
        freq_weight_from_config(cfg, num_classes),
        no_object_weight=node.NO_OBJECT_OBJECTNESS_WEIGHT,
        class_loss_scale=node.CLASS_LOSS_SCALE,
        class_loss_norm=node.CLASS_LOSS_NORM,
        fed_loss_num_classes=node.FED_LOSS_NUM_CLASSES,
        num_points=node.TRAIN_NUM_POINTS,
        oversample_ratio=node.OVERSAMPLE_RATIO,
        importance_sample_ratio=node.IMPORTANCE_SAMPLE_RATIO,
    )
