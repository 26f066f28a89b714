"""Training clips: frames of a video, or copies of an image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovformer.d2 import transforms as T
from ovformer.data.catalog.dataset_spec import load_dataset
from ovformer.data.files.image_embeddings import ImageEmbeddingWriter, crop_for_embedding
from ovformer.data.files.image_files import iterate_images
from ovformer.data.loading.training_sets import load_training_sets
from ovformer.data.loading.video_loaders import build_video_train_loader
from ovformer.data.samples.clip_mapper import ClipMapper
from ovformer.data.samples.image_mapper import read_rgb, transform_mask
from support.data_configs import clip_config, clip_samples, frame_times
from support.mini_lvis import MiniLvis
from support.mini_videos import VIDEOS, MiniVideos, make_videos


def check_instances(sample: dict) -> list[list[int]]:
    """Check that an instance has one row in all frames; return the ids, by frame and row."""
    first = sample["instances"][0]
    for instances, frame in zip(sample["instances"], sample["image"], strict=True):
        assert instances.image_size == tuple(frame.shape[1:]) == first.image_size
        assert torch.equal(instances.gt_classes, first.gt_classes)
        visible = instances.gt_masks.tensor.flatten(1).any(dim=1)
        assert torch.equal(instances.gt_ids >= 0, visible)
        boxes = instances.gt_masks.get_bounding_boxes().tensor
        assert torch.equal(instances.gt_boxes.tensor, boxes)
    ids = torch.stack([instances.gt_ids for instances in sample["instances"]])
    # An instance has its id wherever it is visible, and is visible in one frame at least.
    assert all(len(set(row) - {-1}) == 1 for row in ids.T.tolist())
    return ids.tolist()


def test_a_clip_of_a_video(mini_videos: MiniVideos) -> None:
    records = {record["video_id"]: record for record in load_dataset("ytvis_2019_train")}
    found = clip_samples(clip_config("ytvis_2019", "INPUT.SAMPLING_FRAME_NUM", 3), 20)
    assert {sample["video_id"] for sample in found} == set(VIDEOS)
    for sample in found:
        length, height, width = VIDEOS[sample["video_id"]]
        seen = frame_times(sample["image"])
        assert [int(Path(name).stem) for name in sample["file_names"]] == seen == sorted(seen)
        assert sample["length"] == 3 and (sample["height"], sample["width"]) == (height, width)
        assert len(set(seen)) == min(3, length)
        assert min(sample["image"][0].shape[1:]) in (20, 30)
        assert [tuple(view.shape) for view in sample["clip_image"]] == [(3, 8, 8)] * 3
        assert "annotations" not in sample
        labels, classes = {1: 0, 2: 5, 3: 7}, sample["instances"][0].gt_classes.tolist()
        for t, ids in zip(seen, check_instances(sample), strict=True):
            annotations = records[sample["video_id"]]["annotations"][t]
            assert set(ids) - {-1} == {annotation["id"] for annotation in annotations}
            assert all(i < 0 or labels[i] == c for i, c in zip(ids, classes, strict=True))


def test_a_pseudo_clip(mini_lvis: MiniLvis) -> None:
    records = {record["image_id"]: record for record in load_dataset("lvis_v1_train")}
    is_absent = False
    for sample in clip_samples(clip_config("lvis_v1", "INPUT.SAMPLING_FRAME_NUM", 3), 10):
        record = records[sample["image_id"]]
        assert sample["length"] == 3 and sample["file_names"] == [record["file_name"]] * 3
        assert (sample["height"], sample["width"]) == (record["height"], record["width"])
        assert not {"annotations", "file_name", "clip_key", "video_id"} & sample.keys()
        assert all(frame.dtype == torch.uint8 for frame in sample["image"])
        assert 28 <= min(sample["image"][0].shape[1:])
        assert len({frame.numpy().tobytes() for frame in sample["image"]}) == 3
        for ids in check_instances(sample):
            is_absent |= -1 in ids  # a crop left the object out
            for number, label in zip(ids, sample["instances"][0].gt_classes, strict=True):
                if number >= 0:
                    annotation = record["annotations"][number]
                    assert annotation["category_id"] == label and not annotation["iscrowd"]
        view = crop_for_embedding(read_rgb(record["file_name"]), 8)
        assert view.shape == (3, 8, 8)
        assert all(torch.equal(view, found) for found in sample["clip_image"])
    assert is_absent


@pytest.mark.parametrize(("family", "index"), [("ytvis_2019", 0), ("lvis_v1", 1)])
def test_masks_follow_the_pixels(mini_lvis: MiniLvis, family: str, index: int) -> None:
    make_videos(mini_lvis.root)
    record = load_dataset(f"{family}_train")[index]
    size, is_video = (record["height"], record["width"]), "file_names" in record
    files = record["file_names"] if is_video else [record["file_name"]]
    for file, annotations in zip(
        files, record["annotations"] if is_video else [record["annotations"]], strict=True
    ):
        mask = transform_mask(annotations[0]["segmentation"], T.TransformList([]), size)
        Image.fromarray(np.repeat(mask[..., None] * 255, 3, axis=2)).save(file)
    sizes = ("INPUT.MIN_SIZE_TRAIN", (40,), "INPUT.PSEUDO.MIN_SIZE_TRAIN", (80,))
    mapper = ClipMapper(clip_config(family, "INPUT.SAMPLING_FRAME_NUM", 6, *sizes))
    first_frames = set()
    for seed in range(12):
        np.random.seed(seed)
        sample = mapper(record)
        for frame, instances in zip(sample["image"], sample["instances"], strict=True):
            bright, mask = frame[0] > 128, instances.gt_masks.tensor[0]  # padding is 128
            assert (bright & mask).sum() >= (1 if is_video else 0.95) * (bright | mask).sum()
        first_frames.add(sample["image"][0].numpy().tobytes())
    assert len(first_frames) == 2 if is_video else 12  # a video is only flipped


def fingerprint(sample: dict) -> tuple:
    masks = [frame.gt_masks.tensor.numpy().tobytes() for frame in sample["instances"]]
    return sample["file_names"], [frame.numpy().tobytes() for frame in sample["image"]], masks


def test_the_stream_of_videos_and_images_resumes(mini_lvis: MiniLvis) -> None:
    """A sample depends on the seed and its place, whatever the workers and where it starts."""
    make_videos(mini_lvis.root, "lvvis")
    mixed = ("DATASETS.TRAIN", "('lvvis_train', 'lvis_v1_train')")
    mixed += ("DATASETS.DATASET_RATIO", (1, 2), "INPUT.CROP.ENABLED", True)
    expected = clip_samples(clip_config("lvvis", *mixed), 15)
    is_image = ["image_id" in sample for sample in expected]
    assert sum(is_image) == pytest.approx(20, abs=5) and is_image != sorted(is_image)
    # Of LVIS's classes only those that LV-VIS trains are left: of ids 1 and 3, as 3 and 6.
    labels = {int(n) for s in expected if "image_id" in s for n in s["instances"][0].gt_classes}
    assert labels == {2, 5}
    prints = [fingerprint(sample) for sample in expected]
    for workers, start in ((2, 0), (0, 7), (1, 7)):
        cfg = clip_config("lvvis", *mixed, "DATALOADER.NUM_WORKERS", workers)
        found = clip_samples(cfg, 15 - start, start)
        assert [fingerprint(sample) for sample in found] == prints[2 * start :]


@pytest.mark.parametrize("family", ["ytvis_2019", "lvis_v1"])
def test_stored_features(mini_lvis: MiniLvis, tmp_path: Path, family: str) -> None:
    make_videos(mini_lvis.root)
    (records,) = load_training_sets(clip_config(family))
    keys = [entry["clip_key"] for entry in iterate_images(records)]
    features = dict(zip(keys, torch.randn(len(keys), 512), strict=True))
    with ImageEmbeddingWriter(tmp_path / "store.safetensors", {}) as writer:
        writer.add(keys, torch.stack(list(features.values())))
    # A published file names images by their id.
    by_id = {r["image_id"]: features[r["clip_key"]][None] for r in records if "image_id" in r}
    torch.save(by_id, tmp_path / "published.pkl")
    key = "MODEL.MASK_FORMER.CLIP_IMAGE_PATH_TRAIN"
    for name in ("store.safetensors", *(["published.pkl"] if by_id else [])):
        for sample in clip_samples(clip_config(family, key, str(tmp_path / name)), 3):
            expected = torch.stack([features[key] for key in sample["clip_keys"]])
            assert torch.equal(sample["clip_features"], expected) and "clip_image" not in sample
    path = tmp_path / "another.safetensors"
    with ImageEmbeddingWriter(path, {}) as writer:
        writer.add(["another"], torch.zeros(1, 512))
    with pytest.raises(KeyError, match=f"{len(keys)} images have no CLIP features.*{keys[0]}"):
        build_video_train_loader(clip_config(family, key, str(path)))


def test_records_registered_by_somebody_else_are_enough(mini_lvis: MiniLvis) -> None:
    """Images need detectron2's fields only, and videos no keys of stored features."""
    make_videos(mini_lvis.root, "lvvis")
    video, image = load_dataset("lvvis_train")[0], load_dataset("lvis_v1_train")[0]
    fields = ("bbox", "bbox_mode", "category_id", "segmentation")
    annotations = [{key: a[key] for key in fields} for a in image["annotations"]]
    unlabelled = {key: image[key] for key in ("file_name", "image_id", "height", "width")}
    mapper = ClipMapper(clip_config("lvvis"))
    for whole, least in (
        (video, {key: value for key, value in video.items() if key != "clip_keys"}),
        (image, {**unlabelled, "annotations": annotations}),
    ):
        np.random.seed(0)
        expected = mapper(whole)
        np.random.seed(0)
        found = mapper(least)
        assert fingerprint(found) == fingerprint(expected)
        assert check_instances(found) == check_instances(expected)
    assert [len(instances) for instances in mapper(unlabelled)["instances"]] == [0, 0]


def test_a_wrong_image_is_named(mini_lvis: MiniLvis) -> None:
    make_videos(mini_lvis.root)
    mapper = ClipMapper(clip_config("lvis_v1", "INPUT.SAMPLING_FRAME_NUM", 6))
    image, video = load_dataset("lvis_v1_train")[0], load_dataset("ytvis_2019_train")[0]
    with pytest.raises(ValueError, match=r"Image 1 .*0001\.png\) has 40 x 60 .* 41 x 60"):
        mapper({**image, "height": 41})
    Path(image["file_name"]).write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"Image 1: .*0001\.png: .*decoded"):
        mapper(image)
    Image.new("RGB", (30, 20)).save(video["file_names"][4])
    with pytest.raises(ValueError, match=r"Frame 4 of video 3 .* 20 x 30 .* expected 40 x 60"):
        mapper(video)
