"""The optimizer, its parameter groups, gradient clipping, and scaling to the number of GPUs."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ovformer.d2 import CfgNode

OPTIMIZERS = ("ADAMW", "SGD")
CLIP_TYPES = ("full_model", "norm", "value")

# Clips the gradients of parameters in place; returns their total norm before clipping.
GradientClipper = Callable[[Iterable[nn.Parameter]], Tensor]

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)
_POSITION_TABLES = ("relative_position_bias_table", "absolute_pos_embed")

logger = logging.getLogger(__name__)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of ``SOLVER.OPTIMIZER`` over all parameters that are trained.

    Raises:
        ValueError: the optimizer is not known.
    """
    groups = group_parameters(
        model,
        lr=cfg.SOLVER.BASE_LR,
        backbone_multiplier=cfg.SOLVER.BACKBONE_MULTIPLIER,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        weight_decay_embed=cfg.SOLVER.WEIGHT_DECAY_EMBED,
    )
    if cfg.SOLVER.OPTIMIZER == "ADAMW":
        return torch.optim.AdamW(groups, lr=cfg.SOLVER.BASE_LR)
    if cfg.SOLVER.OPTIMIZER == "SGD":
        return torch.optim.SGD(
            groups,
            lr=cfg.SOLVER.BASE_LR,
            momentum=cfg.SOLVER.MOMENTUM,
            nesterov=cfg.SOLVER.NESTEROV,
        )
    raise ValueError(
        f"SOLVER.OPTIMIZER: unknown {cfg.SOLVER.OPTIMIZER!r}. Known: {', '.join(OPTIMIZERS)}"
    )


def group_parameters(
    model: nn.Module,
    *,
    lr: float,
    backbone_multiplier: float,
    weight_decay: float,
    weight_decay_norm: float,
    weight_decay_embed: float,
) -> list[dict]:
    """Sort a model's trained parameters by learning rate and weight decay.

    Args:
        model: parameters below its ``backbone`` are the backbone's.
        lr: learning rate.
        backbone_multiplier: factor of the backbone's learning rate.
        weight_decay: of all other parameters than the following.
        weight_decay_norm: of normalisation layers.
        weight_decay_embed: of embeddings. Tables of positions are never decayed.

    Returns:
        One dict ``{"params", "lr", "weight_decay"}`` for each combination. A shared parameter is in
        one of them only.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    seen: set[nn.Parameter] = set()
    # Over modules, because the decay depends on what kind of module a parameter is in.
    for module_name, module in model.named_modules():
        in_backbone = module_name.split(".", 1)[0] == "backbone"
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            decay = weight_decay
            if isinstance(module, _NORMS):
                decay = weight_decay_norm
            elif isinstance(module, nn.Embedding):
                decay = weight_decay_embed
            elif name in _POSITION_TABLES:
                decay = 0.0
            groups[lr * (backbone_multiplier if in_backbone else 1.0), decay].append(parameter)
    return [
        {"params": parameters, "lr": group_lr, "weight_decay": decay}
        for (group_lr, decay), parameters in groups.items()
    ]


def build_gradient_clipper(cfg: CfgNode) -> GradientClipper:
    """Return the function that clips as ``SOLVER.CLIP_GRADIENTS`` says.

    ``full_model`` scales all gradients together so that their norm is at most ``CLIP_VALUE``;
    ``norm`` does that for each parameter alone; ``value`` clamps each number to ``CLIP_VALUE``.

    Raises:
        ValueError: ``CLIP_TYPE`` is not known.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.CLIP_TYPE not in CLIP_TYPES:
        raise ValueError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE: unknown {clip.CLIP_TYPE!r}. "
            f"Known: {', '.join(CLIP_TYPES)}"
        )

    def clip_gradients(parameters: Iterable[nn.Parameter]) -> Tensor:
        parameters = [p for p in parameters if p.grad is not None]
        # Before clipping: the norm is logged, and shows gradients that are not finite.
        norm = nn.utils.get_total_norm([p.grad for p in parameters], clip.NORM_TYPE)
        if not clip.ENABLED or clip.CLIP_VALUE <= 0:
            return norm
        if clip.CLIP_TYPE == "full_model":
            nn.utils.clip_grads_with_norm_(parameters, clip.CLIP_VALUE, norm)
        elif clip.CLIP_TYPE == "norm":
            for parameter in parameters:
                nn.utils.clip_grad_norm_(parameter, clip.CLIP_VALUE, clip.NORM_TYPE)
        else:
            nn.utils.clip_grad_value_(parameters, clip.CLIP_VALUE)
        return norm

    return clip_gradients


def scale_to_world_size(cfg: CfgNode, world_size: int) -> CfgNode:
    """Scale a config for ``SOLVER.REFERENCE_WORLD_SIZE`` processes to another number of them.

    The batch of each process stays the same: the whole batch and the learning rate grow with the
    number of processes, and everything counted in iterations shrinks (the linear scaling rule of
    Goyal et al., 2017, https://arxiv.org/abs/1706.02677).

    Args:
        cfg: the config; it is not changed.
        world_size: number of processes.

    Returns:
        The scaled config; ``cfg`` itself where the key is 0 or equal to ``world_size``.

    Raises:
        ValueError: the batch can't be split among the reference's processes, or a number of
            iterations would be 0.
    """
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference in (0, world_size):
        return cfg
    if reference < 0 or cfg.SOLVER.IMS_PER_BATCH % reference:
        raise ValueError(
            f"SOLVER.REFERENCE_WORLD_SIZE is {reference}; SOLVER.IMS_PER_BATCH, "
            f"{cfg.SOLVER.IMS_PER_BATCH}, has to be a multiple of it. 0 turns scaling off."
        )
    scale = world_size / reference
    scaled = cfg.clone()
    scaled.defrost()
    scaled.SOLVER.REFERENCE_WORLD_SIZE = world_size  # so that the saved config is not scaled again
    scaled.SOLVER.IMS_PER_BATCH = round(cfg.SOLVER.IMS_PER_BATCH * scale)
    scaled.SOLVER.BASE_LR = cfg.SOLVER.BASE_LR * scale
    scaled.SOLVER.STEPS = tuple(round(step / scale) for step in cfg.SOLVER.STEPS)
    for key in ("MAX_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD"):
        scaled.SOLVER[key] = round(cfg.SOLVER[key] / scale)
    scaled.TEST.EVAL_PERIOD = round(cfg.TEST.EVAL_PERIOD / scale)
    scaled.freeze()
    # Rounded to 0, a period would mean "never" or divide by zero, and MAX_ITER no training.
    for section, key in (
        ("SOLVER", "MAX_ITER"),
        ("SOLVER", "CHECKPOINT_PERIOD"),
        ("TEST", "EVAL_PERIOD"),
    ):
        if cfg[section][key] > 0 == scaled[section][key]:
            raise ValueError(
                f"{section}.{key}: {cfg[section][key]} would be 0, scaled from "
                f"SOLVER.REFERENCE_WORLD_SIZE {reference} to {world_size} processes. Expected "
                "more, or SOLVER.REFERENCE_WORLD_SIZE 0, which turns scaling off."
            )
    changes = [
        f"{section}.{key} {old} -> {scaled[section][key]}"
        for section in ("SOLVER", "TEST")
        for key, old in cfg[section].items()
        if scaled[section][key] != old
    ]
    logger.info("Scaled to the number of processes: %s", ", ".join(changes))
    return scaled
