"""The frame-by-frame video model: recorded results, forms of input, edges, training, memory."""

import json
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from video_models import RECORDED, TINY, build_video_model

from ovformer.d2 import META_ARCH_REGISTRY, BitMasks, Instances
from ovformer.modeling import ovformer_model_video
from ovformer.modeling.ovformer_model_video import OVFormerVideo
from ovformer.ops.mask_resize import restore_masks

TESTS = Path(__file__).parents[1]
CLIP_DIM = 16
# Largest difference of a score and of a mask logit. Measured: 2e-7 and 1.3e-5.
TOLERANCE, LOGIT_TOLERANCE = 1e-5, 3e-5


@pytest.fixture(scope="module")
def recorded_model(tmp_path_factory, fill_weights):
    model = build_video_model(tmp_path_factory.mktemp("recorded"), 100, 512, RECORDED).eval()
    fill_weights.fill_state_dict(model.state_dict())
    return model


@pytest.fixture
def build(tmp_path):
    """Function from config keys to a tiny model of three classes, for inference."""
    return lambda **options: build_video_model(tmp_path, 3, CLIP_DIM, TINY, **options).eval()


@pytest.fixture
def model(build):
    return build()


def video(num_frames, size=(40, 56), seed=0, **more):
    """A record with random frames."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_frames, 3, *size)
    return {
        "video_id": 5,
        "image": list(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)),
        "clip_features": torch.randn(num_frames, CLIP_DIM, generator=generator),
        "height": 47,
        "width": 31,
        **more,
    }


def assert_same_prediction(got, expected) -> None:
    assert got["pred_scores"] == pytest.approx(expected["pred_scores"], abs=1e-5)
    for key in ("pred_labels", "segmentations", "video_id", "image_size"):
        assert got[key] == expected[key]


@pytest.mark.parametrize("num_frames", [7, 13])
def test_results_from_recorded_frames(recorded_model, reference, num_frames) -> None:
    """Windows of 7, and of 10 and 3 frames, give the recorded results.json.

    A pixel may differ where the recorded logit is next to zero, less than the logits' own error.
    """
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
    for index, tube, entry in zip(order, prediction["segmentations"], results, strict=True):
        assert len(tube) == len(entry["segmentations"])
        for t, (got, expected) in enumerate(zip(tube, entry["segmentations"], strict=True)):
            if got == expected:
                continue
            logits = torch.from_numpy(recorded[f"eval{num_frames}.pred_masks"][index, t, None])
            logits = restore_masks(logits, (128, 160), (118, 150), (177, 225))[0]
            different = coco_mask.decode(got) != coco_mask.decode(expected)
            assert logits[torch.from_numpy(different)].abs().max() < LOGIT_TOLERANCE


def test_it_is_in_detectron2s_registry_with_the_keys_of_the_image_model(build) -> None:
    assert META_ARCH_REGISTRY.get("OVFormerVideo") is OVFormerVideo
    image_model = build(**{"MODEL.META_ARCHITECTURE": "OVFormer"})
    shapes, expected = (
        {key: x.shape for key, x in m.state_dict().items()} for m in (build(), image_model)
    )
    assert shapes == expected


def test_prediction_dict(model) -> None:
    (prediction,) = model([video(3)])
    assert set(prediction) == {
        *("video_id", "image_size", "pred_scores", "pred_labels", "segmentations")
    }
    assert prediction["video_id"] == 5 and prediction["image_size"] == (47, 31)
    scores, labels = prediction["pred_scores"], prediction["pred_labels"]
    assert len(scores) == len(labels) == len(prediction["segmentations"]) == 4
    assert scores == sorted(scores, reverse=True) and all(type(score) is float for score in scores)
    assert all(type(label) is int and 0 <= label < 3 for label in labels)
    codes = sum(prediction["segmentations"], [])
    assert len(codes) == 4 * 3 and sum(coco_mask.area(codes)) > 0
    assert all(code["size"] == [47, 31] for code in codes)
    json.dumps(prediction)


@pytest.mark.parametrize("window", [1, 2, 10])
def test_neither_window_nor_kind_of_input_changes_the_result(build, model, window) -> None:
    (expected,) = model([video(5)])
    record = video(5, length=5, file_names=[f"{t}.jpg" for t in range(5)])
    record["image"] = iter(record["image"])
    (got,) = build(**{"MODEL.MASK_FORMER.TEST.WINDOW_SIZE": window})([record])
    assert_same_prediction(got, expected)


def test_videos_of_a_batch_do_not_influence_each_other(model) -> None:
    videos = [video(3), video(2, size=(64, 32), seed=1)]
    for together, record in zip(model(videos), videos, strict=True):
        assert_same_prediction(together, model([record])[0])


def test_masks_are_encoded_while_the_next_video_is_tracked(model, monkeypatch) -> None:
    threads = []
    encode = ovformer_model_video.encode_tubes

    def noted(*args):
        threads.append(threading.current_thread())
        return encode(*args)

    monkeypatch.setattr(ovformer_model_video, "encode_tubes", noted)
    given = iter([video(2, seed=i, video_id=i) for i in range(3)])
    predictions = model.predict_videos(given)
    assert next(predictions)["video_id"] == 0
    assert next(given)["video_id"] == 2  # the second has been taken already
    assert [prediction["video_id"] for prediction in predictions] == [1]
    assert len(threads) == 2 and threading.main_thread() not in threads


def broken_loader():
    yield video(2, video_id=0)
    raise OSError("disk gone")


@pytest.mark.parametrize(
    ("records", "error"),
    [
        (broken_loader(), OSError),
        ([video(2, video_id=0), video(3, length=2), video(2)], ValueError),
    ],
)
def test_a_video_that_fails_loses_no_video_before_it(model, records, error) -> None:
    predictions = model.predict_videos(records)
    assert next(predictions)["video_id"] == 0
    with pytest.raises(error):
        next(predictions)


def test_one_may_stop_after_any_video(model) -> None:
    for taken in (1, 2):
        predictions = model.predict_videos([video(1), video(1)])
        for _ in range(taken):
            next(predictions)
        predictions.close()


def test_settings_are_those_of_the_config(build) -> None:
    options = {"WINDOW_SIZE": 3, "MEMORY_MOMENTUM": 0.25, "FRAME_SCORE_RATIO": 0.5}
    model = build(**{f"MODEL.MASK_FORMER.TEST.{key}": value for key, value in options.items()})
    assert (model.window_size, model.memory_momentum, model.frame_score_ratio) == (3, 0.25, 0.5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("WINDOW_SIZE", 0, "WINDOW_SIZE: expected at least 1, got 0"),
        ("MEMORY_MOMENTUM", 0.0, "MEMORY_MOMENTUM: expected more than 0, up to 1, got 0"),
        ("MEMORY_MOMENTUM", 1.5, "MEMORY_MOMENTUM: expected more than 0, up to 1, got 1.5"),
        ("FRAME_SCORE_RATIO", -0.1, "FRAME_SCORE_RATIO: expected 0 or more, got -0.1"),
    ],
)
def test_settings_out_of_range_are_refused(build, key, value, message) -> None:
    with pytest.raises(ValueError, match=message):
        build(**{f"MODEL.MASK_FORMER.TEST.{key}": value})


def test_frames_are_read_a_window_at_a_time_and_not_kept(build) -> None:
    model = build(**{"MODEL.MASK_FORMER.TEST.WINDOW_SIZE": 2})
    alive, most = weakref.WeakSet(), []

    def frames():
        for _ in range(9):
            most.append(len(alive))
            frame = torch.randint(0, 256, (3, 40, 56), dtype=torch.uint8)
            alive.add(frame)
            yield frame

    record = video(9)
    record["image"] = frames()
    model([record])
    assert len(most) == 9
    # The window that was last through the network, and the one that is being read.
    assert max(most) <= 2 * 2


def test_clip_features_are_computed_a_window_at_a_time(build) -> None:
    """From CLIP's image where the record has it, else from the frame, as for images."""
    model = build(**{"MODEL.MASK_FORMER.TEST.WINDOW_SIZE": 2})
    (expected,) = model([video(3)])
    features, given = video(3)["clip_features"], []

    def computed(records, device):
        given.extend((record.get("clip_image"), record["image"]) for record in records)
        assert not any("clip_features" in record for record in records)
        return features[len(given) - len(records) : len(given), None]

    model.clip_features = computed
    for clip_images in (None, list(torch.zeros(3, 3, 32, 32, dtype=torch.uint8))):
        record = video(3)
        del record["clip_features"]
        if clip_images:
            record["clip_image"] = iter(clip_images)
        assert_same_prediction(model([record])[0], expected)
        assert [id(x) for x, _ in given] == [id(x) for x in clip_images or [None] * 3]
        assert all(a is b for (_, a), b in zip(given, record["image"], strict=True))
        given.clear()


