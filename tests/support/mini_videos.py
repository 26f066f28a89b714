"""Small data sets of videos in the format of YouTube-VIS: drawn on disk, or random in memory."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovformer.d2 import MetadataCatalog
from ovformer.data.catalog.dataset_spec import DatasetSpec, load_categories
from ovformer.data.files.vis_json import load_vis_json
from support.masks import compressed_rle, rectangle, uncompressed_rle

SPLITS = ("train", "val", "test")
# id: frames, height, width
VIDEOS = {3: (6, 40, 60), 8: (1, 48, 48), 11: (3, 36, 64)}
# in video, in the frames. Video 11 has no annotation.
TRACKS = [(3, range(6)), (3, (1, 2, 4)), (8, (0,))]
# Category of each track, by data set; the second one is novel.
CATEGORIES = {
    "ytvis_2019": (1, 6, 8),
    "ytvis_2021": (1, 6, 8),
    "ovis": (1, 6, 8),
    "lvvis": (3, 1, 6),
}


@dataclass
class MiniVideos:
    """A data set on disk.

    Attributes:
        root: the dataset root, which holds ytvis_2019/ or LVVIS/.
        content: what the annotation files of train and val hold; that of test has no annotations,
            and LV-VIS's of train none of the novel category.
        family: the data set, without the split.
    """

    root: Path
    content: dict
    family: str = "ytvis_2019"

    def spec(self, split: str) -> DatasetSpec:
        """The registered data set of a split."""
        return MetadataCatalog.get(f"{self.family}_{split}").spec

    def frames_of(self, split: str) -> Path:
        """The folder of the frames of a split."""
        return self.root / self.spec(split).image_root

    @property
    def frames(self) -> Path:
        """The folder of the frames of the validation set."""
        return self.frames_of("val")

    def annotations(self, split: str) -> Path:
        """The annotation file of a split."""
        return self.root / self.spec(split).annotations

    def is_novel(self, category: dict) -> bool:
        """Whether a category of the data set's table is novel."""
        key, values = self.spec("train").groups["novel"]
        return category[key] in values

    def write(self, split: str = "val", **changes: object) -> Path:
        """Write the annotations of a split, with other values of some keys."""
        path = self.annotations(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**self.content, **changes}))
        return path


def draw_frames(folder: Path, videos: list[dict]) -> None:
    """Write frames of one colour, which is [video, frame, 0]."""
    for video in videos:
        for t, name in enumerate(video["file_names"]):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((video["height"], video["width"], 3), (video["id"], t, 0), np.uint8)
            Image.fromarray(pixels).save(folder / name)


def make_videos(root: Path, family: str = "ytvis_2019") -> MiniVideos:
    """Write a data set of ``CATEGORIES`` below a dataset root."""
    videos = [
        {
            "id": number,
            "height": height,
            "width": width,
            "length": length,
            "file_names": [f"video{number}/{t:05d}.png" for t in range(length)],
        }
        for number, (length, height, width) in VIDEOS.items()
    ]
    annotations = []
    tracks = zip(CATEGORIES[family], TRACKS, strict=True)
    for number, (category_id, (video_id, visible)) in enumerate(tracks, start=1):
        length, height, width = VIDEOS[video_id]
        tube: list[dict | None] = [None] * length
        for t in visible:
            x, y = 5 + 4 * t, 8 * number
            tube[t] = compressed_rle(rectangle((height, width), x, y, x + 15, y + 10))
        annotations.append(
            {
                "id": number,
                "video_id": video_id,
                "category_id": category_id,
                "iscrowd": 0,
                "segmentations": tube,
            }
        )
    categories = [{"id": c["id"], "name": c["name"]} for c in load_categories(family)]
    content = {"videos": videos, "annotations": annotations, "categories": categories}
    data = MiniVideos(root, content, family)
    without_novel = [a for a in annotations if a["category_id"] != CATEGORIES[family][1]]
    changes = {"test": {"annotations": None}}
    if family == "lvvis":
        changes["train"] = {"annotations": without_novel}
    for split in SPLITS:
        draw_frames(data.frames_of(split), videos)
        data.write(split, **changes.get(split, {}))
    return data


@pytest.fixture(name="mini_videos")
def mini_videos_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MiniVideos:
    """Three videos as ``ytvis_2019_{train,val,test}``."""
    root = tmp_path / "data sets"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    return make_videos(root)


def moving_box(rng: np.random.Generator, num_frames: int, size: tuple[int, int]) -> np.ndarray:
    """A moving box (T, 4): top, left, height, width."""
    height, width = size
    side = rng.integers(4, [height // 2, width // 2])
    start = rng.integers(0, [height // 2, width // 2])
    speed = rng.integers(-2, 3, 2)
    places = np.clip(start + speed * np.arange(num_frames)[:, None], 0, [height - 4, width - 4])
    return np.concatenate([places, np.broadcast_to(side, places.shape)], axis=1)


def draw_boxes(boxes: np.ndarray, size: tuple[int, int]) -> list[np.ndarray]:
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
        ids = [2 * k + 1 for k in range(num_classes)]
        categories = [{"id": i, "name": f"class {k}"} for k, i in enumerate(ids)]
        truth = {"videos": [], "annotations": [], "categories": categories}
        predictions = []
        for v in range(num_videos):
            video_id = 10 * v + 3
            video = {"id": video_id, "height": size[0], "width": size[1]}
            video["file_names"] = [f"video{v:03d}/{t:05d}.jpg" for t in range(num_frames)]
            truth["videos"].append(video)
            # The first prediction of each video is of a class that has no annotation there.
            present = rng.choice(ids[1:], rng.integers(1, 3))
            rows = [(ids[0], moving_box(rng, num_frames, size))]
            for number, category_id in enumerate(rng.choice(present, rng.integers(1, 5))):
                boxes = moving_box(rng, num_frames, size)
                masks = draw_boxes(boxes, size)
                visible = rng.random(num_frames) < 0.8
                visible[0] = True
                tube = [m if seen else None for m, seen in zip(masks, visible, strict=True)]
                annotation = {
                    "id": 100 * v + number + 1,
                    "video_id": video_id,
                    "category_id": int(category_id),
                    "iscrowd": 0,
                    "height": size[0],
                    "width": size[1],
                    "areas": [None if m is None else float(m.sum()) for m in tube],
                    "segmentations": [None if m is None else uncompressed_rle(m) for m in tube],
                }
                truth["annotations"].append(annotation)
                for _ in range(rng.integers(0, 4)):
                    shifted = boxes + rng.integers(-2, 3, boxes.shape) // rng.integers(1, 4)
                    label = category_id if rng.random() < 0.8 else rng.choice(ids)
                    rows.append((label, np.maximum(shifted, 0)))
            for label, boxes in rows:
                masks = draw_boxes(boxes, size)
                tube = [compressed_rle(m) if rng.random() < 0.95 else None for m in masks]
                entry = {"video_id": video_id, "score": float(np.round(rng.random(), 6))}
                entry |= {"category_id": int(label), "segmentations": tube}
                predictions.append(entry)
            if lists:
                absent = [i for i in ids if i not in present]
                video["neg_category_ids"] = absent[: len(absent) // 2]
                video["not_exhaustive_category_ids"] = [int(present[0])] if v % 2 else []
        return truth, predictions

    return make


@pytest.fixture
def load_truth(tmp_path: Path) -> Callable[[dict], dict]:
    """A function that reads a ground truth of :func:`make_video_set` as if from a file."""

    def load(truth: dict) -> dict:
        path = tmp_path / "truth.json"
        path.write_text(json.dumps(truth))
        return load_vis_json(path)

    return load
