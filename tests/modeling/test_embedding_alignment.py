"""The class head: one token or many, any vocabulary and width, and exact savings."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ovformer.config import get_ovformer_cfg
from ovformer.modeling.decoders.embedding_alignment import UnifiedEmbeddingAlignment


def build(classes=5, width=16, **arguments):
    torch.manual_seed(0)
    arguments = {"text_embeddings": torch.randn(classes, width), "num_heads": 4, **arguments}
    return UnifiedEmbeddingAlignment(12, clip_dim=width, **arguments)


def plain(module, queries, clip_features):
    """The head as published: full cross-attention, whatever the number of tokens."""
    layer = module.cross_attention
    width = module.clip_dim
    attention = nn.MultiheadAttention(width, layer.multihead_attn.num_heads, batch_first=True)
    attention.load_state_dict(layer.multihead_attn.state_dict())
    x = module.linear(queries)
    x = layer.norm(x + attention(x, clip_features, clip_features)[0])
    return module.temperature * F.normalize(x, dim=-1) @ module.zs_weight


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize(("classes", "width"), [(1, 16), (5, 128), (1203, 512)])
def test_logits_are_those_of_the_full_cross_attention(tokens, classes, width) -> None:
    module = build(classes, width)
    queries, clip_features = torch.randn(2, 4, 12), torch.randn(2, tokens, width) * 3
    got, expected = module(queries, clip_features), plain(module, queries, clip_features)
    assert got.shape == (2, 4, classes + 1)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
    assert not got[..., -1].any()  # "no object" has the zero column
    assert got.abs().max() <= module.temperature * (1 + 1e-5)


def test_text_embeddings_are_normalised_in_float32_also_under_autocast() -> None:
    module = build()
    torch.testing.assert_close(module.zs_weight[:, :-1].norm(dim=0), torch.ones(5))
    with torch.autocast("cpu", torch.bfloat16):
        logits = module(torch.randn(2, 4, 12), torch.randn(2, 1, 16))
    assert logits.dtype == torch.float32


def test_hidden_width_is_half_of_clips_or_what_is_asked_for() -> None:
    assert build(width=16).linear[0].out_features == 8
    assert build(hidden_dim=20).linear[0].out_features == 20


def test_the_vocabulary_can_be_replaced_by_one_of_another_size() -> None:
    module = build(classes=5, class_names=list("abcde"))
    queries, clip_features = torch.randn(1, 3, 12), torch.randn(1, 1, 16)
    before = module(queries, clip_features)
    weights = torch.cat([torch.randn(2, 16), 7 * module.zs_weight[:, 3:4].T])
    module.set_text_classifier(weights, ["x", "y", "d"])
    assert (module.num_classes, module.class_names) == (3, ["x", "y", "d"])
    after = module(queries, clip_features)
    torch.testing.assert_close(after[..., 2], before[..., 3], rtol=1e-5, atol=1e-5)
    assert module.state_dict()["zs_weight"].shape == (16, 4)


def test_a_head_without_a_vocabulary_is_used_after_one_is_set() -> None:
    module = build(width=16, text_embeddings=None)
    assert (module.num_classes, module.class_names) == (0, None)
    queries, clip_features = torch.randn(1, 3, 12), torch.randn(1, 1, 16)
    with pytest.raises(ValueError, match="set_text_classifier"):
        module(queries, clip_features)
    module.set_text_classifier(torch.randn(2, 16), ["a", "b"])
    assert module(queries, clip_features).shape == (1, 3, 3)


@pytest.mark.parametrize(
    ("weights", "names", "message"),
    [
        (torch.ones(3, 8), None, r"expected a shape of \(classes, 16\), got \(3, 8\)"),
        (torch.ones(0, 16), None, "expected a shape"),
        (torch.ones(3, 16), ["a"], "1 class names for 3 classes"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused(weights, names, message) -> None:
    with pytest.raises(ValueError, match=message):
        build().set_text_classifier(weights, names)


def test_clip_features_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(batch, tokens, 16\), got \(2, 1, 512\)"):
        build()(torch.randn(2, 4, 12), torch.randn(2, 1, 512))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4}, "NUM_CLASSES is 4, but .* has 3 classes"),
        ({"MODEL.CLIP.EMBED_DIM": 512}, "EMBED_DIM is 512, but .* has width 8"),
    ],
)
def test_a_config_that_does_not_fit_its_classifier_is_refused(tmp_path, options, message) -> None:
    path = tmp_path / "text.npy"
    np.save(path, np.eye(3, 8, dtype=np.float32))
    defaults = {
        "MODEL.MASK_FORMER.CLIP_TEXT_PATH": str(path),
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3,
        "MODEL.CLIP.EMBED_DIM": 8,
    }
    fits = UnifiedEmbeddingAlignment(get_ovformer_cfg(opts=_flat(defaults)))
    assert fits.zs_weight.shape == (8, 4)
    with pytest.raises(ValueError, match=message):
        UnifiedEmbeddingAlignment(get_ovformer_cfg(opts=_flat({**defaults, **options})))


def _flat(options):
    return [x for pair in options.items() for x in pair]
