"""Videos frame by frame as one would write it down at first, for comparison: same predictions.

All frames are read before the network starts, what it says of all frames and queries is kept, each
frame waits for its assignment, and each prediction of each frame is resized and encoded by itself.

Legend: T frames, Q queries, K classes, N predictions, H W pixels.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.plain_network import PlainNetwork

WINDOW = 10  # frames


@torch.no_grad()
def predict_video(model: nn.Module, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the prediction dict of a video; see ``OVFormerVideo``.

    Args:
        model: the model whose weights and settings are used.
        record: of a video, with ``clip_features``.
    """
    network = PlainNetwork(model)
    images = model.normalize_images(list(record["image"]))
    clip_features = record["clip_features"][:, None].to(model.device)
    windows = []
    for start in range(0, record["length"], WINDOW):
        end = start + WINDOW
        outputs = network(images.tensor[start:end], clip_features[start:end])
        del outputs["aux_outputs"]
        windows.append({key: value.cpu() for key, value in outputs.items()})
    frames = {key: torch.cat([window[key] for window in windows]) for key in windows[0]}
    tracked = _track(frames, model.memory_momentum)
    scores, labels, masks = _select(tracked, model.detections_per_image, model.frame_score_ratio)
    order = scores.argsort(descending=True).tolist()
    sizes = (images.tensor.shape[-2:], images.image_sizes[0], (record["height"], record["width"]))
    return {
        "video_id": record["video_id"],
        "image_size": sizes[2],
        "pred_scores": scores[order].tolist(),
        "pred_labels": labels[order].tolist(),
        "segmentations": [_encode(masks[index], *sizes) for index in order],
    }


def _track(frames: Mapping[str, Tensor], momentum: float) -> dict[str, Tensor]:
    """Permute the queries of each frame so that query i is the same object: (Q, T, ...)."""
    memory = frames["pred_embds"][0]
    orders = [torch.arange(len(memory))]
    for embeddings in frames["pred_embds"][1:]:
        cosines = F.normalize(memory, dim=1) @ F.normalize(embeddings, dim=1).t()
        orders.append(torch.from_numpy(linear_sum_assignment((1 - cosines).numpy())[1]))
        memory = momentum * embeddings[orders[-1]] + (1 - momentum) * memory
    return {
        key: torch.stack([x[order] for x, order in zip(frames[key], orders, strict=True)], dim=1)
        for key in ("pred_logits", "pred_object_logits", "pred_masks")
    }


def _select(
    tracked: Mapping[str, Tensor], limit: int, ratio: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores (N,), labels (N,) and mask logits (N, T, H / 4, W / 4)."""

    def score(logits: Tensor, object_logits: Tensor) -> Tensor:
        return (logits.sigmoid()[..., :-1] * object_logits.softmax(-1)[..., :1]).sqrt()

    logits, object_logits = tracked["pred_logits"], tracked["pred_object_logits"]
    of_video = score(logits.mean(1), object_logits.mean(1))
    of_frames = score(logits, object_logits)
    scores, chosen = of_video.flatten().topk(min(limit, of_video.numel()))
    queries, labels = chosen // of_video.shape[1], chosen % of_video.shape[1]
    masks = tracked["pred_masks"][queries]
    masks[of_frames[queries, :, labels] < ratio * scores[:, None]] = -1
    inside = (masks > 0).float()
    probability = (masks.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
    return scores * probability, labels, masks


def _encode(
    logits: Tensor, padded: tuple[int, int], image: tuple[int, int], output: tuple[int, int]
) -> list[dict]:
    """Return the codes of one prediction's masks (T, H / 4, W / 4)."""
    codes = []
    for frame in logits:
        frame = F.interpolate(frame[None, None], size=padded, mode="bilinear", align_corners=False)
        frame = frame[..., : image[0], : image[1]]
        frame = F.interpolate(frame, size=output, mode="bilinear", align_corners=False)
        mask = np.asfortranarray((frame[0, 0] > 0).numpy(), dtype=np.uint8)
        code = coco_mask.encode(mask)
        codes.append({"size": list(output), "counts": code["counts"].decode()})
    return codes
