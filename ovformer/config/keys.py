"""Every config key that OVFormer adds to detectron2's, with its default and the default's source.

"Published" in a comment means the value of the system of the ECCV 2024 paper. The published YAML
files load unchanged. Some of their keys have no effect in the published code either; these are
accepted with a warning (``WITHOUT_EFFECT``). For others only one value is implemented
(``FIXED_KEYS``), which :mod:`ovformer.preflight.values` checks.
"""

from ovformer.d2 import CfgNode

# Keys of the published YAML files that select code which OVFormer never runs.
WITHOUT_EFFECT = (
    "INPUT.COLOR_AUG_SSD",
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA",
    "INPUT.SIZE_DIVISIBILITY",
    "MODEL.MASK_FORMER.AGNOSTIC_CLASSIFIER",
    "MODEL.MASK_FORMER.ENC_LAYERS",
    # The published criterion stores it and then uses 0.4: see NO_OBJECT_OBJECTNESS_WEIGHT.
    "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT",
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD",
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD",
    "MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE",
)

# Keys of the published YAML files for which one value is implemented.
FIXED_KEYS = {
    "MODEL.MASK_FORMER.CLIP_CLASSIFIER": True,
    "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ": False,
    "MODEL.MASK_FORMER.PRE_NORM": False,
    "MODEL.MASK_FORMER.TEST.INSTANCE_ON": True,
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": False,
    "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": False,
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
}


def add_ovformer_config(cfg: CfgNode) -> None:
    """Add OVFormer's keys, in place, to a config made by detectron2's ``get_cfg``."""
    for key in WITHOUT_EFFECT:
        cfg.register_deprecated_key(key)
    _add_dataset_keys(cfg)
    _add_input_keys(cfg)
    _add_solver_keys(cfg)
    _add_execution_keys(cfg)
    _add_backbone_keys(cfg)
    _add_head_keys(cfg)
    _add_mask_former_keys(cfg)
    _add_video_keys(cfg)
    _add_clip_keys(cfg)


def _add_dataset_keys(cfg: CfgNode) -> None:
    # Your own data sets, each a dict with name, annotations (JSON in the format of YouTube-VIS,
    # COCO or LVIS), images (folder) and optionally novel (names or ids of categories that are
    # scored separately).
    cfg.DATASETS.CUSTOM = []
    # Shares of the training samples that the sets of DATASETS.TRAIN give, up to a factor, e.g.
    # [3, 1]. Empty: samples are drawn from all sets together, so each set counts by its size.
    cfg.DATASETS.DATASET_RATIO = []
    # Skip images and videos that can't be loaded, instead of stopping at the first one. In training
    # another sample of the same data set replaces them, and metrics.json counts them
    # (broken_samples). In evaluation they have no predictions, so their objects count as missed.
    cfg.DATALOADER.SKIP_BROKEN = False
    # Largest share of the drawn samples that may be skipped (ten always may), and of a data set's
    # files that may be missing at the start.
    cfg.DATALOADER.MAX_BROKEN = 0.05


def _add_input_keys(cfg: CfgNode) -> None:
    # Mapper of the training set. "coco_instance_lsj": large-scale jitter (published).
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_instance_lsj"
    # Large-scale jitter: scale drawn from [MIN_SCALE, MAX_SCALE] times IMAGE_SIZE pixels
    # (published).
    cfg.INPUT.IMAGE_SIZE = 1024
    cfg.INPUT.MIN_SCALE = 0.1
    cfg.INPUT.MAX_SCALE = 2.0
    # More augmentations, any of "brightness", "contrast", "saturation", "rotation" (by up to 15
    # degrees) and "rotation90" (by a random multiple of 90 degrees).
    cfg.INPUT.AUGMENTATIONS = []
    # Clip training: frames per clip, and how far from the reference frame they may be (published).
    cfg.INPUT.SAMPLING_FRAME_NUM = 2
    cfg.INPUT.SAMPLING_FRAME_RANGE = 20
    cfg.INPUT.SAMPLING_FRAME_SHUFFLE = False
    # Clip training on data sets of images makes pseudo-clips: copies of an image, each with its own
    # augmentation. These keys set it; they mean the same as those of the same name under INPUT. All
    # copies share the flip (INPUT.RANDOM_FLIP). MIN_SIZE_TRAIN_SAMPLING "choice_by_clip" and
    # "range_by_clip" share the resize as well, before the crop; "choice" and "range" draw it for
    # each copy, after the crop. The values are ours: the published system does not train on images.
    cfg.INPUT.PSEUDO = CfgNode()
    cfg.INPUT.PSEUDO.AUGMENTATIONS = ["rotation"]
    cfg.INPUT.PSEUDO.MIN_SIZE_TRAIN = (360, 480)
    cfg.INPUT.PSEUDO.MAX_SIZE_TRAIN = 1333
    cfg.INPUT.PSEUDO.MIN_SIZE_TRAIN_SAMPLING = "choice"
    cfg.INPUT.PSEUDO.CROP = CfgNode()
    cfg.INPUT.PSEUDO.CROP.ENABLED = True
    cfg.INPUT.PSEUDO.CROP.TYPE = "relative_range"
    cfg.INPUT.PSEUDO.CROP.SIZE = (0.6, 0.6)


