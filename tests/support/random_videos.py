"""Generated video data sets, for the tests of data, evaluation and tools."""

from collections.abc import Callable

import numpy as np
import pytest

from support.masks import compressed_rle, uncompressed_rle


def _boxes(rng: np.random.Generator, num_frames: int, size: tuple[int, int]) -> np.ndarray:
    """A moving box (T, 4): top, left, height, width."""
    height, width = size
    side = rng.integers(4, [height // 2, width // 2])
    start = rng.integers(0, [height // 2, width // 2])
    speed = rng.integers(-2, 3, 2)
    places = np.clip(start + speed * np.arange(num_frames)[:, None], 0, [height - 4, width - 4])
    return np.concatenate([places, np.broadcast_to(side, places.shape)], axis=1)


def _draw(boxes: np.ndarray, size: tuple[int, int]) -> list[np.ndarray]:
    masks = [np.zeros(size, dtype=bool) for _ in boxes]
    for mask, (top, left, height, width) in zip(masks, boxes, strict=True):
        mask[top : top + height, left : left + width] = True
    return masks


@pytest.fixture(scope="session")
def make_video_set() -> Callable[..., tuple[dict, list[dict]]]:
    """A function that generates a ground truth (uncompressed RLEs) and predictions for it."""

    def make(
        seed: int,
        num_videos: int = 8,
        num_frames: int = 5,
        num_classes: int = 4,
        size: tuple[int, int] = (48, 64),
        lists: bool = False,
    ) -> tuple[dict, list[dict]]:
        rng = np.random.default_rng(seed)
        truth = {"videos": [], "annotations": [], "categories": []}
        truth["categories"] = [{"id": 2 * k + 1, "name": f"class {k}"} for k in range(num_classes)]
        ids = [category["id"] for category in truth["categories"]]
        predictions = []
        for v in range(num_videos):
            video_id = 10 * v + 3
            video = {"id": video_id, "height": size[0], "width": size[1]}
            video["file_names"] = [f"video{v:03d}/{t:05d}.jpg" for t in range(num_frames)]
            truth["videos"].append(video)
            # The first prediction of each video is of a class that has no annotation there.
            present = rng.choice(ids[1:], rng.integers(1, 3))
            rows = [(ids[0], _boxes(rng, num_frames, size))]
            for number, category_id in enumerate(rng.choice(present, rng.integers(1, 5))):
                boxes = _boxes(rng, num_frames, size)
                masks = _draw(boxes, size)
                visible = rng.random(num_frames) < 0.8
                visible[0] = True
                truth["annotations"].append(
                    {
                        "id": 100 * v + number + 1,
                        "video_id": video_id,
                        "category_id": int(category_id),
                        "iscrowd": 0,
                        "height": size[0],
                        "width": size[1],
                        "areas": [
                            float(m.sum()) if s else None
                            for m, s in zip(masks, visible, strict=True)
                        ],
                        "segmentations": [
                            uncompressed_rle(m) if s else None
                            for m, s in zip(masks, visible, strict=True)
                        ],
                    }
                )
                for _ in range(rng.integers(0, 4)):
                    shifted = boxes + rng.integers(-2, 3, boxes.shape) // rng.integers(1, 4)
                    label = category_id if rng.random() < 0.8 else rng.choice(ids)
                    rows.append((label, np.maximum(shifted, 0)))
            for label, boxes in rows:
                tube = [
                    compressed_rle(m) if rng.random() < 0.95 else None for m in _draw(boxes, size)
                ]
                predictions.append(
                    {
                        "video_id": video_id,
                        "score": float(np.round(rng.random(), 6)),
                        "category_id": int(label),
                        "segmentations": tube,
                    }
                )
            if lists:
                absent = [i for i in ids if i not in present]
                video["neg_category_ids"] = absent[: len(absent) // 2]
                video["not_exhaustive_category_ids"] = [int(present[0])] if v % 2 else []
        return truth, predictions

    return make
