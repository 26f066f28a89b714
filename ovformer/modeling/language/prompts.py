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
    return [
        prompt
        for template in templates
        for prompt in (
            [prompt("{}") for prompt in TEMPLATE_SETS[template]]
            if template in TEMPLATE_SETS
            else [template]
        )
    ]
