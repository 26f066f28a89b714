"""The frame-by-frame video model: recorded results, settings, training."""

import json

import numpy as np
import pytest
import torch

from support.recorded_numbers import assert_same_tubes
from support.video_models import (
    RECORDED,
    assert_gradients_are_finite,
    assert_same_prediction,
    build_small_model,
    training_batch,
    video,
)

# Largest difference of a score. Measured: 2e-7.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def recorded_model(tmp_path_factory, fill_weights):
    model = build_small_model(tmp_path_factory.mktemp("recorded"), 100, 512, RECORDED).eval()
    fill_weights.fill_state_dict(model.state_dict())
    return model


@pytest.fixture
def build(tmp_path):
    """Function from config keys to a tiny model of three classes, for inference."""
    return lambda **options: build_small_model(tmp_path, **options).eval()


@pytest.fixture
def model(build):
    return build()


@pytest.mark.parametrize("num_frames", [7, 13])
def test_results_from_recorded_frames(recorded_model, reference, num_frames) -> None:
    """Windows of 7, and of 10 and 3 frames, give the recorded results.json."""
    recorded = dict(np.load(reference("ovformervideo_small.npz")))
    record = {
        "video_id": 9,
        "image": iter(torch.from_numpy(recorded["in.frames"][:num_frames])),
        "clip_features": torch.from_numpy(recorded["in.clip"][:num_frames, 0]),
        "height": 177,
        "width": 225,
        "length": num_frames,
    }
    (prediction,) = recorded_model([record])
    results = json.loads(reference(f"ovformervideo_small_T{num_frames}_results.json").read_text())
    order = sorted(range(10), key=lambda i: -results[i]["score"])
    results = [results[i] for i in order]
    assert prediction["pred_scores"] == pytest.approx([x["score"] for x in results], abs=TOLERANCE)
    assert [label + 1 for label in prediction["pred_labels"]] == [x["category_id"] for x in results]
    masks = torch.from_numpy(recorded[f"eval{num_frames}.pred_masks"][order])
    assert_same_tubes(prediction["segmentations"], results, masks)


def test_it_has_the_keys_of_the_image_model(build) -> None:
    image_model = build(**{"MODEL.META_ARCHITECTURE": "OVFormer"})
    shapes, expected = (
        {key: x.shape for key, x in m.state_dict().items()} for m in (build(), image_model)
    )
    assert shapes == expected


@pytest.mark.parametrize("window", [1, 2, 10])
def test_neither_window_nor_kind_of_input_changes_the_result(build, model, window) -> None:
    (expected,) = model([video(5)])
    record = video(5, length=5, file_names=[f"{t}.jpg" for t in range(5)])
    record["image"] = iter(record["image"])
    (got,) = build(**{"MODEL.MASK_FORMER.TEST.WINDOW_SIZE": window})([record])
    assert_same_prediction(got, expected)


def test_settings_are_those_of_the_config(build) -> None:
    options = {"WINDOW_SIZE": 3, "MEMORY_MOMENTUM": 0.25, "FRAME_SCORE_RATIO": 0.5}
    model = build(**{f"MODEL.MASK_FORMER.TEST.{key}": value for key, value in options.items()})
    assert (model.window_size, model.memory_momentum, model.frame_score_ratio) == (3, 0.25, 0.5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("WINDOW_SIZE", -1, "WINDOW_SIZE: expected 0 or more, got -1"),
        ("MEMORY_MOMENTUM", 0.0, "MEMORY_MOMENTUM: expected more than 0, up to 1, got 0"),
        ("MEMORY_MOMENTUM", 1.5, "MEMORY_MOMENTUM: expected more than 0, up to 1, got 1.5"),
        ("FRAME_SCORE_RATIO", -0.1, "FRAME_SCORE_RATIO: expected 0 or more, got -0.1"),
    ],
)
def test_settings_out_of_range_are_refused(build, key, value, message) -> None:
    with pytest.raises(ValueError, match=message):
        build(**{f"MODEL.MASK_FORMER.TEST.{key}": value})


def test_frames_are_trained_as_images_without_absent_instances(build) -> None:
    images = []
    for record in training_batch():
        for t, image in enumerate(record["image"]):
            present = record["instances"][t].gt_ids >= 0
            images.append(
                {
                    "image": image,
                    "clip_features": record["clip_features"][t, None],
                    "instances": record["instances"][t][present],
                }
            )
    assert [len(image["instances"]) for image in images] == [2, 1, 2, 1]
    model = build().train()
    image_model = build(**{"MODEL.META_ARCHITECTURE": "OVFormer"}).train()
    torch.manual_seed(1)
    losses = model(training_batch())
    torch.manual_seed(1)
    expected = image_model(images)
    assert len(losses) == 4 * 3
    assert {k: v.item() for k, v in losses.items()} == {k: v.item() for k, v in expected.items()}
    sum(losses.values()).backward()
    assert_gradients_are_finite(model)


def test_instances_are_counted_in_each_frame(model) -> None:
    assert [model.instance_counts(record) for record in training_batch()] == [[2, 1], [2, 1]]
