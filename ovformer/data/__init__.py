"""Data: the known data sets, their readers, and the batches that the model gets.

Importing this package registers every data set of :mod:`ovformer.data.catalog.datasets` in
detectron2's catalogs. Data sets are read later, by name, so ``$DETECTRON2_DATASETS`` may be set
before or after the import.

The packages, in the order of the flow: :mod:`.files` reads and writes single files,
:mod:`.catalog` names the data sets, :mod:`.samples` turns a dataset dict into a sample,
:mod:`.loading` makes batches. :mod:`.exports` converts the exports of annotation tools.

The dataset dict
----------------
``DatasetCatalog.get(name)`` gives a list of dicts, one per image, in detectron2's format (data sets
of videos: see below):

file_name
    path of the image
clip_key
    the same path relative to the dataset root, with "/" as separator
image_id
    int, unique in the data set
height, width
    pixels
annotations
    list of dicts with bbox, bbox_mode, category_id (contiguous from 0), segmentation (polygons, or
    a compressed RLE) and iscrowd
neg_category_ids
    LVIS: the data set's own ids of the categories that annotators did not find in the image
not_exhaustive_category_ids
    LVIS: own ids of the categories that annotators marked only in part

A data set of videos gives one dict per video. T frames:

video_id
    int, unique in the data set
length
    T
height, width
    pixels
file_names, clip_keys
    T str each, as above
annotations
    T lists of dicts, one for each instance that is visible in the frame: as above, and "id", which
    is the same in all frames
neg_category_ids, not_exhaustive_category_ids
    BURST: the same for the video

The batch dict
--------------
A loader yields a list of dicts, the only contract between data and model. H W are the pixels of the
network's input, N instances, D CLIP's width, S the side of CLIP's input:

image
    uint8 (3, H, W), channels in the order of ``INPUT.FORMAT``
height, width
    pixels of the original image; predictions are resized to it
file_name, image_id, ...
    the other fields of the dataset dict except annotations
clip_features
    float32 (1, D), CLIP's embedding of the image, if a store of embeddings is configured
clip_image
    uint8 (3, S, S) RGB, if no store is configured: the original image, its short edge resized to S
    and the centre cropped; the model computes the embedding from it
instances
    training only: ``Instances`` of image size (H, W) with gt_classes int64 (N,), gt_masks
    ``BitMasks`` (N, H, W) and gt_boxes; none of them is empty
instance_counts
    training only, added by the trainer when it cuts a batch into micro-batches: list of int, the
    number of instances of each image of the whole batch
least_size
    training only, also added for micro-batches: least height and width in pixels after padding
broken
    only with ``DATALOADER.SKIP_BROKEN``. Training: list of str, the messages of the broken samples
    that this one replaces; the trainer removes them. Evaluation: str, the message of an image that
    could not be loaded and has no "image"

The dict of a video has other values for:

frames
    evaluation only: an iterator of all T frames in order, each a dict with "image", "file_name" and
    "clip_features" (1, D) or "clip_image", as of an image. Frames are read and decoded in the
    background while it is used, so that a long video is never in memory as a whole. A model takes
    "frames" where a video has it, and else the keys below
image
    training: list of T frames, the sampled ones, which are augmented alike, or copies of an image,
    each augmented in its own way and padded to one size (a pseudo-clip); evaluation: an iterator of
    the images of "frames", to be used in place of it. All frames of a video have one size
video_id, length, file_names
    length is the number of frames in "image"; a pseudo-clip has "image_id" instead of "video_id"
clip_features
    float32 (T, D)
clip_image
    if no store is configured: list of T uint8 (3, S, S); evaluation: an iterator of them, like
    "image" and to be advanced together with it (one that is behind keeps what the other had)
instances
    training only: list of T ``Instances`` with the same N instances in the same order: gt_classes,
    gt_ids int64 (N,), which are -1 where an instance is absent, gt_masks (empty there), gt_boxes
instance_counts
    the number of visible instances of each frame of the whole batch; for a model of clips, of each
    clip

The prediction dict of an image is ``{"instances": Instances}`` with pred_masks bool
(N, height, width), scores, pred_classes (contiguous) and pred_boxes. The prediction dict of a
video is
``{"video_id", "image_size": (height, width), "pred_scores": N floats, highest first, "pred_labels":
N ints, contiguous, "pred_tracks": N ints, "segmentations": N lists of T compressed RLEs}``. A track
that is predicted under several names has the same number in "pred_tracks" each time.
"""

from ovformer.data.catalog.datasets import register_all

register_all()
