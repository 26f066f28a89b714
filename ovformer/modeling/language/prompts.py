"""Prompt templates: sentences in which "{}" stands for a class name."""

from collections.abc import Sequence

import open_clip

# open_clip's prompts for ImageNet: 7 that work well, and all 80.
TEMPLATE_SETS = {
    "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES,
    "imagenet": open_clip.OPENAI_IMAGENET_TEMPLATES,
}


def expand_templates(templates: Sequence[str]) -> list[str]:
    """Replace the name of a set of prompts ("simple" or "imagenet") by its prompts."""
    prompts = []
    for template in templates:
        if template in TEMPLATE_SETS:
            # open_clip's templates are functions of a name; "{}" makes them text again.
            prompts += [fill("{}") for fill in TEMPLATE_SETS[template]]
        else:
            prompts.append(template)
    return prompts
