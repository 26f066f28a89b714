"""CLIP's embeddings of class names, each computed once.

Legend: K classes, D CLIP width.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ovformer.modeling.language.clip_encoder import CLIPEncoder
from ovformer.modeling.language.prompts import expand_templates

# Two embeddings of a name with at least this cosine come from the same CLIP model.
_SAME_MODEL_COSINE = 0.99
_NUM_COMPARED = 4  # names that are compared
_BATCH_SIZE = 512  # names that are embedded together
_CACHE_SIZE = 50_000  # embeddings; a server that gets ever new names must not grow

logger = logging.getLogger(__name__)


class NameEmbedder:
    """Embeds names, each once. The CLIP model is loaded when it is first needed.

    Args:
        clip: name and weights, see :meth:`CLIPEncoder.from_pretrained`.
        device: of the CLIP model.
        templates: prompts, or names of sets of them ("simple", "imagenet").
        trained_with: "name" and "pretrained" of the CLIP model of the training.
        reference: names and their embeddings (K, D) by that model.
        reference_templates: the prompts of these embeddings; empty where not known.
    """

    def __init__(
        self,
        clip: tuple[str, str],
        device: torch.device,
        templates: Sequence[str],
        *,
        trained_with: dict[str, str] | None = None,
        reference: tuple[Sequence[str], Tensor] | None = None,
        reference_templates: Sequence[str] = (),
    ) -> None:
        self.clip = clip
        self.device = device
        self.templates = expand_templates(templates)
        self._trained_with = trained_with or {}
        self._reference = reference
        self._reference_templates = list(reference_templates)
        self._encoder: CLIPEncoder | None = None
        self._known: dict[str, Tensor] = {}

    def load_encoder(self, device: torch.device | None = None) -> CLIPEncoder:
        """Return the CLIP model, which the first call loads.

        Args:
            device: of the model, in the first call; None for that of the constructor.

        Raises:
            ValueError: it is not the CLIP model that the weights were trained with.
        """
        if self._encoder is None:
            encoder = CLIPEncoder.from_pretrained(*self.clip, device=device or self.device)
            self._check(encoder)
            self._encoder = encoder
        return self._encoder

    def __call__(self, names: Sequence[str]) -> Tensor:
        """Return the embeddings of names, (K, D) of unit length, on the CPU.

        Raises:
            ValueError: see :meth:`load_encoder`.
        """
        new = [name for name in dict.fromkeys(names) if name not in self._known]
        if len(self._known) + len(new) > _CACHE_SIZE:
            # Names of this call that were known are forgotten with the others, so all are new.
            self._known, new = {}, list(dict.fromkeys(names))
        if new:
            encoder = self.load_encoder()
            self._warn_of_long_names(encoder, new)
            if len(new) > _BATCH_SIZE:
                logger.info(
                    "Embedding %d names with %d prompts each", len(new), len(self.templates)
                )
        for start in range(0, len(new), _BATCH_SIZE):
            chunk = new[start : start + _BATCH_SIZE]
            rows = self._encoder.embed_names(chunk, self.templates).cpu()
            self._known.update(zip(chunk, rows.clone(), strict=True))
        return torch.stack([self._known[name] for name in names])

    def _check(self, encoder: CLIPEncoder) -> None:
        """Raise ValueError when this CLIP model is not that of the weights.

        Names of models say little: folders and copies have any name. Where the weights have
        embeddings of names, these are compared with the ones that this model makes.
        """
        trained = self._trained_with
        wanted = f"{trained.get('name')!r} with weights {trained.get('pretrained')!r}"
        name, pretrained = self.clip
        advice = (
            f"The weights were trained with CLIP {wanted if trained else 'of another kind'}, but "
            f"this is {name!r} with weights {pretrained!r}: {{}}. Names and images have to be "
            "embedded by the CLIP model of the training: MODEL.CLIP.NAME and "
            "MODEL.CLIP.PRETRAINED, on the command line --clip and --clip-pretrained"
        )
        # Embeddings of another width can't be compared.
        if self._reference is not None and self._reference[1].shape[1] != encoder.embed_dim:
            width = self._reference[1].shape[1]
            raise ValueError(advice.format(f"its width is {encoder.embed_dim}, needed is {width}"))
        if self._reference is not None and self._reference_templates:
            names, embeddings = self._reference
            # A few names are enough: another model moves every embedding.
            chosen = [name.replace("_", " ") for name in names[:_NUM_COMPARED]]
            here = encoder.embed_names(chosen, self._reference_templates).cpu()
            cosines = (here * F.normalize(embeddings[: len(chosen)], dim=1)).sum(1)
            worst = int(cosines.argmin())
            if cosines[worst] < _SAME_MODEL_COSINE:
                found = f"it embeds {chosen[worst]!r} otherwise (cosine {cosines[worst]:.2f})"
                raise ValueError(advice.format(found))
        elif trained and (trained.get("name"), trained.get("pretrained")) != self.clip:
            raise ValueError(advice.format("another name"))

    def _warn_of_long_names(self, encoder: CLIPEncoder, names: Sequence[str]) -> None:
        """Warn of names that are too long for the text model, which reads only their beginning."""
        longest = max(self.templates, key=len)
        # A token has a letter or more and CLIP reads 77: a name of 40 letters fits in practice,
        # and need not be tokenised twice.
        suspects = [name for name in names if len(name) > 40]
        full = [
            name
            for name in suspects
            # Texts are padded with zeros, so a last token that is not 0 means a full context.
            if encoder.tokenizer([longest.replace("{}", name)])[0, -1] != 0
        ]
        if full:
            logger.warning(
                "%d names are as long as or longer than CLIP's text model reads, which drops the "
                "rest. The first: %s...",
                len(full),
                full[0][:60],
            )
