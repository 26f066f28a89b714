"""What both video models make of a video: forms of input, order, errors, edges, memory."""

import json
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
import torch
from pycocotools import mask as coco_mask

from ovformer.modeling.meta_arch import video_inference
from ovformer.modeling.meta_arch.video_inference import split_into_windows
from support.video_models import (
    CLIP_DIM,
    CLIPS,
    assert_same_prediction,
    build_small_model,
    training_batch,
    video,
)

MODELS = {"frames": {}, "clips": CLIPS}


@pytest.fixture(params=MODELS)
def build(request, tmp_path):
    """Function from a window's length and config keys to a tiny model of three classes."""

    def build_tiny(window=5, **options):
        keys = ("WINDOW_SIZE", "CLIP_LENGTH")
        options |= {f"MODEL.MASK_FORMER.TEST.{key}": window for key in keys}
        options |= MODELS[request.param]
        return build_small_model(tmp_path, **options).eval()

    return build_tiny


@pytest.fixture
def model(build):
    return build()


def test_prediction_dict(model) -> None:
    (prediction,) = model([video(3)])
    assert prediction["video_id"] == 5 and prediction["image_size"] == (47, 31)
    scores, labels = prediction["pred_scores"], prediction["pred_labels"]
    assert len(scores) == len(labels) == len(prediction["segmentations"]) == 4
    assert scores == sorted(scores, reverse=True) and all(type(score) is float for score in scores)
    assert all(type(label) is int and 0 <= label < 3 for label in labels)
    codes = sum(prediction["segmentations"], [])
    assert len(codes) == 4 * 3 and sum(coco_mask.area(codes)) > 0
    assert all(code["size"] == [47, 31] for code in codes)
    json.dumps(prediction)
    # A record made by hand needs frames only.
    (prediction,) = model([{key: video(2)[key] for key in ("image", "clip_features")}])
    assert prediction["video_id"] is None and prediction["image_size"] == (40, 56)


def test_videos_of_a_batch_do_not_influence_each_other(model) -> None:
    videos = [video(3), video(2, size=(64, 32), seed=1)]
    for together, record in zip(model(videos), videos, strict=True):
        assert_same_prediction(together, model([record])[0])


def test_masks_are_encoded_while_the_next_video_is_tracked(model, monkeypatch) -> None:
    threads = []
    encode = video_inference.encode_tubes

    def noted(*args):
        threads.append(threading.current_thread())
        return encode(*args)

    monkeypatch.setattr(video_inference, "encode_tubes", noted)
    given = iter([video(2, seed=i, video_id=i) for i in range(3)])
    predictions = model.predict_videos(given)
    assert next(predictions)["video_id"] == 0
    assert next(given)["video_id"] == 2  # the second has been taken already
    assert [prediction["video_id"] for prediction in predictions] == [1]
    assert len(threads) == 2 and threading.main_thread() not in threads


@pytest.mark.parametrize("fault", [OSError, ValueError])
def test_a_video_that_fails_loses_no_video_before_it(model, fault) -> None:
    def records():
        yield video(2, video_id=0)
        if fault is OSError:
            raise OSError("disk gone")
        yield video(3, length=2)

    predictions = model.predict_videos(records())
    assert next(predictions)["video_id"] == 0
    with pytest.raises(fault):
        next(predictions)


def test_a_caller_may_stop_after_any_video(model) -> None:
    for taken in (1, 2):
        predictions = model.predict_videos([video(1), video(1)])
        for _ in range(taken):
            next(predictions)
        predictions.close()


def test_frames_are_read_a_window_at_a_time_and_not_kept(build) -> None:
    model = build(2)
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
    model = build(2)
    (expected,) = model([video(3)])
    features, given = video(3)["clip_features"], []

    def computed(records, device):
        given.extend((record.get("clip_image"), record["image"]) for record in records)
        assert not any("clip_features" in record for record in records)
        return features[len(given) - len(records) : len(given), None]

    model.image_embedder = computed
    for clip_images in (None, list(torch.zeros(3, 3, 32, 32, dtype=torch.uint8))):
        record = video(3)
        del record["clip_features"]
        if clip_images:
            record["clip_image"] = iter(clip_images)
        assert_same_prediction(model([record])[0], expected)
        assert [id(x) for x, _ in given] == [id(x) for x in clip_images or [None] * 3]
        assert all(a is b for (_, a), b in zip(given, record["image"], strict=True))
        given.clear()


