"""The query decoder: where it looks, where its heads run, and the edges of its settings."""

import pytest
import torch
from torch.nn import functional as F

from ovformer.modeling.decoders.embedding_alignment import UnifiedEmbeddingAlignment
from ovformer.modeling.decoders.query_decoder import (
    MultiScaleMaskedTransformerDecoder,
    make_attention_mask,
)
from ovformer.ops.mask_resize import mask_logits, resize_mask_features


def build(**changed):
    class_embed = UnifiedEmbeddingAlignment(
        16, clip_dim=8, text_embeddings=torch.randn(3, 8), num_heads=2
    )
    arguments = {
        "hidden_dim": 16,
        "mask_dim": 10,
        "num_queries": 6,
        "num_layers": 4,
        "num_heads": 4,
        "dim_feedforward": 32,
        "deep_supervision": True,
        **changed,
    }
    return MultiScaleMaskedTransformerDecoder(16, class_embed=class_embed, **arguments)


def test_attention_masks_are_the_resized_masks_thresholded() -> None:
    embed, features = torch.randn(2, 5, 10), torch.randn(2, 10, 13, 17)
    embed[1, 2] = 0  # a mask of logits 0, probability one half: all foreground
    features[0, 0] = 30
    embed[0, 3] = -torch.eye(10)[0]  # an empty mask: opened
    sizes = ((2, 3), (4, 5), (7, 9))
    for size, resized in zip(sizes, resize_mask_features(features, sizes), strict=True):
        masks = F.interpolate(mask_logits(embed, features), size, mode="bilinear").flatten(2)
        assert (masks[0, 3] < 0).all() and (masks[1, 2] == 0).all()
        expected = (masks >= 0) | (masks < 0).all(2, keepdim=True)
        assert make_attention_mask(embed.requires_grad_(), resized).equal(expected)


@pytest.mark.parametrize(
    ("training", "deep_supervision", "predictions"),
    [(True, True, 5), (True, False, 1), (False, True, 1)],
)
def test_heads_run_only_where_their_output_is_used(training, deep_supervision, predictions) -> None:
    decoder = build(deep_supervision=deep_supervision).train(training)
    seen = []
    for head in (decoder.class_embed, decoder.object_embed):
        head.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    levels = [torch.randn(2, 16, *size) for size in ((2, 3), (4, 5), (7, 9))]
    outputs = decoder(levels, torch.randn(2, 10, 13, 17), torch.randn(2, 1, 8))
    assert seen == [6 * predictions] * 2
    assert len(outputs["aux_outputs"]) == predictions - 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_layers": 0}, "DEC_LAYERS of at least 2.*got 1 and 6"),
        ({"num_queries": 0}, "NUM_OBJECT_QUERIES of at least 1.*got 5 and 0"),
        ({"num_heads": 5}, "width 16 cannot have 5 heads"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        build(**arguments)
