"""A small data set of videos on disk, generated, in the format of YouTube-VIS."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovformer.d2 import MetadataCatalog
from ovformer.data.catalog.dataset_spec import DatasetSpec, load_categories
from support.masks import compressed_rle, rectangle

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
