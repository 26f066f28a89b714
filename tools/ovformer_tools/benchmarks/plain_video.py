"""Video inference in its plainest form, for comparison: the same predictions.

All frames are read before the network starts, the outputs of all queries are kept, each frame or
clip waits for its assignment, and each mask is encoded on its own. As published, the clip model's
masks are resized to full size before predictions are chosen.

Legend: B frames or clips, T frames of the video, Q queries, K classes, N predictions, H W pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from ovformer_tools.benchmarks.plain_network import PlainNetwork

WINDOW = 10  # frames


@torch.no_grad()
def predict_video(model: nn.Module, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the prediction dict of a video; see ``VideoInference``.

    Args:
        model: a model of frames or of clips, whose weights and settings are used.
        record: of a video, with ``clip_features``.
    """
    network = PlainNetwork(model)
    images = model.normalize_images(list(record["image"]))
    clip_features = record["clip_features"].to(model.device)
    window = model.window_size if model.SEES_CLIPS else WINDOW
    parts: list[dict[str, Tensor]] = []  # of each frame or clip
    for start in range(0, record["length"], window):
        features = clip_features[start : start + window]
        features = features[None] if model.SEES_CLIPS else features[:, None]
        outputs = network(images.tensor[start : start + window], features)
        del outputs["aux_outputs"]
        on_host = {key: value.cpu() for key, value in outputs.items()}
        parts += [{key: value[i] for key, value in on_host.items()} for i in range(len(features))]
    parts = _track(parts, model.memory_momentum)
    sizes = (images.tensor.shape[-2:], images.image_sizes[0], (record["height"], record["width"]))
    if model.SEES_CLIPS:
        scores, labels, masks = _select_clips(parts, model.detections_per_image, sizes)
    else:
        select = (model.detections_per_image, model.frame_score_ratio)
        scores, labels, masks = _select_frames(parts, *select)
        masks = [_resize(mask, *sizes) for mask in masks]
    order = scores.argsort(descending=True).tolist()
    return {
        "video_id": record["video_id"],
        "image_size": sizes[2],
        "pred_scores": scores[order].tolist(),
        "pred_labels": labels[order].tolist(),
        "segmentations": [_encode(masks[index]) for index in order],
    }


def _track(parts: Sequence[Mapping[str, Tensor]], momentum: float) -> list[dict[str, Tensor]]:
    """Permute the queries of each frame or clip, so that query i is the same object in all."""
    memory = parts[0]["pred_embds"]
    tracked = [dict(parts[0])]
    for part in parts[1:]:
        embeddings = part["pred_embds"]
        cosines = F.normalize(memory, dim=1) @ F.normalize(embeddings, dim=1).t()
        order = torch.from_numpy(linear_sum_assignment((1 - cosines).numpy())[1])
        memory = momentum * embeddings[order] + (1 - momentum) * memory
        tracked.append({key: value[order] for key, value in part.items()})
    return tracked


def _score(logits: Tensor, object_logits: Tensor) -> Tensor:
    return (logits.sigmoid()[..., :-1] * object_logits.softmax(-1)[..., :1]).sqrt()


def _stack(parts: Sequence[Mapping[str, Tensor]], key: str) -> Tensor:
    return torch.stack([part[key] for part in parts], dim=1)  # (Q, B, ...)


def _select_best(
    parts: Sequence[Mapping[str, Tensor]], limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores, queries and labels of the best pairs, by the mean logits: (N,) each."""
    logits, object_logits = (_stack(parts, f"pred_{kind}logits") for kind in ("", "object_"))
    scores = _score(logits.mean(1), object_logits.mean(1))
    best, chosen = scores.flatten().topk(min(limit, scores.numel()))
    return best, chosen // scores.shape[1], chosen % scores.shape[1]


def _select_frames(
    parts: Sequence[Mapping[str, Tensor]], limit: int, ratio: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores (N,), labels (N,) and mask logits (N, T, H / 4, W / 4)."""
    scores, queries, labels = _select_best(parts, limit)
    of_frames = _score(_stack(parts, "pred_logits"), _stack(parts, "pred_object_logits"))
    masks = _stack(parts, "pred_masks").flatten(1, 2)[queries]
    # An object is absent from frames where its score is low; -1 is a logit outside the mask.
    masks[of_frames[queries, :, labels] < ratio * scores[:, None]] = -1
    inside = (masks > 0).float()
    probability = (masks.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
    return scores * probability, labels, masks


def _select_clips(
    parts: Sequence[Mapping[str, Tensor]], limit: int, sizes: tuple
) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores (N,), labels (N,) and mask logits (N, T, H, W)."""
    masks = torch.cat(
        [torch.stack([_resize(mask, *sizes) for mask in part["pred_masks"]]) for part in parts],
        dim=1,
    )
    scores, queries, labels = _select_best(parts, limit)
    return scores, labels, masks[queries]


def _resize(
    logits: Tensor, padded: tuple[int, int], image: tuple[int, int], output: tuple[int, int]
) -> Tensor:
    """Resize masks (N, H / 4, W / 4) to the size of the original frames."""
    logits = F.interpolate(logits[None], size=padded, mode="bilinear", align_corners=False)
    logits = logits[..., : image[0], : image[1]]
    return F.interpolate(logits, size=output, mode="bilinear", align_corners=False)[0]


def _encode(masks: Tensor) -> list[dict]:
    """Return the RLEs of one prediction's masks (T, H, W)."""
    rles = []
    for frame in masks:
        rle = coco_mask.encode(np.asfortranarray((frame > 0).numpy(), dtype=np.uint8))
        rles.append({"size": list(frame.shape), "counts": rle["counts"].decode()})
    return rles
