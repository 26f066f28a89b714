"""How a network is run."""

import pytest
import torch

from ovformer.config import get_ovformer_cfg
from ovformer.modeling.decoders import deformable_encoder as encoder
from ovformer.modeling.meta_arch.execution import Execution
from ovformer.modeling.meta_arch.video_inference import iterate_frames
from support.video_models import build_small_model, video


@pytest.fixture
def build(tmp_path):
    """Function from config keys to a tiny model in evaluation mode."""
    return lambda **options: build_small_model(tmp_path, 9, **options).eval()


@torch.no_grad()
def scores(model) -> torch.Tensor:
    return torch.tensor(model([video(3)])[0]["pred_scores"])


def test_the_defaults() -> None:
    assert Execution.from_config(get_ovformer_cfg()) == Execution("auto", "float32", "")


@pytest.mark.parametrize(
    "value, in_evaluation, in_training", [("auto", 1, 0), ("always", 1, 1), ("never", 0, 0)]
)
def test_layout_changes_rounding_only(build, value, in_evaluation, in_training) -> None:
    model = build(**{"MODEL.CHANNELS_LAST": value})
    seen = []

    def note(module, arguments) -> None:
        seen.append(arguments[0].is_contiguous(memory_format=torch.channels_last))

    model.backbone.register_forward_pre_hook(note)
    expected = scores(build(**{"MODEL.CHANNELS_LAST": "never"}))
    torch.testing.assert_close(scores(model), expected, rtol=1e-4, atol=0)
    model.train().run_network(list(iterate_frames(video(1))))
    assert seen == [in_evaluation] * 3 + [in_training]
    weight = model.sem_seg_head.pixel_decoder.layer_1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == (value == "always")


@pytest.mark.parametrize("pixel_decoder", ["float32", "autocast"])
def test_half_precision_inference(build, pixel_decoder) -> None:
    options = {"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_PRECISION": pixel_decoder}
    model = build(**options, **{"TEST.PRECISION": "bfloat16"})
    types = {}
    decoder = model.sem_seg_head.pixel_decoder
    for name, part in {
        "backbone": model.backbone.base.conv1,
        "convolution": decoder.layer_1,
        "values": decoder.transformer.encoder.layers[0].self_attn,
    }.items():
        part.register_forward_hook(lambda *a, name=name: types.update({name: a[2].dtype}))
    torch.testing.assert_close(scores(model), scores(build()), rtol=0.1, atol=0)
    inside = torch.float32 if pixel_decoder == "float32" else torch.bfloat16
    assert types == {"backbone": torch.bfloat16, "convolution": inside, "values": inside}


def test_sampling_locations_are_float32_under_autocast(build, monkeypatch) -> None:
    model = build(**{"MODEL.SEM_SEG_HEAD.PIXEL_DECODER_PRECISION": "autocast"})
    decoder = model.sem_seg_head.pixel_decoder
    seen, attend = [], encoder.ms_deform_attn

    def note(value, shapes, starts, locations, weights):
        seen.append((value.dtype, locations.dtype, weights.dtype))
        return attend(value, shapes, starts, locations, weights)

    monkeypatch.setattr(encoder, "ms_deform_attn", note)
    features = model.backbone(torch.randn(1, 3, 64, 64))
    with torch.autocast("cpu", torch.bfloat16):
        mask_features, _ = decoder(features)
        mask_features.float().sum().backward()
    assert set(seen) == {(torch.bfloat16, torch.float32, torch.float32)}
    assert all(p.grad is not None for p in decoder.layer_1.parameters())


def test_backbone_and_both_decoders_are_to_be_compiled(build) -> None:
    for backend, expected in (("", 0), ("eager", 3)):
        parts = build(**{"MODEL.COMPILE": backend}).modules()
        assert sum(part._compiled_call_impl is not None for part in parts) == expected


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models_predict_the_same(build, backend) -> None:
    torch._dynamo.reset()
    expected = scores(build())
    model = build(**{"MODEL.COMPILE": backend})
    torch.testing.assert_close(scores(model), expected, rtol=1e-4, atol=0)
    assert set(model.state_dict()) == set(build().state_dict())


@pytest.mark.slow
def test_parts_compile_without_a_break(build) -> None:
    torch._dynamo.reset()
    model = build()
    for part in (model.backbone, *model.sem_seg_head.children()):
        part.compile(backend="eager", fullgraph=True)
    assert len(scores(model))
    outputs, _ = model.train().run_network(list(iterate_frames(video(1))))
    assert outputs["pred_logits"].requires_grad


@pytest.mark.parametrize(("window", "sizes"), [(0, [1, 1, 1]), (2, [2, 1])])
def test_the_window_follows_the_device(build, window, sizes) -> None:
    model = build(**{"MODEL.MASK_FORMER.TEST.WINDOW_SIZE": window})
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    scores(model)
    assert seen == sizes
