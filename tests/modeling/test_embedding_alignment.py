"""The class head: one token or many, any vocabulary and width, and exact savings."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ovformer.config import get_ovformer_cfg
from ovformer.modeling.decoders.embedding_alignment import UnifiedEmbeddingAlignment


def build(classes=5, width=16, **arguments):
    arguments = {"text_embeddings": torch.randn(classes, width), "num_heads": 4, **arguments}
    return UnifiedEmbeddingAlignment(12, clip_dim=width, **arguments)


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize(("classes", "width"), [(1, 16), (1203, 512)])
def test_logits_are_those_of_the_full_cross_attention(tokens, classes, width) -> None:
    """As published: with attention and its softmax, whatever the number of tokens."""
    module = build(classes, width)
    queries, clip_features = torch.randn(2, 4, 12), torch.randn(2, tokens, width) * 3
    got = module(queries, clip_features)
    layer = module.cross_attention
    attention = nn.MultiheadAttention(width, 4, batch_first=True)
    attention.load_state_dict(layer.multihead_attn.state_dict())
    aligned = module.linear(queries)
    aligned = layer.norm(aligned + attention(aligned, clip_features, clip_features)[0])
    expected = module.temperature * F.normalize(aligned, dim=-1) @ module.zs_weight
    assert got.shape == (2, 4, classes + 1)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
    assert not got[..., -1].any()  # "no object" has the zero column
    torch.testing.assert_close(module.zs_weight[:, :-1].norm(dim=0), torch.ones(classes))
    with torch.autocast("cpu", torch.bfloat16):
        assert module(queries, clip_features).dtype == torch.float32


def test_hidden_width_is_half_of_clips_or_what_is_asked_for() -> None:
    assert build(width=16).linear[0].out_features == 8
    assert build(hidden_dim=20).linear[0].out_features == 20


def test_a_vocabulary_can_come_later_and_be_replaced() -> None:
    module = build(text_embeddings=None)
    queries, clip_features = torch.randn(1, 3, 12), torch.randn(1, 1, 16)
    assert (module.num_classes, module.class_names) == (0, None)
    with pytest.raises(ValueError, match="set_text_classifier"):
        module(queries, clip_features)
    weights = torch.randn(5, 16)
    module.set_text_classifier(weights)
    before = module(queries, clip_features)
    module.set_text_classifier(7 * weights[2:4], ["x", "y"])
    assert (module.num_classes, module.class_names) == (2, ["x", "y"])
    after = module(queries, clip_features)
    torch.testing.assert_close(after[..., :2], before[..., 2:4], rtol=1e-5, atol=1e-5)
    assert module.state_dict()["zs_weight"].shape == (16, 3)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda x: x.set_text_classifier(torch.ones(3, 8)), r"\(classes, 16\), got \(3, 8\)"),
        (lambda x: x.set_text_classifier(torch.ones(0, 16)), "expected a shape"),
        (lambda x: x.set_text_classifier(torch.ones(3, 16), ["a"]), "1 class names for 3 classes"),
        (lambda x: x(torch.ones(2, 4, 12), torch.ones(2, 1, 9)), r"tokens, 16\), got \(2, 1, 9\)"),
    ],
)
def test_what_does_not_fit_is_refused(use, message) -> None:
    with pytest.raises(ValueError, match=message):
        use(build())


@pytest.mark.parametrize(
    ("num_classes", "width", "message"),
    [
        (4, 8, "NUM_CLASSES is 4, but .* has 3 classes"),
        (3, 512, "EMBED_DIM is 512, but .* has width 8"),
    ],
)
def test_a_config_that_does_not_fit_its_classifier_is_refused(
    tmp_path, num_classes, width, message
) -> None:
    np.save(tmp_path / "text.npy", np.eye(3, 8, dtype=np.float32))
    opts = ["MODEL.MASK_FORMER.CLIP_TEXT_PATH", str(tmp_path / "text.npy")]
    opts += ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", num_classes, "MODEL.CLIP.EMBED_DIM", width]
    with pytest.raises(ValueError, match=message):
        UnifiedEmbeddingAlignment(get_ovformer_cfg(opts=opts))
