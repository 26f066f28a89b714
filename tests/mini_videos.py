"""A small data set of videos on disk, generated, in the format of YouTube-VIS 2019."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_fixture import encode

from ovformer.data.dataset_spec import load_categories

FOLDERS = {"train": "train", "val": "valid", "test": "test"}
# id: frames, height, width
VIDEOS = {3: (6, 40, 60), 8: (1, 48, 48), 11: (3, 36, 64)}
# of category, in video, in the frames; 6 is novel. Video 11 has no annotation.
TRACKS = [(1, 3, range(6)), (6, 3, (1, 2, 4)), (8, 8, (0,))]


@dataclass
class MiniVideos:
    """A data set on disk.

    Attributes:
        root: the dataset root, which holds ytvis_2019/.
        content: what the annotation files of train and val hold; that of test has no annotations.
    """

    root: Path
    content: dict

    @property
    def frames(self) -> Path:
        """The folder of the frames of the validation set."""
        return self.root / "ytvis_2019" / "valid" / "JPEGImages"

    def write(self, split: str = "val", **changes: object) -> Path:
        """Write the annotations of a split, with other values of some keys."""
        path = self.root / "ytvis_2019" / f"{FOLDERS[split]}.json"
        path.write_text(json.dumps({**self.content, **changes}))
        return path


def draw_frames(folder: Path, videos: list[dict]) -> None:
    """Write frames of one colour, which is [video, frame, 0]."""
    for video in videos:
        for t, name in enumerate(video["file_names"]):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((video["height"], video["width"], 3), (video["id"], t, 0), np.uint8)
            Image.fromarray(pixels).save(folder / name)


def make_videos(root: Path) -> MiniVideos:
    """Write the data set below a dataset root."""
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
    for number, (category_id, video_id, visible) in enumerate(TRACKS, start=1):
        length, height, width = VIDEOS[video_id]
        tube: list[dict | None] = [None] * length
        for t in visible:
            mask = np.zeros((height, width), bool)
            mask[8 * number : 8 * number + 10, 5 + 4 * t : 20 + 4 * t] = True
            tube[t] = encode(mask)
        annotations.append(
            {
                "id": number,
                "video_id": video_id,
                "category_id": category_id,
                "iscrowd": 0,
                "segmentations": tube,
            }
        )
    categories = [{"id": c["id"], "name": c["name"]} for c in load_categories("ytvis_2019")]
    content = {"videos": videos, "annotations": annotations, "categories": categories}
    data = MiniVideos(root, content)
    for split, folder in FOLDERS.items():
        draw_frames(root / "ytvis_2019" / folder / "JPEGImages", videos)
        data.write(split, **({"annotations": None} if split == "test" else {}))
    return data


@pytest.fixture(name="mini_videos")
def mini_videos_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MiniVideos:
    """Three videos as ``ytvis_2019_{train,val,test}``."""
    root = tmp_path / "data sets"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    return make_videos(root)
