"""Both video models give the numbers recorded from the published ones.

Of the models with generated weights in ``tests/reference``: ``ovformervideo_small.npz``, frame by
frame, 13 frames; ``video_ovformer_small.npz``, clips, a video of 12 frames and a training batch of
two clips of two frames.
"""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ovformer.d2 import BitMasks, Instances
from ovformer.modeling.tracks.postprocess import class_scores, select_top
from support.recorded_numbers import (
    assert_same,
    assert_same_losses,
    assert_same_outputs,
    assert_same_tubes,
    gradient_difference,
)
from support.video_models import CLIPS

CLASSES = 100
# Largest difference of a score. Measured: 2e-7.
SCORE_TOLERANCE = 1e-5
# Of the clip model. Measured: 3e-5 of norms and 7e-5 of single numbers, of backbone and pixel
# decoder, where ReLUs are near zero; on a processor of another maker, which rounds otherwise,
# 1.7e-4.
GRADIENT_TOLERANCE = 3e-4


@pytest.fixture(scope="module")
def recorded(reference):
    return dict(np.load(reference("video_ovformer_small.npz")))


@pytest.fixture(scope="module")
def model(build_recorded_model):
    return build_recorded_model("nbb", **CLIPS, **{"TEST.DETECTIONS_PER_IMAGE": 50})


@pytest.fixture(scope="module")
def frame_model(build_recorded_model):
    return build_recorded_model()


def video(recorded, num_frames):
    """The record of a video, whose frames come from an iterator."""
    return {
        "video_id": 4,
        "image": iter(torch.from_numpy(recorded["in.frames"][:num_frames])),
        "clip_features": torch.from_numpy(recorded["in.clip"][:num_frames, 0]),
        "height": 177,
        "width": 225,
        "length": num_frames,
    }


@pytest.mark.parametrize(("num_frames", "window"), [(7, 1), (13, 10)])
def test_results_frame_by_frame(frame_model, reference, num_frames, window) -> None:
    """Single frames, and windows of 10 and 3 frames, give the recorded results.json."""
    recorded = dict(np.load(reference("ovformervideo_small.npz")))
    frame_model.window_size = window
    (prediction,) = frame_model.eval()([video(recorded, num_frames)])
    results = json.loads(reference(f"ovformervideo_small_T{num_frames}_results.json").read_text())
    order = np.argsort([-entry["score"] for entry in results])
    results = [results[i] for i in order]
    scores = [entry["score"] for entry in results]
    assert prediction["pred_scores"] == pytest.approx(scores, abs=SCORE_TOLERANCE)
    assert [label + 1 for label in prediction["pred_labels"]] == [x["category_id"] for x in results]
    masks = torch.from_numpy(recorded[f"eval{num_frames}.pred_masks"][order])
    assert_same_tubes(prediction["segmentations"], results, masks)


def frames_of(recorded, begin, end):
    return [
        {"image": torch.from_numpy(image), "clip_features": torch.from_numpy(features)}
        for image, features in zip(
            recorded["in.frames"][begin:end], recorded["in.clip"][begin:end], strict=True
        )
    ]


@pytest.fixture
def clips(recorded):
    """The training batch, as the data layer gives it."""
    records = []
    for v in range(2):
        frames = frames_of(recorded, 2 * v, 2 * v + 2)
        record = {"image": [frame["image"] for frame in frames], "instances": []}
        record["clip_features"] = torch.cat([frame["clip_features"] for frame in frames])
        for f, image in enumerate(record["image"]):
            masks, ids, classes = (
                torch.from_numpy(recorded[f"in.train.v{v}.f{f}.gt_{key}"])
                for key in ("masks", "ids", "classes")
            )
            instances = Instances(tuple(image.shape[1:]))
            instances.gt_masks = BitMasks(masks.bool())
            instances.gt_ids, instances.gt_classes = ids, classes
            record["instances"].append(instances)
        records.append(record)
    return records