@pytest.mark.parametrize("num_frames", [0, 1, 6])
def test_videos_whose_last_window_is_short(model, num_frames) -> None:
    record = video(num_frames) if num_frames else video(1, image=[], clip_features=None)
    (prediction,) = model([record])
    count = 4 if num_frames else 0
    assert len(prediction["pred_scores"]) == len(prediction["segmentations"]) == count
    assert all(len(tube) == num_frames for tube in prediction["segmentations"])
    assert prediction["image_size"] == (47, 31)


def test_a_frame_of_another_size_is_named(build) -> None:
    record = video(4, file_names=[f"{t}.jpg" for t in range(4)])
    record["image"][3] = torch.zeros(3, 40, 60, dtype=torch.uint8)
    message = r"video 5: frame 3 \(3.jpg\) is 40 x 60 .* frame 0 is 40 x 56"
    for window in (2, 10):
        with pytest.raises(ValueError, match=message):
            build(window)([record])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"length": 4}, "video 5.* 4 frames.* 3 "),
        ({"length": 2}, "video 5.* 2 frames.* 3 "),
        ({"clip_features": torch.zeros(2, CLIP_DIM)}, "video 5.*'image': 3.*'clip_features': 2"),
        ({"file_names": list("abcd")}, "video 5.*'image': 3.*'file_name': 4"),
        ({"clip_features": None, "clip_image": iter("ab")}, "shorter"),
    ],
)
def test_numbers_of_frames_that_differ_are_explained(model, changed, message) -> None:
    with pytest.raises(ValueError, match=message):
        model([video(3, **changed)])


def test_instance_counts_of_a_whole_batch_reach_the_criterion(model) -> None:
    """Two micro-batches of the same instances have the loss of one; more instances divide it."""
    (record, _) = training_batch()
    counts = model.train().instance_counts(record)
    losses = []
    for whole in (counts, 2 * counts, [10 * count for count in counts]):
        torch.manual_seed(1)
        losses.append(model([{**record, "instance_counts": whole}])["loss_dice"].item())
    assert losses[1] == pytest.approx(losses[0]) and losses[2] == pytest.approx(losses[0] / 10)


@pytest.mark.parametrize(
    ("num_frames", "size", "overlap", "expected"),
    [
        (0, 5, 0, []),
        (1, 5, 0, [[0]]),
        (6, 5, 0, [[0, 1, 2, 3, 4], [5]]),
        (5, 3, 1, [[0, 1, 2], [2, 3, 4]]),
        (6, 3, 1, [[0, 1, 2], [2, 3, 4], [4, 5]]),
        (2, 3, 2, [[0, 1]]),
        (4, 3, 2, [[0, 1, 2], [1, 2, 3]]),
    ],
)
def test_windows(num_frames, size, overlap, expected) -> None:
    got = list(split_into_windows(iter(range(num_frames)), size, overlap))
    assert [window for _, window in got] == expected
    assert [first for first, _ in got] == [window[0] for window in expected]


MEASURE = """
import re, sys, tempfile
from pathlib import Path
import torch
from support.video_models import CLIPS, build_small_model

torch.set_num_threads(1)
num_frames, kind = int(sys.argv[1]), sys.argv[2]
with tempfile.TemporaryDirectory() as folder:
    options = {"MODEL.MASK_FORMER.TEST.WINDOW_SIZE": 2}
    options |= CLIPS if kind == "clips" else {}
    model = build_small_model(Path(folder), 50, **options).eval()
frames = (torch.randint(0, 256, (3, 360, 640), dtype=torch.uint8) for _ in range(num_frames))
record = {"image": frames, "clip_features": torch.randn(num_frames, 16)}
(prediction,) = model([record])
assert [len(tube) for tube in prediction["segmentations"]] == [num_frames] * 4
# Of this process alone: getrusage's maximum is at least that of the one that started it.
print(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's peak memory")
@pytest.mark.parametrize("kind", MODELS)
def test_memory_does_not_grow_with_the_length_of_a_video(kind) -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    peaks = []
    for num_frames in ("40", "400"):
        command = [sys.executable, "-c", MEASURE, num_frames, kind]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert run.returncode == 0, run.stderr
        peaks.append(int(run.stdout))
    assert peaks[1] < 1.15 * peaks[0], peaks
