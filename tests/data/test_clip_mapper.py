"""Pseudo-clips: training clips made of images, alone and among videos."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovformer.config import get_ovformer_cfg
from ovformer.d2 import CfgNode
from ovformer.data.catalog.dataset_spec import load_dataset
from ovformer.data.files.image_embeddings import ImageEmbeddingWriter, crop_for_embedding
from ovformer.data.loading.training_sets import load_training_sets
from ovformer.data.loading.video_loaders import build_video_train_loader
from ovformer.data.samples.clip_mapper import ClipMapper
from ovformer.data.samples.image_mapper import read_rgb
from support.mini_lvis import MiniLvis
from support.mini_videos import make_videos


def config(*opts: object) -> CfgNode:
    base = {
        "DATASETS.TRAIN": "('lvis_v1_train',)",
        "DATALOADER.NUM_WORKERS": 0,
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False,
        "INPUT.FORMAT": "RGB",
        "INPUT.MIN_SIZE_TRAIN": (24,),
        "INPUT.RANDOM_FLIP": "flip_by_clip",
        "INPUT.PSEUDO.MIN_SIZE_TRAIN": (28, 32),
        "MODEL.CLIP.IMAGE_SIZE": 8,
        "MODEL.DEVICE": "cpu",
        "SOLVER.IMS_PER_BATCH": 2,
        "SEED": 5,
    }
    return get_ovformer_cfg(None, [*itertools.chain(*base.items()), *opts])


def samples(cfg: CfgNode, count: int, start: int = 0) -> list[dict]:
    batches = itertools.islice(build_video_train_loader(cfg, start), count)
    return [sample for batch in batches for sample in batch]


def record_of(image_id: int) -> dict:
    return next(r for r in load_dataset("lvis_v1_train") if r["image_id"] == image_id)


def test_a_pseudo_clip(mini_lvis: MiniLvis) -> None:
    for sample in samples(config("INPUT.SAMPLING_FRAME_NUM", 3), 5):
        record = record_of(sample["image_id"])
        assert sample["length"] == 3 and sample["file_names"] == [record["file_name"]] * 3
        assert (sample["height"], sample["width"]) == (record["height"], record["width"])
        assert not {"annotations", "file_name", "clip_key", "video_id"} & sample.keys()
        first, *others = (frame.shape for frame in sample["image"])
        assert all(frame.dtype == torch.uint8 for frame in sample["image"])
        assert all(shape == first for shape in others) and 28 <= min(first[1:])
        assert len({frame.numpy().tobytes() for frame in sample["image"]}) == 3
        expected = {i: a["category_id"] for i, a in enumerate(record["annotations"])}
        for instances in sample["instances"]:
            assert instances.image_size == tuple(first[1:])
            assert torch.equal(instances.gt_classes, sample["instances"][0].gt_classes)
            visible = instances.gt_masks.tensor.flatten(1).any(dim=1)
            assert torch.equal(instances.gt_ids >= 0, visible)
            for number, label in zip(instances.gt_ids, instances.gt_classes, strict=True):
                assert number < 0 or expected[int(number)] == int(label)
        ids = torch.stack([instances.gt_ids for instances in sample["instances"]])
        # An instance has its id wherever it can be seen, and can be seen in one frame at least.
        for of_instance in ids.T.tolist():
            assert len(set(of_instance) - {-1}) == 1
        crowds = {i for i, a in enumerate(record["annotations"]) if a["iscrowd"]}
        assert not crowds & set(ids.flatten().tolist())
        assert sample["clip_image"][0].shape == (3, 8, 8)
        view = crop_for_embedding(read_rgb(record["file_name"]), 8)
        assert all(torch.equal(view, found) for found in sample["clip_image"])


def test_an_instance_that_leaves_the_frame_is_absent_there(mini_lvis: MiniLvis) -> None:
    """Image 1 has an object at its lower edge, which a crop of half the height often misses."""
    crop = ("INPUT.PSEUDO.CROP.TYPE", "relative", "INPUT.PSEUDO.CROP.SIZE", (0.5, 1.0))
    mapper = ClipMapper(config(*crop, "INPUT.PSEUDO.AUGMENTATIONS", []))
    found = Counter()
    for seed in range(30):
        np.random.seed(seed)
        clip = mapper(record_of(1))["instances"]
        for row, label in enumerate(clip[0].gt_classes.tolist()):
            for instances in clip:
                found[label, int(instances.gt_ids[row])] += 1
                if instances.gt_ids[row] < 0:
                    assert not instances.gt_masks.tensor[row].any()
                    assert instances.gt_boxes.tensor[row].tolist() == [0, 0, 0, 0]
    # Category 13 of LVIS has the contiguous id 12. The other object is as high as the crop.
    assert set(found) == {(0, 0), (12, 1), (12, -1)}


def test_masks_follow_the_copies(mini_lvis: MiniLvis) -> None:
    record = record_of(2)
    pixels = np.zeros((60, 40, 3), np.uint8)
    pixels[mini_lvis.masks[103]] = 255
    Image.fromarray(pixels).save(record["file_name"])
    mapper = ClipMapper(config("INPUT.SAMPLING_FRAME_NUM", 4, "INPUT.PSEUDO.MIN_SIZE_TRAIN", (80,)))
    for seed in range(20):
        np.random.seed(seed)
        sample = mapper(record)
        for frame, instances in zip(sample["image"], sample["instances"], strict=True):
            bright, mask = frame[0] > 128, instances.gt_masks.tensor[0]  # padding is 128
            union = (bright | mask).sum()
            assert (bright & mask).sum() >= 0.95 * union


def fingerprint(sample: dict) -> tuple:
    masks = [frame.gt_masks.tensor.numpy().tobytes() for frame in sample["instances"]]
    return sample["file_names"], [frame.numpy().tobytes() for frame in sample["image"]], masks


def test_the_stream_of_videos_and_images_resumes(mini_lvis: MiniLvis) -> None:
    """A sample depends on the seed and its place, whatever the workers and where it starts."""
    make_videos(mini_lvis.root, "lvvis")
    names = "('lvvis_train', 'lvis_v1_train')"
    mixed = ("DATASETS.TRAIN", names, "DATASETS.DATASET_RATIO", (1, 2), "INPUT.CROP.ENABLED", True)
    expected = samples(config(*mixed), 15)
    is_image = ["image_id" in sample for sample in expected]
    assert sum(is_image) == pytest.approx(20, abs=5) and is_image != sorted(is_image)
    # Of LVIS's classes only those that LV-VIS trains are left: of ids 1 and 3, as 3 and 6.
    labels = {int(n) for s in expected if "image_id" in s for n in s["instances"][0].gt_classes}
    assert labels == {2, 5}
    prints = [fingerprint(sample) for sample in expected]
    for cfg, start in (
        (config(*mixed, "DATALOADER.NUM_WORKERS", 2), 0),
        (config(*mixed), 7),
        (config(*mixed, "DATALOADER.NUM_WORKERS", 1), 7),
    ):
        found = samples(cfg, 15 - start, start)
        assert [fingerprint(sample) for sample in found] == prints[2 * start :]


def test_stored_features_of_pseudo_clips(mini_lvis: MiniLvis, tmp_path: Path) -> None:
    (records,) = load_training_sets(config())
    features = torch.randn(len(records), 512, generator=torch.Generator().manual_seed(0))
    with ImageEmbeddingWriter(tmp_path / "store.safetensors", {}) as writer:
        writer.add([record["clip_key"] for record in records], features)
    # A published file names images by their id.
    by_id = {r["image_id"]: row[None] for r, row in zip(records, features, strict=True)}
    torch.save(by_id, tmp_path / "published.pkl")
    for name in ("store.safetensors", "published.pkl"):
        path = str(tmp_path / name)
        for sample in samples(config("MODEL.MASK_FORMER.CLIP_IMAGE_PATH_TRAIN", path), 3):
            expected = by_id[sample["image_id"]].expand(2, -1)
            assert torch.equal(sample["clip_features"], expected) and "clip_image" not in sample


def test_a_video_without_clip_keys(mini_lvis: MiniLvis) -> None:
    make_videos(mini_lvis.root, "lvvis")
    ours = load_dataset("lvvis_train")[0]
    theirs = {key: value for key, value in ours.items() if key != "clip_keys"}
    np.random.seed(0)
    expected = ClipMapper(config())(ours)
    np.random.seed(0)
    assert fingerprint(ClipMapper(config())(theirs)) == fingerprint(expected)


def test_detectron2s_fields_of_an_image_are_enough(mini_lvis: MiniLvis, tmp_path: Path) -> None:
    record = record_of(1)
    fields = ("bbox", "bbox_mode", "category_id", "segmentation")
    annotations = [{key: a[key] for key in fields} for a in record["annotations"]]
    least = {key: record[key] for key in ("file_name", "image_id", "height", "width")}
    np.random.seed(0)
    expected = ClipMapper(config())(record)
    np.random.seed(0)
    found = ClipMapper(config())({**least, "annotations": annotations})
    assert all(map(torch.equal, found["image"], expected["image"]))
    for ours, theirs in zip(found["instances"], expected["instances"], strict=True):
        assert torch.equal(ours.gt_ids, theirs.gt_ids)
    unlabelled = ClipMapper(config())(least)
    assert [len(instances) for instances in unlabelled["instances"]] == [0, 0]


def test_a_wrong_image_is_named(mini_lvis: MiniLvis) -> None:
    record = record_of(1)
    with pytest.raises(ValueError, match=r"Image 1 .*0001\.png\) has 40 x 60 .* 41 x 60"):
        ClipMapper(config())({**record, "height": 41})
    Path(record["file_name"]).write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"Image 1: .*0001\.png: .*decoded"):
        ClipMapper(config())(record)