@pytest.mark.parametrize("num_frames", [0, 1])
def test_very_short_videos(model, num_frames) -> None:
    record = video(num_frames) if num_frames else video(1, image=[], clip_features=None)
    (prediction,) = model([record])
    assert len(prediction["pred_scores"]) == len(prediction["segmentations"]) == 4 * num_frames
    assert all(len(tube) == num_frames for tube in prediction["segmentations"])
    assert prediction["image_size"] == (47, 31)


def test_a_record_made_by_hand_needs_frames_only(model) -> None:
    record = video(2)
    (prediction,) = model([{key: record[key] for key in ("image", "clip_features")}])
    assert prediction["video_id"] is None and prediction["image_size"] == (40, 56)


def test_fewer_pairs_than_predictions_wanted(build) -> None:
    (prediction,) = build(**{"TEST.DETECTIONS_PER_IMAGE": 100})([video(2)])
    assert len(prediction["pred_scores"]) == 6 * 3


def test_another_vocabulary_at_run_time(model) -> None:
    model.set_text_classifier(torch.randn(200, CLIP_DIM))
    assert max(model([video(2)])[0]["pred_labels"]) >= 3


def test_autocast(model) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        (prediction,) = model([video(3)])
    assert len(prediction["pred_scores"]) == 4 and np.isfinite(prediction["pred_scores"]).all()


