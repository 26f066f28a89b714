"""CLIP (https://arxiv.org/abs/2103.00020) through open_clip: embeddings of images and of text.

Legend: N images or texts, K classes, S side of CLIP's input in pixels, D CLIP width.
"""

import difflib
import pickle
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import Compose, Normalize

from ovformer.paths import resolve_path

LOCAL_PREFIX = "local-dir:"
HUB_PREFIX = "hf-hub:"
# Texts that go through the text encoder together.
TEXT_BATCH = 256


class CLIPEncoder:
    """A frozen CLIP model.

    It is no ``nn.Module``: as an attribute of a model it is in no state dict and no optimizer.

    Args:
        model: made by open_clip's factory, which attaches its preprocessing.
        tokenizer: from texts to token ids.

    Raises:
        ValueError: the model does not take square images.
    """

    def __init__(self, model: nn.Module, tokenizer: Callable[[list[str]], Tensor]) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        config = PreprocessCfg(**model.visual.preprocess_cfg)
        size = config.size if isinstance(config.size, (tuple, list)) else (config.size,) * 2
        if size[0] != size[1]:
            raise ValueError(f"CLIP models of square images are supported, this one takes {size}")
        self.image_size: int = size[0]
        steps = image_transform_v2(config, is_train=False).transforms
        self._normalize = next(step for step in steps if isinstance(step, Normalize))
        # encode_image does the last two steps, the float tensor and the normalisation, on its
        # device: until then images stay uint8, a quarter of the size.
        self._geometry = Compose(steps[:-2])

    @classmethod
    def from_pretrained(
        cls, name: str, pretrained: str = "", device: str | torch.device = "cpu"
    ) -> "CLIPEncoder":
        """Load a model with its weights.

        Args:
            name: an open_clip model, "local-dir:FOLDER" or "hf-hub:ORGANISATION/REPOSITORY".
            pretrained: weights of an open_clip model: a tag or a file. Not used with a prefix.
            device: where the model runs.

        Raises:
            ValueError: open_clip has no such model or weights, or the folder's content is wrong.
            FileNotFoundError: the folder, or its configuration or weights, do not exist.
            OSError: the weights could not be downloaded.
        """
        check_clip_model(name, pretrained)
        if name.startswith(LOCAL_PREFIX):
            name = LOCAL_PREFIX + str(resolve_path(name.removeprefix(LOCAL_PREFIX)))
        # A folder or repository holds its own weights, for which open_clip wants no tag.
        if name.startswith((LOCAL_PREFIX, HUB_PREFIX)):
            pretrained = ""
        try:
            # open_clip draws random weights before it loads the real ones. A training makes the
            # model at its first step, also when it is resumed: its own random numbers must stay.
            with torch.random.fork_rng(devices=[]):
                model = open_clip.create_model(
                    name, pretrained or None, device=device, require_pretrained=True
                )
            tokenizer = open_clip.get_tokenizer(name)
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            if name.startswith(LOCAL_PREFIX) or Path(pretrained).is_file():
                raise ValueError(f"CLIP model {name!r} {pretrained}: {error}") from error
            raise OSError(
                f"CLIP model {name!r}: could not get the weights {pretrained!r} ({error}). Without "
                "a network, do one of these: load it once where there is one and copy the cache "
                "($HF_HOME); set MODEL.CLIP.PRETRAINED to a file of weights; set MODEL.CLIP.NAME "
                f"to {LOCAL_PREFIX}FOLDER. Training and evaluation with stored image features "
                "(tools/save_clip_features.py) and a text classifier need no CLIP model"
            ) from error
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"CLIP model {name!r}: open_clip cannot build it ({error!r}). Compare its "
                "open_clip_config.json with the model configurations of open_clip"
            ) from error
        return cls(model, tokenizer)

    @cached_property
    def embed_dim(self) -> int:
        """D, the width of the embeddings."""
        # open_clip's models keep their width under different names: ask for an embedding.
        return self.encode_text(["a"]).shape[1]

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    def preprocess(self, image: Image.Image | np.ndarray) -> Tensor:
        """Resize and crop an image as the model was trained with, up to the normalisation.

        Args:
            image: a PIL image, or uint8 (H, W, 3) RGB.

        Returns:
            uint8 (3, S, S) RGB.

        Raises:
            ValueError: the array is not uint8 (H, W, 3).
        """
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(
                    f"expected an image of uint8 (H, W, 3), got {image.dtype} {image.shape}"
                )
            image = Image.fromarray(image)
        return torch.from_numpy(np.array(self._geometry(image))).permute(2, 0, 1).contiguous()

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Embed preprocessed images, in float32 also under autocast.

        Args:
            images: uint8 (N, 3, S, S) RGB.

        Returns:
            (N, D) float32 on the model's device, not normalised.

        Raises:
            ValueError: the images have another type or size.
        """
        expected = (3, self.image_size, self.image_size)
        if images.dtype != torch.uint8 or images.shape[1:] != expected:
            raise ValueError(
                f"expected images of uint8 (N, {', '.join(map(str, expected))}) as preprocess() "
                f"makes them, got {images.dtype} {tuple(images.shape)}. MODEL.CLIP.IMAGE_SIZE has "
                f"to be {self.image_size} for this CLIP model"
            )
        with torch.autocast(self.device.type, enabled=False):
            normalized = self._normalize(images.to(self.device, torch.float32) / 255)
            return self.model.encode_image(normalized).float()

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embed texts; texts longer than the model's context are cut off.

        Args:
            texts: N texts, at least one.

        Returns:
            (N, D) float32 on the model's device, rows of unit length.
        """
        tokens = self.tokenizer(list(texts)).to(self.device)
        # In float32: embeddings are stored and compared across runs, and half precision of a
        # training around this call would change them.
        with torch.autocast(self.device.type, enabled=False):
            batches = [self.model.encode_text(batch) for batch in tokens.split(TEXT_BATCH)]
        return F.normalize(torch.cat(batches).float(), dim=1)

    def embed_names(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Embed class names: the mean over prompt templates, as in CLIP's zero-shot classifiers.

        Source: CLIP, section 3.1.4.

        Args:
            names: K class names.
            templates: prompts, each with a "{}" for the name.

        Returns:
            (K, D) float32 on the model's device, rows of unit length.

        Raises:
            ValueError: there are no names or no templates, or a template has no "{}".
        """
        if not names or not templates:
            raise ValueError(f"{len(names)} class names and {len(templates)} templates: need both")
        for template in templates:
            if "{}" not in template:
                raise ValueError(f"prompt template {template!r} has no {{}} for the class name")
        # Each prompt's embedding has unit length, so all prompts weigh the same; the sum has the
        # direction of the mean.
        total = sum(
            self.encode_text([template.replace("{}", name) for name in names])
            for template in templates
        )
        return F.normalize(total, dim=1)


def check_clip_model(name: str, pretrained: str) -> None:
    """Raise what :meth:`CLIPEncoder.from_pretrained` does for a model that can't be loaded.

    Nothing is loaded: the weights may still turn out to be missing or unreadable.
    """
    if name.startswith(LOCAL_PREFIX):
        _check_folder(name.removeprefix(LOCAL_PREFIX))
    elif not name.startswith(HUB_PREFIX):
        _check_name(name, pretrained)


def _check_name(name: str, pretrained: str) -> None:
    """Raise ValueError for a model or weights that open_clip does not know."""
    models = open_clip.list_models()
    if name.replace("/", "-") not in models:
        near = difflib.get_close_matches(name, models, n=5, cutoff=0.4)
        raise ValueError(
            f"MODEL.CLIP.NAME: unknown open_clip model {name!r}. Nearest known: {', '.join(near)}. "
            f"open_clip.list_models() lists all; {LOCAL_PREFIX}FOLDER loads a local one"
        )
    tags = open_clip.list_pretrained_tags_by_model(name.replace("/", "-"))
    # open_clip takes tags in any case, with - or _.
    known = {tag.replace("-", "_").lower() for tag in tags}
    if pretrained.replace("-", "_").lower() not in known and not Path(pretrained).is_file():
        raise ValueError(
            f"MODEL.CLIP.PRETRAINED: {pretrained!r} is neither a file nor weights of {name!r}. "
            f"Known for it: {', '.join(tags) or 'none'}"
        )


def _check_folder(folder: str) -> None:
    """Raise FileNotFoundError if the folder of a local model lacks a file."""
    path = resolve_path(folder)
    config = path / "open_clip_config.json"
    if not config.is_file():
        raise FileNotFoundError(
            f"MODEL.CLIP.NAME: no {config}. {LOCAL_PREFIX}FOLDER needs a folder with "
            "open_clip_config.json and weights (open_clip_model.safetensors)"
        )
    if not any(p.suffix in (".safetensors", ".bin", ".pth") for p in path.iterdir()):
        raise FileNotFoundError(
            f"MODEL.CLIP.NAME: no weights (.safetensors, .bin or .pth) in {path}"
        )
