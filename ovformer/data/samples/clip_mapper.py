"""Turns a video, or an image, into a training clip.

An image becomes a pseudo-clip: copies of it that are cropped, resized and rotated each in another
way, so that its objects seem to move.

Legend: T frames, N instances, D CLIP width, H W pixels of the frames that the network sees, h w the
same before padding.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ovformer.d2 import BitMasks, CfgNode, Instances, configurable
from ovformer.d2 import transforms as T
from ovformer.data.files.image_embeddings import (
    ImageEmbeddingStore,
    crop_for_embedding,
    make_image_key,
)
from ovformer.data.samples.augmentation import PAD_VALUE, pad
from ovformer.data.samples.clip_augmentation import (
    ClipAugmentation,
    build_clip_augmentation,
    build_pseudo_augmentation,
)
from ovformer.data.samples.frame_sampling import sample_frames
from ovformer.data.samples.image_mapper import (
    check_image_format,
    open_embeddings,
    to_tensor,
    transform_mask,
)
from ovformer.data.samples.video_reader import check_frame_size, read_frame, stack_embeddings


class ClipMapper:
    """Draws a clip from a video or an image, augments its frames, and collects their instances.

    Args:
        augmentation: of the frames of a video.
        pseudo_augmentation: of the copies of an image.
        image_format: channel order of "image", "RGB" or "BGR".
        clip_image_size: S in pixels.
        embeddings: store of "clip_features"; without it samples have "clip_image".
        num_frames: frames of a clip, T.
        frame_range: largest distance from the reference frame, in frames.
        shuffle: return the frames in random order.
    """

    @configurable
    def __init__(
        self,
        *,
        augmentation: ClipAugmentation,
        pseudo_augmentation: ClipAugmentation,
        image_format: str,
        clip_image_size: int,
        embeddings: ImageEmbeddingStore | None,
        num_frames: int,
        frame_range: int,
        shuffle: bool = False,
    ):
        check_image_format(image_format)
        self.augmentation = augmentation
        self.pseudo_augmentation = pseudo_augmentation
        self.image_format = image_format
        self.clip_image_size = clip_image_size
        self.embeddings = embeddings
        self.num_frames = num_frames
        self.frame_range = frame_range
        self.shuffle = shuffle

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Read the arguments from a config."""
        return {
            "augmentation": build_clip_augmentation(cfg),
            "pseudo_augmentation": build_pseudo_augmentation(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "clip_image_size": cfg.MODEL.CLIP.IMAGE_SIZE,
            "embeddings": open_embeddings(cfg, "CLIP_IMAGE_PATH_TRAIN"),
            "num_frames": cfg.INPUT.SAMPLING_FRAME_NUM,
            "frame_range": cfg.INPUT.SAMPLING_FRAME_RANGE,
            "shuffle": cfg.INPUT.SAMPLING_FRAME_SHUFFLE,
        }

    def __call__(self, record: dict) -> dict:
        """Return the training sample of a video or an image; :mod:`ovformer.data` describes it.

        Args:
            record: a dataset dict of a video, or of an image; it is not changed.

        Raises:
            FileNotFoundError: a frame is missing.
            ValueError: a frame can't be decoded, or its size is not that of the annotations.
        """
        is_video = "file_names" in record
        # From here on an image is a video of one frame, which is drawn again and again.
        video = record if is_video else _make_one_frame_video(record)
        # The loader seeded NumPy with the sample's place in the stream, so resumed runs repeat it.
        seed = int(np.random.randint(2**31))
        times = sample_frames(
            video["length"], self.num_frames, self.frame_range, seed, self.shuffle
        )
        keys = video.get("clip_keys") or list(map(make_image_key, video["file_names"]))
        # A frame that is drawn more than once is read once.
        read = {t: read_frame(video, t) for t in sorted(set(times))}
        for t, frame in read.items():
            check_frame_size(video, t, frame.shape[:2], (video["height"], video["width"]))
        augment = self.augmentation if is_video else self.pseudo_augmentation
        images, transforms = augment([read[t] for t in times])
        # Copies of an image may be resized differently; the model needs frames of one size.
        sizes = [image.shape[:2] for image in images]
        size = tuple(map(max, zip(*sizes, strict=True)))
        annotations = [
            [a for a in video["annotations"][t] if not a.get("iscrowd", 0)] for t in times
        ]
        sample = {key: value for key, value in video.items() if key != "annotations"} | {
            "length": len(times),
            "file_names": [video["file_names"][t] for t in times],
            "clip_keys": [keys[t] for t in times],
            "image": [
                to_tensor(pad(image, size, PAD_VALUE), self.image_format) for image in images
            ],
            "instances": make_clip_instances(annotations, transforms, sizes, size),
        }
        # CLIP sees whole frames, not augmented ones, as where embeddings are stored.
        if self.embeddings is None:
            crops = {
                t: crop_for_embedding(frame, self.clip_image_size) for t, frame in read.items()
            }
            sample["clip_image"] = [crops[t] for t in times]
        elif is_video:
            sample["clip_features"] = stack_embeddings(self.embeddings, sample)
        else:  # published files name images by their id, not by the key of a frame
            sample["clip_features"] = self.embeddings.get(record).repeat(len(times), 1)
        return sample


def make_clip_instances(
    annotations: Sequence[Sequence[dict]],
    transforms: Sequence[T.TransformList],
    sizes: Sequence[tuple[int, int]],
    image_size: tuple[int, int],
) -> list[Instances]:
    """Return the instances of each frame of a clip, the same ones in the same order in all frames.

    Args:
        annotations: of each of the T frames.
        transforms: applied to each frame.
        sizes: (h, w) of each transformed frame.
        image_size: (H, W), to which frames are padded at the right and the bottom.

    Returns:
        T ``Instances`` of all N instances that are visible in any frame: gt_classes (N,), gt_ids
        (N,), which are -1 where an instance is absent, gt_masks (empty there) and gt_boxes.
    """
    # Augmentation may push an instance out of every frame: only visible ones get a row.
    masks: dict[int, Tensor] = {}
    labels: dict[int, int] = {}
    frames = zip(annotations, transforms, sizes, strict=True)
    for t, (of_frame, transform, (height, width)) in enumerate(frames):
        for annotation in of_frame:
            mask = transform_mask(annotation["segmentation"], transform, (height, width)) > 0
            if mask.any():
                number = annotation["id"]
                if number not in masks:
                    masks[number] = torch.zeros(len(annotations), *image_size, dtype=torch.bool)
                    labels[number] = annotation["category_id"]
                masks[number][t, :height, :width] = torch.from_numpy(np.ascontiguousarray(mask))
    # The same rows in all frames: a query of a clip stands for one instance in all of them.
    ids = torch.tensor(list(masks), dtype=torch.int64)
    classes = torch.tensor(list(labels.values()), dtype=torch.int64)
    nothing = torch.zeros(0, len(annotations), *image_size, dtype=torch.bool)
    tubes = torch.stack(list(masks.values())) if masks else nothing
    clip = []
    for t in range(len(annotations)):
        instances = Instances(image_size)
        instances.gt_classes = classes
        instances.gt_ids = torch.where(tubes[:, t].flatten(1).any(dim=1), ids, -1)
        instances.gt_masks = BitMasks(tubes[:, t])
        instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        clip.append(instances)
    return clip


def _make_one_frame_video(record: dict) -> dict:
    """Turn the dataset dict of an image into that of a video, and number its instances."""
    per_image = ("file_name", "clip_key", "annotations")
    return {key: value for key, value in record.items() if key not in per_image} | {
        "length": 1,
        "file_names": [record["file_name"]],
        "clip_keys": [record.get("clip_key") or make_image_key(record["file_name"])],
        "annotations": [
            [{**a, "id": number} for number, a in enumerate(record.get("annotations", []))]
        ],
    }
