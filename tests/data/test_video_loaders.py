"""Clips for training and whole videos for evaluation."""

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import CfgNode, comm
from ovformer.data.catalog.dataset_spec import load_dataset
from ovformer.data.files.image_embeddings import ImageEmbeddingWriter
from ovformer.data.loading.video_loaders import build_video_test_loader, build_video_train_loader
from ovformer.data.samples.clip_mapper import ClipMapper
from ovformer.data.samples.video_reader import ReadAhead
from support.mini_videos import VIDEOS, MiniVideos


def config(*opts: object) -> CfgNode:
    base = {
        "DATASETS.TRAIN": "('ytvis_2019_train',)",
        "DATASETS.TEST": "('ytvis_2019_val',)",
        "DATALOADER.NUM_WORKERS": 0,
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False,
        "INPUT.FORMAT": "RGB",
        "INPUT.MIN_SIZE_TRAIN": (20, 30),
        "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice_by_clip",
        "INPUT.RANDOM_FLIP": "flip_by_clip",
        "INPUT.MIN_SIZE_TEST": 24,
        "MODEL.CLIP.IMAGE_SIZE": 8,
        "MODEL.DEVICE": "cpu",
        "SOLVER.IMS_PER_BATCH": 2,
        "SEED": 5,
    }
    return get_ovformer_cfg(None, [*itertools.chain(*base.items()), *opts])


def times(frames: list[torch.Tensor]) -> list[int]:
    """The time of each frame, which is its second colour."""
    return [int(frame[1, 0, 0]) for frame in frames]


def samples(cfg: CfgNode, count: int, start: int = 0) -> list[dict]:
    batches = itertools.islice(build_video_train_loader(cfg, start), count)
    return [sample for batch in batches for sample in batch]


def write_store(mini_videos: MiniVideos, split: str, path: Path) -> dict[str, torch.Tensor]:
    """Store random features of all frames of a split and return them."""
    keys = [key for record in load_dataset(f"ytvis_2019_{split}") for key in record["clip_keys"]]
    features = torch.randn(len(keys), 512, generator=torch.Generator().manual_seed(0))
    with ImageEmbeddingWriter(path, {}) as writer:
        writer.add(keys, features)
    return dict(zip(keys, features, strict=True))


def test_a_training_clip(mini_videos: MiniVideos) -> None:
    found = samples(config("INPUT.SAMPLING_FRAME_NUM", 3), 12)
    assert {sample["video_id"] for sample in found} == set(VIDEOS)
    for sample in found:
        length, height, width = VIDEOS[sample["video_id"]]
        seen = times(sample["image"])
        assert [int(Path(name).stem) for name in sample["file_names"]] == seen == sorted(seen)
        assert sample["length"] == 3 and (sample["height"], sample["width"]) == (height, width)
        assert len(set(seen)) == min(3, length)
        sizes = {tuple(frame.shape) for frame in sample["image"]}
        assert len(sizes) == 1 and min(*sizes.pop()[1:]) in (20, 30)
        assert [tuple(view.shape) for view in sample["clip_image"]] == [(3, 8, 8)] * 3
        assert "annotations" not in sample


def test_instances_are_the_same_in_all_frames(mini_videos: MiniVideos) -> None:
    for sample in samples(config("INPUT.SAMPLING_FRAME_NUM", 2), 20):
        expected = {3: [(1, 0), (2, 5)], 8: [(3, 7)], 11: []}[sample["video_id"]]
        seen = times(sample["image"])
        if sample["video_id"] == 3 and not {1, 2, 4} & set(seen):
            expected = expected[:1]
        labels = [instances.gt_classes.tolist() for instances in sample["instances"]]
        assert (
            labels == [sorted(label for _, label in expected)] * 2
            or labels == [[label for _, label in expected]] * 2
        )
        for t, instances, frame in zip(seen, sample["instances"], sample["image"], strict=True):
            assert instances.image_size == tuple(frame.shape[1:])
            there = instances.gt_masks.tensor.flatten(1).any(dim=1)
            assert torch.equal(instances.gt_ids >= 0, there)
            for number, is_there in zip(instances.gt_ids.tolist(), there.tolist(), strict=True):
                assert number in ((1, 2, 3) if is_there else (-1,))
            if sample["video_id"] == 3 and len(expected) == 2:
                absent = 2 not in instances.gt_ids.tolist()
                assert absent == (t not in (1, 2, 4))
            boxes = instances.gt_masks.get_bounding_boxes().tensor
            assert torch.equal(instances.gt_boxes.tensor, boxes)


def test_masks_follow_the_frames(mini_videos: MiniVideos) -> None:
    folder = mini_videos.frames_of("train") / "video3"
    for t in range(6):
        pixels = np.zeros((40, 60, 3), np.uint8)
        pixels[8:18, 5 + 4 * t : 20 + 4 * t] = 255  # where the first track is
        Image.fromarray(pixels).save(folder / f"{t:05d}.png")
    mapper = ClipMapper(config("INPUT.MIN_SIZE_TRAIN", (40,)))
    record = next(r for r in load_dataset("ytvis_2019_train") if r["video_id"] == 3)
    lefts = set()
    for seed in range(8):
        np.random.seed(seed)
        sample = mapper(record)
        for frame, instances in zip(sample["image"], sample["instances"], strict=True):
            row = instances.gt_classes.tolist().index(0)
            assert torch.equal(frame[0] > 128, instances.gt_masks.tensor[row])
        lefts.add(sample["instances"][0].gt_boxes.tensor[row, 0].item() < 30)
    assert lefts == {True, False}  # some clips were flipped


