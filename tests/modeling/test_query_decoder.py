"""The query decoder: its savings change nothing, and it works at the edges of its settings."""

import pytest
import torch
from torch.nn import functional as F

from ovformer.modeling.decoders.embedding_alignment import UnifiedEmbeddingAlignment
from ovformer.modeling.decoders.query_decoder import (
    MultiScaleMaskedTransformerDecoder,
    VideoMultiScaleMaskedTransformerDecoder,
    attention_mask,
)
from ovformer.ops.mask_resize import mask_logits, resize_mask_features

SIZES = ((2, 3), (4, 5), (7, 9))


def build(
    in_channels=16, queries=6, layers=4, decoder=MultiScaleMaskedTransformerDecoder, **arguments
):
    torch.manual_seed(0)
    class_embed = UnifiedEmbeddingAlignment(
        16, clip_dim=8, text_embeddings=torch.randn(3, 8), num_heads=2
    )
    settings = {"hidden_dim": 16, "mask_dim": 10, "num_heads": 4, "dim_feedforward": 32}
    return decoder(
        in_channels,
        class_embed=class_embed,
        num_queries=queries,
        num_layers=layers,
        **{**settings, "deep_supervision": True, **arguments},
    )


def inputs(channels=16, batch=2):
    torch.manual_seed(1)
    return (
        [torch.randn(batch, channels, *size) for size in SIZES],
        torch.randn(batch, 10, 13, 17),
        torch.randn(batch, 1, 8),
    )


def test_attention_masks_are_the_resized_masks_thresholded() -> None:
    embed, features = torch.randn(2, 5, 10), torch.randn(2, 10, 13, 17)
    embed[1, 2] = 0  # a mask of logits 0, probability one half: all foreground
    features[0, 0] = 30
    embed[0, 3] = -torch.eye(10)[0]  # an empty mask: opened
    plain = mask_logits(embed, features)
    for size, resized in zip(SIZES, resize_mask_features(features, SIZES), strict=True):
        blocked = F.interpolate(plain, size=size, mode="bilinear", align_corners=False)
        blocked = blocked.sigmoid().flatten(2) < 0.5
        assert blocked[0, 3].all() and not blocked[1, 2].any()
        blocked[blocked.all(-1)] = False
        assert attention_mask(embed, resized).equal(~blocked)
    assert not attention_mask(embed.requires_grad_(), resized).requires_grad


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_inference_gives_what_training_gives_for_the_last_layer(layers) -> None:
    decoder = build(layers=layers)
    training = decoder(*inputs())
    inference = decoder.eval()(*inputs())
    assert len(training["aux_outputs"]) == layers and inference["aux_outputs"] == []
    for key in ("pred_logits", "pred_object_logits", "mask_embed", "pred_embds"):
        torch.testing.assert_close(inference[key], training[key], rtol=1e-5, atol=1e-5)
    assert inference["mask_features"].equal(inputs()[1])
    assert inference["pred_logits"].shape == (2, 6, 4)
    assert inference["pred_object_logits"].shape == (2, 6, 2)


def test_each_layers_heads_see_that_layer_alone() -> None:
    """Running all layers through the heads in one go equals one decoder per depth."""
    training = build(layers=4)(*inputs())
    for depth, auxiliary in enumerate(training["aux_outputs"]):
        shallow = build(layers=4)
        for name in ("self_attention", "cross_attention", "ffn"):
            layers = getattr(shallow, f"transformer_{name}_layers")
            setattr(shallow, f"transformer_{name}_layers", layers[:depth])
        expected = shallow.eval()(*inputs())
        assert set(auxiliary) == {"pred_logits", "pred_object_logits", "mask_embed"}
        for key, value in auxiliary.items():
            torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("training", "deep_supervision", "predictions"),
    [(True, True, 5), (True, False, 1), (False, True, 1)],
)
def test_heads_run_only_where_their_output_is_used(training, deep_supervision, predictions) -> None:
    decoder = build(deep_supervision=deep_supervision).train(training)
    seen = []
    for head in (decoder.class_embed, decoder.object_embed):
        head.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    outputs = decoder(*inputs())
    assert seen == [6 * predictions] * 2
    assert len(outputs["aux_outputs"]) == predictions - 1


def test_images_of_a_batch_do_not_influence_each_other() -> None:
    decoder = build().eval()
    features, mask_features, clip_features = inputs()
    both = decoder(features, mask_features, clip_features)
    for index in range(2):
        one = slice(index, index + 1)
        alone = decoder([x[one] for x in features], mask_features[one], clip_features[one])
        for key in ("pred_logits", "pred_object_logits", "mask_embed"):
            torch.testing.assert_close(alone[key], both[key][one], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_clip_in_which_time_does_not_matter_is_an_image(monkeypatch) -> None:
    """A still seen for three frames is, without 3-D positions, the image seen once."""
    monkeypatch.setattr(
        VideoMultiScaleMaskedTransformerDecoder,
        "_encode_positions",
        lambda self, shape, x: MultiScaleMaskedTransformerDecoder._encode_positions(
            self, (), x
        ).repeat(shape[1], 1),
    )
    features, mask_features, clip_features = inputs()
    expected = build()(features, mask_features, clip_features)
    repeated = [x.repeat_interleave(3, dim=0) for x in (*features, mask_features)]
    clips = build(decoder=VideoMultiScaleMaskedTransformerDecoder)(
        repeated[:-1], repeated[-1], clip_features.expand(-1, 3, -1)
    )
    assert clips["mask_features"].equal(mask_features[:, None].expand(-1, 3, -1, -1, -1))
    for got, wanted in (
        (clips, expected),
        *zip(clips["aux_outputs"], expected["aux_outputs"], strict=True),
    ):
        for key in ("pred_logits", "pred_object_logits", "mask_embed"):
            torch.testing.assert_close(got[key], wanted[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arguments", [{"layers": 0}, {"queries": 0}])
def test_too_small_numbers_are_refused(arguments) -> None:
    with pytest.raises(ValueError, match="DEC_LAYERS of at least 2 and NUM_OBJECT_QUERIES"):
        build(**arguments)
