"""Whole videos for evaluation."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

from ovformer.d2 import comm
from ovformer.data.catalog.dataset_spec import load_dataset
from ovformer.data.files.image_embeddings import ImageEmbeddingWriter
from ovformer.data.files.image_files import iterate_images
from ovformer.data.loading.video_loaders import VideoLoader, build_video_test_loader
from ovformer.data.samples.video_reader import ReadAhead
from support.data_configs import clip_config, frame_times
from support.mini_lvis import MiniLvis
from support.mini_videos import VIDEOS, MiniVideos


def build_loader(*opts: object, **options: object) -> VideoLoader:
    return build_video_test_loader(clip_config("ytvis_2019", *opts), "ytvis_2019_val", **options)


def test_a_test_video(mini_videos: MiniVideos) -> None:
    loader = build_loader()
    assert len(loader) == 3
    for (video,), (number, (length, height, width)) in zip(loader, VIDEOS.items(), strict=True):
        assert video["video_id"] == number and video["length"] == length
        assert (video["height"], video["width"]) == (height, width)
        assert isinstance(video["frames"], Iterator) and "annotations" not in video
        frames = list(video["frames"])
        assert frame_times([frame["image"] for frame in frames]) == list(range(length))
        assert [frame["file_name"] for frame in frames] == video["file_names"]
        for frame in frames:
            assert min(frame["image"].shape[1:]) == 24 and frame["image"].dtype == torch.uint8
            assert int(frame["image"][0, 0, 0]) == number
            assert frame["clip_image"].shape == (3, 8, 8)
    # The same frames by the keys of a training clip.
    for (video,), (length, _, _) in zip(build_loader(), VIDEOS.values(), strict=True):
        images, views = zip(*zip(video["image"], video["clip_image"], strict=True), strict=True)
        assert frame_times(images) == list(range(length))
        assert {view.shape for view in views} == {(3, 8, 8)}


def test_stored_features_of_frames(mini_videos: MiniVideos, tmp_path: Path) -> None:
    keys = [entry["clip_key"] for entry in iterate_images(load_dataset("ytvis_2019_val"))]
    features = dict(zip(keys, torch.randn(len(keys), 512), strict=True))
    path = tmp_path / "val.safetensors"
    with ImageEmbeddingWriter(path, {}) as writer:
        writer.add(keys, torch.stack(list(features.values())))
    for (video,) in build_loader("MODEL.MASK_FORMER.CLIP_IMAGE_PATH", str(path)):
        expected = torch.stack([features[key] for key in video["clip_keys"]])
        assert torch.equal(video["clip_features"], expected)
        frames = list(video["frames"])
        assert torch.equal(torch.cat([frame["clip_features"] for frame in frames]), expected)
        assert not any("clip_image" in item for item in (video, *frames))
    path = tmp_path / "incomplete.safetensors"
    with ImageEmbeddingWriter(path, {}) as writer:
        writer.add(keys[1:], torch.zeros(len(keys) - 1, 512))
    with pytest.raises(KeyError, match=f"1 images have no CLIP features.*{keys[0]}"):
        build_loader("MODEL.MASK_FORMER.CLIP_IMAGE_PATH", str(path))


def test_finished_videos_are_skipped(
    mini_videos: MiniVideos, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [video["video_id"] for (video,) in build_loader(skip={3, 11})] == [8]
    assert len(build_loader(skip=set(VIDEOS))) == 0
    found = []
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        found += [video["video_id"] for (video,) in build_loader()]
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
        assert next(results, None) is None


def test_threads_end_with_the_loop(mini_videos: MiniVideos) -> None:
    before = threading.active_count()
    loader = iter(build_loader())
    next(next(loader)[0]["image"])
    loader.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_a_wrong_frame_is_named(mini_videos: MiniVideos, caplog: pytest.LogCaptureFixture) -> None:
    frames = mini_videos.frames
    Image.new("RGB", (30, 20)).save(frames / "video3" / "00004.png")
    # A video that is smaller as a whole is predicted in the size of the annotations.
    Image.new("RGB", (24, 24)).save(frames / "video8" / "00000.png")
    loader = iter(build_loader())
    (video,) = next(loader)
    size = r"20 x 30 pixels \(height x width\), expected 40 x 60"
    with pytest.raises(ValueError, match=rf"Frame 4 of video 3 .*00004\.png\) has {size}"):
        list(video["image"])
    (video,) = next(loader)
    assert [frame.shape for frame in video["image"]] == [(3, 24, 24)]
    assert (video["height"], video["width"]) == (48, 48)
    assert "frames of 24 x 24 pixels, but 48 x 48" in caplog.text
    (frames / "video3" / "00002.png").write_bytes(b"no image")
    loader = iter(build_loader())
    (video,) = next(loader)
    assert frame_times([next(video["image"]), next(video["image"])]) == [0, 1]
    with pytest.raises(ValueError, match=r"Frame 2 of video 3: .*00002\.png: the image can't be"):
        next(video["image"])


def test_images_are_not_videos(mini_lvis: MiniLvis) -> None:
    with pytest.raises(ValueError, match="'lvis_v1_val' is a data set of images"):
        build_video_test_loader(clip_config("lvis_v1"), "lvis_v1_val")
