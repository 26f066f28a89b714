"""What the frame model and the clip model do in different ways: settings, training, windows."""

import pytest
import torch

from ovformer.modeling.meta_arch.video_inference import iterate_frames
from support.video_models import (
    CLIPS,
    assert_gradients_are_finite,
    assert_same_prediction,
    build_small_model,
    training_batch,
    video,
)

HEAD = "MODEL.SEM_SEG_HEAD"
DECODER = "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME"
CLIP_DECODER = "VideoMultiScaleMaskedTransformerDecoder"


def add_prefix(settings):
    return {f"MODEL.MASK_FORMER.TEST.{key}": value for key, value in settings.items()}


@pytest.fixture
def build(tmp_path):
    """Function from keys of MODEL.MASK_FORMER.TEST to a tiny clip model of three classes."""
    return lambda **settings: build_small_model(tmp_path, **CLIPS, **add_prefix(settings))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (add_prefix({"WINDOW_SIZE": -1}), "expected 0 or more, got -1"),
        (add_prefix({"MEMORY_MOMENTUM": 0.0}), "MEMORY_MOMENTUM: expected more than 0, .* got 0"),
        (add_prefix({"MEMORY_MOMENTUM": 1.5}), "MEMORY_MOMENTUM: expected .* up to 1, got 1.5"),
        (add_prefix({"FRAME_SCORE_RATIO": -0.1}), "FRAME_SCORE_RATIO: .* 0 or more, got -0.1"),
        (CLIPS | add_prefix({"CLIP_LENGTH": 0}), "CLIP_LENGTH: expected at least 1, got 0"),
        (CLIPS | add_prefix({"CLIP_OVERLAP": -1}), "CLIP_OVERLAP: expected 0 or more, .* got -1"),
        (CLIPS | add_prefix({"CLIP_OVERLAP": 5}), "CLIP_OVERLAP: .* the CLIP_LENGTH of 5, got 5"),
        ({"MODEL.CHANNELS_LAST": "no"}, r"CHANNELS_LAST: expected one of \[.*\], got 'no'"),
        ({"MODEL.COMPILE": "gcc"}, r"MODEL.COMPILE: expected one of \[.*\], got 'gcc'"),
        ({"TEST.PRECISION": "float8"}, r"TEST.PRECISION: expected one of \[.*\], got 'float8'"),
        ({f"{HEAD}.PIXEL_DECODER_PRECISION": "float16"}, r"PRECISION: .*\], got 'float16'"),
        ({f"{HEAD}.IN_FEATURES": ["res2"]}, r"HEAD.IN_FEATURES: .*layer2.*\['res2'\]"),
        ({DECODER: CLIP_DECODER}, f"{DECODER}: .* Set it to MultiScale"),
        ({"MODEL.META_ARCHITECTURE": "VideoOVFormer"}, f"{DECODER}: .* Set it to {CLIP_DECODER}"),
    ],
)
def test_settings_that_are_refused(tmp_path, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        build_small_model(tmp_path, **options)


def test_frames_are_trained_as_images_without_absent_instances(tmp_path) -> None:
    model, image_model = (
        build_small_model(tmp_path, **{"MODEL.META_ARCHITECTURE": name})
        for name in ("OVFormerVideo", "OVFormer")
    )
    assert [model.instance_counts(record) for record in training_batch()] == [[2, 1], [2, 1]]
    images = [frame for record in training_batch() for frame in iterate_frames(record)]
    for image in images:
        image["instances"] = image["instances"][image["instances"].gt_ids >= 0]
    torch.manual_seed(1)
    losses = model(training_batch())
    torch.manual_seed(1)
    expected = image_model(images)
    assert len(losses) == 4 * 3 and losses == expected
    sum(losses.values()).backward()
    assert_gradients_are_finite(model)


def test_a_clip_is_trained_as_one_image(build) -> None:
    """Where an instance is absent its mask is empty; in no frame at all, it is no target."""
    model, batch = build(), training_batch()
    targets = model.prepare_targets(batch, (64, 64))
    assert targets[1]["labels"].tolist() == [0, 1]
    assert targets[1]["masks"].shape == (2, 2, 64, 64)
    assert targets[1]["masks"].flatten(2).any(2).tolist() == [[True, True], [True, False]]
    for frame in batch[0]["instances"]:
        frame.gt_ids[1] = -1
    assert model.prepare_targets(batch, (64, 64))[0]["labels"].tolist() == [0]
    assert [model.instance_counts(record) for record in batch] == [[1], [2]]
    losses = model(batch)
    assert len(losses) == 4 * 3
    sum(losses.values()).backward()
    assert_gradients_are_finite(model)

    batch[0]["instances"] = [frame[torch.zeros(0).long()] for frame in batch[0]["instances"]]
    assert model.instance_counts(batch[0]) == [0]
    losses = model(batch[:1])
    assert losses["loss_mask"] == losses["loss_ce"] == 0
    for key in ("image", "clip_features", "instances"):
        batch[1][key] = batch[1][key][:1]
    with pytest.raises(ValueError, match=r"have \[2, 1\] frames.*INPUT.SAMPLING_FRAME_NUM"):
        model(batch)


def test_a_frame_of_several_clips_is_written_once(build) -> None:
    (alone,) = build().eval()([video(5)])
    (got,) = build(CLIP_OVERLAP=3).eval()([video(5)])
    assert_same_prediction(got, alone)
    for num_frames in (6, 9):
        (prediction,) = build(CLIP_LENGTH=4, CLIP_OVERLAP=2).eval()([video(num_frames)])
        assert [len(tube) for tube in prediction["segmentations"]] == [num_frames] * 4
        (other,) = build(CLIP_LENGTH=4).eval()([video(num_frames)])
        assert prediction["pred_scores"] != other["pred_scores"]
