"""The compatibility layer for detectron2.

Every other module imports detectron2's names from here. Where detectron2 is installed they are
detectron2's own objects; elsewhere they come from :mod:`ovformer.d2.builtin`, a small subset with
the same names, arguments and behaviour. The choice is made once, for all names together:
``OVFORMER_D2=auto|detectron2|builtin`` forces it. ``python -m ovformer.d2`` prints what was chosen.
"""

# fvcore is on the package registry, so these are the same objects on both back-ends.
from fvcore.nn.weight_init import c2_xavier_fill

from ovformer.d2.choice import choose_backend

BACKEND = choose_backend()

if BACKEND == "detectron2":
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import CfgNode, configurable, get_cfg
    from detectron2.data import DatasetCatalog, DatasetFromList, MetadataCatalog, transforms
    from detectron2.data.detection_utils import check_image_size, filter_empty_instances, read_image
    from detectron2.data.samplers import (
        InferenceSampler,
        RepeatFactorTrainingSampler,
        TrainingSampler,
    )
    from detectron2.engine import (
        HookBase,
        TrainerBase,
        create_ddp_model,
        default_argument_parser,
        hooks,
    )
    from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
    from detectron2.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec, get_norm
    from detectron2.modeling import (
        BACKBONE_REGISTRY,
        META_ARCH_REGISTRY,
        SEM_SEG_HEADS_REGISTRY,
        Backbone,
        build_backbone,
        build_model,
        build_sem_seg_head,
    )
    from detectron2.projects.point_rend.point_features import (
        get_uncertain_point_coords_with_randomness,
        point_sample,
    )
    from detectron2.solver import build_lr_scheduler
    from detectron2.structures import BitMasks, Boxes, BoxMode, ImageList, Instances
    from detectron2.utils import comm
    from detectron2.utils.collect_env import collect_env_info
    from detectron2.utils.env import seed_all_rng
    from detectron2.utils.events import (
        CommonMetricPrinter,
        EventStorage,
        JSONWriter,
        TensorboardXWriter,
        get_event_storage,
    )
    from detectron2.utils.logger import setup_logger
    from detectron2.utils.registry import Registry
else:
    from ovformer.d2.builtin import comm, hooks, transforms
    from ovformer.d2.builtin.argument_parser import default_argument_parser
    from ovformer.d2.builtin.catalog import DatasetCatalog, MetadataCatalog
    from ovformer.d2.builtin.checkpoint import DetectionCheckpointer
    from ovformer.d2.builtin.config import CfgNode, configurable, get_cfg
    from ovformer.d2.builtin.dataset import DatasetFromList
    from ovformer.d2.builtin.detection_utils import (
        check_image_size,
        filter_empty_instances,
        read_image,
    )
    from ovformer.d2.builtin.env import Registry, collect_env_info, seed_all_rng
    from ovformer.d2.builtin.evaluation import (
        DatasetEvaluator,
        inference_on_dataset,
        print_csv_format,
    )
    from ovformer.d2.builtin.events import (
        CommonMetricPrinter,
        EventStorage,
        JSONWriter,
        TensorboardXWriter,
        get_event_storage,
    )
    from ovformer.d2.builtin.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec, get_norm
    from ovformer.d2.builtin.logger import setup_logger
    from ovformer.d2.builtin.modeling import (
        BACKBONE_REGISTRY,
        META_ARCH_REGISTRY,
        SEM_SEG_HEADS_REGISTRY,
        Backbone,
        build_backbone,
        build_model,
        build_sem_seg_head,
    )
    from ovformer.d2.builtin.point_features import (
        get_uncertain_point_coords_with_randomness,
        point_sample,
    )
    from ovformer.d2.builtin.samplers import (
        InferenceSampler,
        RepeatFactorTrainingSampler,
        TrainingSampler,
    )
    from ovformer.d2.builtin.solver import build_lr_scheduler
    from ovformer.d2.builtin.structures import BitMasks, Boxes, BoxMode, ImageList, Instances
    from ovformer.d2.builtin.trainer import HookBase, TrainerBase, create_ddp_model

__all__ = [
    "BACKBONE_REGISTRY",
    "BACKEND",
    "Backbone",
    "BitMasks",
    "BoxMode",
    "Boxes",
    "CfgNode",
    "CommonMetricPrinter",
    "Conv2d",
    "DatasetCatalog",
    "DatasetEvaluator",
    "DatasetFromList",
    "DetectionCheckpointer",
    "EventStorage",
    "FrozenBatchNorm2d",
    "HookBase",
    "ImageList",
    "InferenceSampler",
    "Instances",
    "JSONWriter",
    "META_ARCH_REGISTRY",
    "MetadataCatalog",
    "Registry",
    "RepeatFactorTrainingSampler",
    "SEM_SEG_HEADS_REGISTRY",
    "ShapeSpec",
    "TensorboardXWriter",
    "TrainerBase",
    "TrainingSampler",
    "build_backbone",
    "build_lr_scheduler",
    "build_model",
    "build_sem_seg_head",
    "c2_xavier_fill",
    "check_image_size",
    "collect_env_info",
    "comm",
    "configurable",
    "create_ddp_model",
    "default_argument_parser",
    "filter_empty_instances",
    "get_cfg",
    "get_event_storage",
    "get_norm",
    "get_uncertain_point_coords_with_randomness",
    "hooks",
    "inference_on_dataset",
    "point_sample",
    "print_csv_format",
    "read_image",
    "seed_all_rng",
    "setup_logger",
    "transforms",
]