def _add_solver_keys(cfg: CfgNode) -> None:
    # "ADAMW" (published) or "SGD".
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    # Learning rate of the backbone relative to the rest (published).
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    # Weight decay of embeddings (published).
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    # "float16" (with loss scaling, published) or "bfloat16" (no scaling). Used if AMP.ENABLED.
    cfg.SOLVER.AMP.PRECISION = "float16"
    # Forward/backward passes per optimizer step, into which IMS_PER_BATCH is split. The gradient is
    # that of the whole batch, so fewer or smaller GPUs train the same model.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # Use algorithms that give the same bits each time, where they exist; slower on GPUs.
    cfg.SOLVER.DETERMINISTIC = False


def _add_execution_keys(cfg: CfgNode) -> None:
    # docs/performance.md has measurements of each key.
    # Memory format with the channels of a pixel next to each other: "always", "never" or "auto",
    # which uses it for inference on CPUs.
    cfg.MODEL.CHANNELS_LAST = "auto"
    # Backend of torch.compile for backbone, pixel decoder and query decoder, e.g. "inductor".
    # Empty: not compiled.
    cfg.MODEL.COMPILE = ""
    # Precision of the network in evaluation: "float32" (published), "float16" or "bfloat16".
    cfg.TEST.PRECISION = "float32"
    # Precision of the pixel decoder where the network runs in half precision: "float32" (published)
    # or "autocast", which computes sampling locations, norms and softmax in float32 and the rest in
    # half precision.
    cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_PRECISION = "float32"


def _add_backbone_keys(cfg: CfgNode) -> None:
    cfg.MODEL.TIMM = CfgNode()
    # "resnet50_in21k" (published), or any timm model that returns features at several strides.
    cfg.MODEL.TIMM.BASE_NAME = "resnet50_in21k"
    # Stages that are returned as "layer2".."layer5", at strides 4 to 32.
    cfg.MODEL.TIMM.OUT_LEVELS = (2, 3, 4, 5)
    # "FrozenBN" (published) or "BN" (trained).
    cfg.MODEL.TIMM.NORM = "FrozenBN"
    # Stages that are not trained: 0 none, 1 the stem, 2 also the first stage.
    cfg.MODEL.TIMM.FREEZE_AT = 0
    # Let timm download its own pre-trained weights.
    cfg.MODEL.TIMM.PRETRAINED = False
    # Keyword arguments of timm's constructor as a YAML string, e.g. "{layers: [1, 1, 1, 1]}".
    cfg.MODEL.TIMM.KWARGS = ""

    # Swin Transformer. Defaults are those of Swin-T; the published model is Swin-B.
    cfg.MODEL.SWIN = CfgNode()
    cfg.MODEL.SWIN.PRETRAIN_IMG_SIZE = 224
    cfg.MODEL.SWIN.PATCH_SIZE = 4
    cfg.MODEL.SWIN.EMBED_DIM = 96
    cfg.MODEL.SWIN.DEPTHS = [2, 2, 6, 2]
    cfg.MODEL.SWIN.NUM_HEADS = [3, 6, 12, 24]
    cfg.MODEL.SWIN.WINDOW_SIZE = 7
    cfg.MODEL.SWIN.MLP_RATIO = 4.0
    cfg.MODEL.SWIN.QKV_BIAS = True
    cfg.MODEL.SWIN.QK_SCALE = None
    cfg.MODEL.SWIN.DROP_RATE = 0.0
    cfg.MODEL.SWIN.ATTN_DROP_RATE = 0.0
    cfg.MODEL.SWIN.DROP_PATH_RATE = 0.3
    cfg.MODEL.SWIN.APE = False
    cfg.MODEL.SWIN.PATCH_NORM = True
    cfg.MODEL.SWIN.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # Recompute activations in the backward pass, to save memory.
    cfg.MODEL.SWIN.USE_CHECKPOINT = False


def _add_head_keys(cfg: CfgNode) -> None:
    head = cfg.MODEL.SEM_SEG_HEAD
    head.PIXEL_DECODER_NAME = "MSDeformAttnPixelDecoder"
    # Channels of the mask features.
    head.MASK_DIM = 256
    # Multi-scale deformable attention encoder (published values).
    head.TRANSFORMER_ENC_LAYERS = 6
    head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 8
    head.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD = 1024


