"""The clip model: settings, training, and clips that overlap. Its numbers: test_clip_parity.py."""

import pytest
import torch

from support.video_models import (
    CLIPS,
    assert_gradients_are_finite,
    assert_same_prediction,
    build_small_model,
    training_batch,
    video,
)


@pytest.fixture
def build(tmp_path):
    """Function from keys of MODEL.MASK_FORMER.TEST to a tiny model of three classes."""

    def build_tiny(**options):
        options = {f"MODEL.MASK_FORMER.TEST.{key}": value for key, value in options.items()}
        return build_small_model(tmp_path, **{**CLIPS, **options})

    return build_tiny


def test_settings_are_those_of_the_config(build) -> None:
    model = build(CLIP_LENGTH=4, CLIP_OVERLAP=1)
    assert (model.window_size, model.window_overlap, model.memory_momentum) == (4, 1, 1.0)
    assert (build().window_size, build().window_overlap) == (5, 0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"CLIP_LENGTH": 0}, "CLIP_LENGTH: expected at least 1, got 0"),
        ({"CLIP_OVERLAP": -1}, "CLIP_OVERLAP: expected 0 or more, .* got -1"),
        ({"CLIP_OVERLAP": 5}, "CLIP_OVERLAP: .* less than the CLIP_LENGTH of 5, got 5"),
    ],
)
def test_settings_out_of_range_are_refused(build, keys, message) -> None:
    with pytest.raises(ValueError, match=message):
        build(**keys)


@pytest.mark.parametrize(("key", "wanted"), [(0, "Multi"), (1, "VideoMulti")])
def test_a_decoder_for_the_other_kind_of_input_is_refused(tmp_path, key, wanted) -> None:
    options = dict([list(CLIPS.items())[1 - key]])
    message = f"TRANSFORMER_DECODER_NAME: .* does not go with .* Set it to {wanted}Scale"
    with pytest.raises(ValueError, match=message):
        build_small_model(tmp_path, **options)


def frame_pairs(record):
    return zip(record["image"], record["clip_features"], strict=True)


@torch.no_grad()
def test_queries_see_all_frames_of_their_clip_and_no_other_clip(build) -> None:
    model = build().eval()
    frames = [
        {"image": image, "clip_features": features[None]}
        for seed in (0, 1)
        for image, features in frame_pairs(video(3, seed=seed))
    ]
    outputs, _ = model.run_network(frames, 2)
    assert outputs["mask_features"].shape == (2, 3, 16, 16, 16)
    frames[5]["image"] = 255 - frames[5]["image"]
    changed, _ = model.run_network(frames, 2)
    for key in ("pred_logits", "pred_embds", "mask_embed"):
        torch.testing.assert_close(outputs[key][0], changed[key][0])
        assert (outputs[key][1] - changed[key][1]).abs().max() > 1e-3
    unchanged = outputs["mask_features"] == changed["mask_features"]
    assert unchanged[1, :2].all() and not unchanged[1, 2].all()


def test_training(build) -> None:
    """A clip's absent instance is an empty mask there, and a clip is an image in all counts."""
    model = build()
    batch = training_batch()
    target = model.prepare_targets(batch, (64, 64))[1]
    assert target["labels"].tolist() == [0, 1] and target["masks"].shape == (2, 2, 64, 64)
    assert target["masks"][:, 0].flatten(1).any(1).tolist() == [True, True]
    assert target["masks"][:, 1].flatten(1).any(1).tolist() == [True, False]
    assert [model.instance_counts(record) for record in batch] == [[2], [2]]
    losses = model(batch)
    assert len(losses) == 4 * 3
    sum(losses.values()).backward()
    assert_gradients_are_finite(model)


def test_an_instance_that_is_in_no_frame_is_no_target(build) -> None:
    model = build()
    (record, _) = training_batch()
    for frame in record["instances"]:
        frame.gt_ids[1] = -1
    (target,) = model.prepare_targets([record], (64, 64))
    assert target["labels"].tolist() == [0] and len(target["masks"]) == 1
    assert model.instance_counts(record) == [1]
    record["instances"] = [frame[torch.zeros(0).long()] for frame in record["instances"]]
    assert model.instance_counts(record) == [0]
    losses = model([record])
    assert losses["loss_mask"] == losses["loss_ce"] == 0
    sum(losses.values()).backward()


def test_training_clips_of_different_lengths_are_refused(build) -> None:
    batch = training_batch()
    for key in ("image", "clip_features", "instances"):
        batch[1][key] = batch[1][key][:1]
    with pytest.raises(ValueError, match=r"have \[2, 1\] frames.*INPUT.SAMPLING_FRAME_NUM"):
        build()(batch)


def test_a_video_of_one_clip_has_no_overlap(build) -> None:
    (expected,) = build().eval()([video(5)])
    (got,) = build(CLIP_OVERLAP=3).eval()([video(5)])
    assert_same_prediction(got, expected)


@pytest.mark.parametrize("num_frames", [6, 9])
def test_a_frame_of_several_clips_is_written_once(build, num_frames) -> None:
    (prediction,) = build(CLIP_LENGTH=4, CLIP_OVERLAP=2).eval()([video(num_frames)])
    assert [len(tube) for tube in prediction["segmentations"]] == [num_frames] * 4
    (other,) = build(CLIP_LENGTH=4).eval()([video(num_frames)])
    assert prediction["pred_scores"] != other["pred_scores"]
