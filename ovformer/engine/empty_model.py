"""A model without any file of its training: its vocabulary is a placeholder, to be replaced."""

import tempfile
from pathlib import Path

import torch
from torch import nn

from ovformer.d2 import CfgNode, build_model
from ovformer.modeling.language.text_classifier import save_text_classifier


def build_empty_model(cfg: CfgNode, device: str) -> nn.Module:
    """Build a model of random weights for any vocabulary.

    Args:
        cfg: the config; neither its text classifier nor anything of its training set is read, and
            nothing is downloaded.
        device: where the model is.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    cfg.MODEL.TIMM.PRETRAINED = False
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 1
    cfg.MODEL.MASK_FORMER.CAT_INFO_PATH = ""
    cfg.DATASETS.TRAIN = ()
    with tempfile.TemporaryDirectory(prefix="ovformer_") as folder:
        classifier = Path(folder, "placeholder.safetensors")
        embedding = torch.ones(1, cfg.MODEL.CLIP.EMBED_DIM, device="cpu")  # whatever the default is
        save_text_classifier(classifier, embedding, None)
        cfg.MODEL.MASK_FORMER.CLIP_TEXT_PATH = str(classifier)
        return build_model(cfg)