def test_vocabulary(model, recorded) -> None:
    weights = model.sem_seg_head.predictor.class_embed.zs_weight
    assert_same(weights, recorded["zs_weight"], "zs_weight")
    assert_same(model.criterion.freq_weight, recorded["criterion.freq_weight"], "freq_weight")


@torch.no_grad()
def test_outputs_of_each_clip(model, recorded) -> None:
    for i, (begin, end) in enumerate(((0, 5), (5, 10), (10, 12))):
        outputs, _ = model.eval().run_network(frames_of(recorded, begin, end), 1)
        assert outputs["mask_features"].shape == (1, end - begin, 64, 32, 40)
        assert_same_outputs(outputs, recorded, f"eval.clip{i}.")


@torch.no_grad()
def test_results_clip_by_clip(model, recorded, reference) -> None:
    """Clips of 5, 5 and 2 frames give the recorded results.json.

    From clip to clip no query changes its place there, which others do in test_tracking.py.
    """
    tracks, _ = model.eval()._track(video(recorded, 12))
    with tracks:
        for got, key in ((tracks._logits, "cls"), (tracks._object_logits, "obj")):
            assert_same(got / 3, recorded[f"eval.merged.{key}"], key)

    (prediction,) = model([video(recorded, 12)])
    results = json.loads(reference("video_ovformer_small_T12_results.json").read_text())
    results.sort(key=lambda entry: -entry["score"])
    assert prediction["image_size"] == tuple(recorded["eval.image_size"])
    scores = np.sort(recorded["eval.pred_scores"])[::-1]
    np.testing.assert_allclose(prediction["pred_scores"], scores, atol=SCORE_TOLERANCE)
    np.testing.assert_allclose([entry["score"] for entry in results], scores, atol=SCORE_TOLERANCE)
    assert prediction["pred_labels"] == [entry["category_id"] for entry in results]
    merged = (torch.from_numpy(recorded[f"eval.merged.{key}"]) for key in ("cls", "obj"))
    _, queries, _ = select_top(class_scores(*merged), 50)
    clips = [torch.from_numpy(recorded[f"eval.clip{i}.pred_masks"][0]) for i in range(3)]
    assert_same_tubes(prediction["segmentations"], results, torch.cat(clips, dim=1)[queries])


def test_labels_come_from_where_an_instance_is_present(model, recorded, clips) -> None:
    """The published code takes that of the last frame, which for one here is "no object"."""
    faulty = [recorded[f"train.target{i}.labels"].tolist() for i in range(2)]
    assert faulty == [[7, 50, CLASSES], [0, 7]]
    targets = model.prepare_targets(clips, (128, 160))
    assert [target["labels"].tolist() for target in targets] == [[7, 50, 99], [0, 7]]
    assert [model.instance_counts(clip) for clip in clips] == [[3], [2]]


def test_training_step(model, recorded, clips, monkeypatch) -> None:
    """With the published labels, one of which is "no object".

    In one place of this recording the last ReLU of the pixel decoder gets -5e-7, so that rounding
    decides whether a gradient passes: without it, norms of sampling offsets' gradients differ by
    2e-4. Here what is as near to zero is lifted to the recorded side.
    """
    model.train()
    last = model.sem_seg_head.pixel_decoder.layer_1
    monkeypatch.setattr(last, "activation", lambda x: F.relu(x + 6e-6 * (x.abs() < 3e-6)))
    frames = [frame for v in range(2) for frame in frames_of(recorded, 2 * v, 2 * v + 2)]
    outputs, images = model.run_network(frames, 2)
    targets = model.prepare_targets(clips, tuple(images.tensor.shape[-2:]))
    for i, target in enumerate(targets):
        target["labels"] = torch.from_numpy(recorded[f"train.target{i}.labels"])
    total = assert_same_losses(model, outputs, targets, recorded)
    assert gradient_difference(model, total, recorded) < GRADIENT_TOLERANCE