def _add_mask_former_keys(cfg: CfgNode) -> None:
    # Recompute the activations inside the layers of the pixel decoder's encoder and of the query
    # decoder in the backward pass: less memory, more time, the same gradients.
    cfg.MODEL.ACTIVATION_CHECKPOINTING = False
    cfg.MODEL.MASK_FORMER = node = CfgNode()
    for key, value in FIXED_KEYS.items():
        if ".TEST." not in key:
            node[key.rsplit(".", 1)[1]] = value
    node.TRANSFORMER_DECODER_NAME = "MultiScaleMaskedTransformerDecoder"

    # Query decoder (published values). DEC_LAYERS counts the prediction made from the initial
    # queries.
    node.HIDDEN_DIM = 256
    node.NUM_OBJECT_QUERIES = 100
    node.NHEADS = 8
    # Dropout of the deformable attention encoder; the query decoder has none (published).
    node.DROPOUT = 0.0
    node.DIM_FEEDFORWARD = 2048
    node.DEC_LAYERS = 10
    # Images are padded to a multiple of this number of pixels; 0: the backbone's own multiple.
    node.SIZE_DIVISIBILITY = 32

    # Unified embedding alignment (published values).
    # Width of the MLP that maps queries to CLIP's space; 0: half of CLIP's width.
    node.ALIGNMENT_HIDDEN_DIM = 0
    node.ALIGNMENT_NHEADS = 8
    # Class logits are cosines times this temperature.
    node.CLASS_TEMPERATURE = 50.0
    # Text classifier: .npy of shape (classes, D), or .safetensors with the class names inside.
    node.CLIP_TEXT_PATH = ""
    # Stored CLIP image features for evaluation and for training. Empty: computed by the model.
    node.CLIP_IMAGE_PATH = ""
    node.CLIP_IMAGE_PATH_TRAIN = ""

    # Losses (published values).
    node.DEEP_SUPERVISION = True
    node.OBJECT_WEIGHT = 2.0
    node.CLASS_WEIGHT = 2.0
    node.MASK_WEIGHT = 5.0
    node.DICE_WEIGHT = 5.0
    # Cross-entropy weight of "no object" in the objectness loss.
    node.NO_OBJECT_OBJECTNESS_WEIGHT = 0.4
    # Class loss: factor, and what its sum is divided by: "queries" (batch x queries, published) or
    # "instances" (mean number of instances over processes, at least 1 in the whole batch).
    node.CLASS_LOSS_SCALE = 1.7
    node.CLASS_LOSS_NORM = "queries"
    # Federated loss: classes drawn per batch (those present included; never more than are
    # eligible), with probability proportional to image_count ** FED_LOSS_POWER.
    node.FED_LOSS_NUM_CLASSES = 50
    node.FED_LOSS_POWER = 0.5
    # JSON with image_count and frequency of each class. Empty: from the training set's metadata.
    node.CAT_INFO_PATH = ""
    # Points at which masks are compared, for the matcher and for PointRend's sampling.
    node.TRAIN_NUM_POINTS = 112 * 112
    node.OVERSAMPLE_RATIO = 3.0
    node.IMPORTANCE_SAMPLE_RATIO = 0.75

    node.TEST = CfgNode()
    for key, value in FIXED_KEYS.items():
        if ".TEST." in key:
            node.TEST[key.rsplit(".", 1)[1]] = value


def _add_video_keys(cfg: CfgNode) -> None:
    # Videos frame by frame (published values).
    test = cfg.MODEL.MASK_FORMER.TEST
    # Frames that go through the network together (published: 10). The result does not depend on it.
    # 0: one on a CPU, where that is fastest, and 10 on other devices.
    test.WINDOW_SIZE = 0
    # Queries of a frame are matched with a memory of the previous frames. This is the weight of the
    # current frame's queries in the new memory, above 0 and at most 1.
    test.MEMORY_MOMENTUM = 0.7
    # An object's mask is dropped in frames where its score is below this ratio times its score in
    # the whole video. 0 drops none.
    test.FRAME_SCORE_RATIO = 0.1
    # Videos in clips: frames per clip (published; the last clip may have fewer), and the number of
    # them that are also in the next clip (published: 0), less than CLIP_LENGTH.
    test.CLIP_LENGTH = 5
    test.CLIP_OVERLAP = 0


def _add_clip_keys(cfg: CfgNode) -> None:
    cfg.MODEL.CLIP = CfgNode()
    # open_clip model name and pre-trained tag or file (published: OpenAI's ViT-B/32); or
    # "local-dir:FOLDER" with the folder's open_clip_config.json and weights; or "hf-hub:USER/NAME".
    cfg.MODEL.CLIP.NAME = "ViT-B-32-quickgelu"
    cfg.MODEL.CLIP.PRETRAINED = "openai"
    # Width D of CLIP's joint space, and side in pixels of the image that its image tower takes.
    cfg.MODEL.CLIP.EMBED_DIM = 512
    cfg.MODEL.CLIP.IMAGE_SIZE = 224
    # L2-normalise the image features before the alignment (the published system does not).
    cfg.MODEL.CLIP.NORMALIZE_IMAGE_FEATURES = False