def test_a_test_video(mini_videos: MiniVideos) -> None:
    loader = build_video_test_loader(config(), "ytvis_2019_val")
    assert len(loader) == 3
    for (video,), (number, (length, height, width)) in zip(loader, VIDEOS.items(), strict=True):
        assert video["video_id"] == number and video["length"] == length
        assert (video["height"], video["width"]) == (height, width)
        assert isinstance(video["frames"], Iterator) and "annotations" not in video
        frames = list(video["frames"])
        assert times([frame["image"] for frame in frames]) == list(range(length))
        assert [frame["file_name"] for frame in frames] == video["file_names"]
        for frame in frames:
            assert min(frame["image"].shape[1:]) == 24 and frame["image"].dtype == torch.uint8
            assert int(frame["image"][0, 0, 0]) == number
            assert frame["clip_image"].shape == (3, 8, 8)
    # The same frames by the keys of a training clip.
    for (video,), expected in zip(
        build_video_test_loader(config(), "ytvis_2019_val"), VIDEOS.values(), strict=True
    ):
        pairs = list(zip(video["image"], video["clip_image"], strict=True))
        assert times([image for image, _ in pairs]) == list(range(expected[0]))
        assert {view.shape for _, view in pairs} == {(3, 8, 8)}


def test_stored_features_of_frames(mini_videos: MiniVideos, tmp_path: Path) -> None:
    path = tmp_path / "val.safetensors"
    features = write_store(mini_videos, "val", path)
    cfg = config("MODEL.MASK_FORMER.CLIP_IMAGE_PATH", str(path))
    for (video,) in build_video_test_loader(cfg, "ytvis_2019_val"):
        expected = torch.stack([features[key] for key in video["clip_keys"]])
        assert torch.equal(video["clip_features"], expected)
        frames = list(video["frames"])
        assert torch.equal(torch.cat([frame["clip_features"] for frame in frames]), expected)
        assert not any("clip_image" in item for item in (video, *frames))
    features = write_store(mini_videos, "train", tmp_path / "train.safetensors")
    key = "MODEL.MASK_FORMER.CLIP_IMAGE_PATH_TRAIN"
    for sample in samples(config(key, str(tmp_path / "train.safetensors")), 3):
        expected = torch.stack([features[key] for key in sample["clip_keys"]])
        assert torch.equal(sample["clip_features"], expected)
        assert "clip_image" not in sample
    with pytest.raises(KeyError, match="10 images have no CLIP features.*video3/00000.png"):
        build_video_train_loader(config(key, str(path)))


def test_finished_videos_are_skipped(
    mini_videos: MiniVideos, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = build_video_test_loader(config(), "ytvis_2019_val", skip={3, 11})
    assert [video["video_id"] for (video,) in loader] == [8]
    assert len(build_video_test_loader(config(), "ytvis_2019_val", skip=set(VIDEOS))) == 0
    found = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        loader = build_video_test_loader(config(), "ytvis_2019_val")
        found += [video["video_id"] for (video,) in loader]
    assert found == [3, 8, 11]


def test_reading_ahead_is_bounded_and_in_order() -> None:
    started = []

    def work(number: int) -> int:
        started.append(number)
        time.sleep(0.002 * (number % 3))
        return number

    with ThreadPoolExecutor(3) as executor:
        results = ReadAhead(work, range(50), executor, ahead=4)
        for expected in range(50):
            time.sleep(0.001)
            assert len(started) <= expected + 4
            assert next(results) == expected
        with pytest.raises(StopIteration):
            next(results)


def test_threads_end_with_the_loop(mini_videos: MiniVideos) -> None:
    before = threading.active_count()
    loader = iter(build_video_test_loader(config(), "ytvis_2019_val"))
    next(next(loader)[0]["image"])
    loader.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_a_frame_that_cannot_be_decoded_is_named(mini_videos: MiniVideos) -> None:
    (mini_videos.frames / "video3" / "00002.png").write_bytes(b"no image")
    loader = iter(build_video_test_loader(config(), "ytvis_2019_val"))
    (video,) = next(loader)
    frames = video["image"]
    assert times([next(frames), next(frames)]) == [0, 1]
    with pytest.raises(ValueError, match=r"Frame 2 of video 3: .*00002\.png: the image can't be"):
        next(frames)


def test_frames_of_another_size(mini_videos: MiniVideos, caplog: pytest.LogCaptureFixture) -> None:
    for split in ("train", "val"):
        folder = mini_videos.frames_of(split) / "video3"
        Image.new("RGB", (30, 20)).save(folder / "00004.png")
    message = r"Frame 4 of video 3 .* 20 x 30 pixels \(height x width\), expected 40 x 60"
    loader = iter(build_video_test_loader(config(), "ytvis_2019_val"))
    (video,) = next(loader)
    with pytest.raises(ValueError, match=message):
        list(video["image"])
    record = next(r for r in load_dataset("ytvis_2019_train") if r["video_id"] == 3)
    with pytest.raises(ValueError, match=message):
        ClipMapper(config("INPUT.SAMPLING_FRAME_NUM", 6))(record)
    # A video that is smaller as a whole is predicted in the size of the annotations.
    Image.new("RGB", (24, 24)).save(mini_videos.frames / "video8" / "00000.png")
    loader = iter(build_video_test_loader(config(), "ytvis_2019_val", skip={3, 11}))
    (video,) = next(loader)
    assert [frame.shape for frame in video["image"]] == [(3, 24, 24)]
    assert (video["height"], video["width"]) == (48, 48)
    assert "frames of 24 x 24 pixels, but 48 x 48" in caplog.text


def test_images_are_not_videos(mini_lvis) -> None:
    with pytest.raises(ValueError, match="'lvis_v1_val' is a data set of images"):
        build_video_test_loader(config(), "lvis_v1_val")