def test_a_frame_of_another_size_is_named(build) -> None:
    record = video(4, file_names=[f"{t}.jpg" for t in range(4)])
    record["image"][3] = torch.zeros(3, 40, 60, dtype=torch.uint8)
    for window in (2, 10):
        model = build(**{"MODEL.MASK_FORMER.TEST.WINDOW_SIZE": window})
        with pytest.raises(
            ValueError, match=r"video 5: frame 3 \(3.jpg\) is 40 x 60 .* frame 0 is 40 x 56"
        ):
            model([record])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"length": 4}, "video 5: its record says 4 frames, but 3 were read"),
        ({"length": 2}, "video 5: its record says 2 frames, but 3 were read"),
        (
            {"clip_features": torch.zeros(2, CLIP_DIM)},
            "video 5: clip_features of 2 frames, but image of more",
        ),
        (
            {"file_names": list("abcd")},
            "video 5: image and clip_features of 3 frames, but file_name of more",
        ),
    ],
)
def test_numbers_of_frames_that_differ_are_explained(model, changed, message) -> None:
    with pytest.raises(ValueError, match=message):
        model([video(3, **changed)])


def instances(size, masks):
    result = Instances(size)
    result.gt_masks = BitMasks(masks)
    result.gt_classes = torch.arange(len(masks))
    result.gt_ids = torch.where(masks.flatten(1).any(1), torch.arange(len(masks)), -1)
    return result


def training_batch():
    """Two videos of two frames. The second instance is not in the last frame."""
    batch = [video(2), video(2, size=(50, 40), seed=1)]
    for record in batch:
        size = tuple(record["image"][0].shape[1:])
        record["instances"] = []
        for t in range(2):
            masks = torch.zeros(2, *size, dtype=torch.bool)
            masks[0, 5 + t : 20, 5:30] = True
            masks[1, 8:30, 10:25] = t == 0
            record["instances"].append(instances(size, masks))
    return batch


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
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad.isfinite().all(), name


def test_instances_are_counted_in_each_frame(model) -> None:
    assert [model.instance_counts(record) for record in training_batch()] == [[2, 1], [2, 1]]


def test_instance_counts_of_a_whole_batch_reach_the_criterion(model) -> None:
    model.train()
    (record, _) = training_batch()
    losses = []
    for counts in ([2, 1], [2, 1, 2, 1], [20, 10]):
        torch.manual_seed(1)
        losses.append(model([{**record, "instance_counts": counts}])["loss_dice"].item())
    # Two micro-batches of the same instances; and ten times as many instances.
    assert losses[1] == pytest.approx(losses[0]) and losses[2] == pytest.approx(losses[0] / 10)


MEASURE = """
import resource, sys, tempfile
from pathlib import Path
import torch
from video_models import TINY, build_video_model

torch.set_num_threads(1)
num_frames = int(sys.argv[1])
with tempfile.TemporaryDirectory() as folder:
    options = {"MODEL.MASK_FORMER.TEST.WINDOW_SIZE": 2}
    model = build_video_model(Path(folder), 50, 16, TINY, **options).eval()
frames = (torch.randint(0, 256, (3, 360, 640), dtype=torch.uint8) for _ in range(num_frames))
record = {"image": frames, "clip_features": torch.randn(num_frames, 16)}
(prediction,) = model([record])
assert [len(tube) for tube in prediction["segmentations"]] == [num_frames] * 4
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_a_video() -> None:
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
    peaks = []
    for num_frames in ("40", "400"):
        command = [sys.executable, "-c", MEASURE, num_frames]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert run.returncode == 0, run.stderr
        peaks.append(int(run.stdout))
    assert peaks[1] < 1.15 * peaks[0], peaks
