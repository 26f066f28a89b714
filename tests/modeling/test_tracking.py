"""Tracks of queries: the recorded ones, and the edges."""

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from ovformer.modeling.tracks.mask_store import MaskSizes, encode_tubes
from ovformer.modeling.tracks.postprocess import class_scores
from ovformer.modeling.tracks.tracking import ClipTracks, QueryTracker, VideoTracks

CPU = torch.device("cpu")
# Largest difference of a score. Measured: 2e-7.
TOLERANCE = 1e-5


def track(arrays, prefix, num_frames, window=1):
    """Run recorded outputs of the network through tracking: assignments, and tracks."""
    embeddings, *others = (
        torch.from_numpy(arrays[f"{prefix}pred_{key}"][:num_frames])
        for key in ("embds", "logits", "object_logits", "masks")
    )
    tracker, tracks = QueryTracker(0.7), VideoTracks()
    orders = torch.stack([tracker(frame) for frame in embeddings])
    for frames in torch.arange(num_frames).split(window):
        tracks.extend(*(values[frames[:, None], orders[frames]] for values in others))
    assert tracks.num_frames == num_frames
    return orders, tracks


def assert_same_results(best, tracks, sizes, results) -> None:
    """Compare predictions with entries of results.json, whose order is arbitrary."""
    results = sorted(results, key=lambda entry: -entry["score"])
    assert best.scores.tolist() == pytest.approx([x["score"] for x in results], abs=TOLERANCE)
    assert [c + 1 for c in best.classes.tolist()] == [x["category_id"] for x in results]
    tubes = encode_tubes(tracks.masks, best.queries.tolist(), best.visible.numpy(), sizes, CPU)
    assert tubes == [x["segmentations"] for x in results]


def test_recorded_tracks_whose_queries_change_places(reference) -> None:
    recorded = dict(np.load(reference("tracker.npz")))
    orders, tracks = track(recorded, "in.", 9, window=4)
    with tracks:
        assert orders[0].tolist() == list(range(20))
        assert orders[1:].tolist() == recorded["frame.perms"].tolist()
        assert (orders[1:] != orders[0]).any()
        for got, key in ((tracks._logits, "logits"), (tracks._object_logits, "obj_logits")):
            expected = torch.from_numpy(recorded[f"frame.pred_{key}"][0])
            torch.testing.assert_close(got / 9, expected, rtol=0, atol=TOLERANCE)
        best = tracks.select(10, 0.1)

        by_score = np.argsort(-recorded["frame.scores"])
        np.testing.assert_allclose(best.scores, recorded["frame.scores"][by_score], atol=TOLERANCE)
        assert best.classes.tolist() == recorded["frame.pred_classes"][by_score].tolist()
        masks = recorded["frame.inst_masks"][by_score]
        left_out = (masks == -1).all((2, 3))
        assert 0 < left_out.sum() < left_out.size
        assert (~best.visible.numpy()).tolist() == left_out.tolist()

        results = json.loads(reference("tracker_frame_results.json").read_text())
        assert_same_results(best, tracks, MaskSizes((32, 40), (30, 38), (45, 57)), results)


@pytest.mark.parametrize(("num_frames", "window"), [(7, 1), (13, 5)])
def test_results_from_the_recorded_outputs_of_the_network(reference, num_frames, window) -> None:
    recorded = dict(np.load(reference("ovformervideo_small.npz")))
    orders, tracks = track(recorded, "eval13.frame.", num_frames, window)
    with tracks:
        assert orders[1:].tolist() == recorded[f"eval{num_frames}.perms"].tolist()
        best = tracks.select(10, 0.1)
        results = reference(f"ovformervideo_small_T{num_frames}_results.json").read_text()
        sizes = MaskSizes((128, 160), (118, 150), (177, 225))
        assert_same_results(best, tracks, sizes, json.loads(results))


def test_recorded_tracks_of_clips(reference) -> None:
    """The queries of a clip are assigned to those of the clip before, as these were assigned."""
    recorded = dict(np.load(reference("tracker.npz")))
    tracker, tracks, orders = QueryTracker(1.0), ClipTracks(), []
    with tracks:
        for clip, length in enumerate(recorded["clip.lengths"]):
            embeddings, logits, object_logits = (
                torch.from_numpy(recorded[f"in.pred_{key}"][clip])
                for key in ("embds", "logits", "object_logits")
            )
            masks = torch.from_numpy(recorded[f"clip.in.pred_masks{clip}"][0]).transpose(0, 1)
            assert len(masks) == length
            orders.append(tracker(embeddings))
            order = orders[-1]
            tracks.append(logits[order], object_logits[order], masks[:, order])
        assert orders[0].tolist() == list(range(20))
        assert torch.stack(orders[1:]).tolist() == recorded["clip.perms"].tolist()
        assert tracks.num_frames == sum(recorded["clip.lengths"])

        best = tracks.select(50)
        by_score = np.argsort(-recorded["clip.pred_scores"])
        expected = recorded["clip.pred_scores"][by_score]
        np.testing.assert_allclose(best.scores, expected, atol=TOLERANCE)
        assert best.classes.tolist() == recorded["clip.pred_labels"][by_score].tolist()

        shape = recorded["clip.pred_masks_shape"]
        masks = np.unpackbits(recorded["clip.pred_masks"], count=shape.prod()).reshape(shape)
        sizes = MaskSizes((32, 64), (30, 38), (45, 57))
        tubes = encode_tubes(tracks.masks, best.queries.tolist(), best.visible.numpy(), sizes, CPU)
        for tube, expected in zip(tubes, masks[by_score], strict=True):
            assert (coco_mask.decode(tube).transpose(2, 0, 1) == expected).all()


@pytest.mark.parametrize(("length", "overlap"), [(3, 0), (3, 1), (3, 2), (4, 3)])
def test_a_frame_of_several_clips_gets_the_mean_of_their_logits(length, overlap) -> None:
    torch.manual_seed(0)
    num_frames, queries, classes = 8, 4, 3
    stride = length - overlap
    starts = range(0, num_frames - overlap, stride)
    of_frame = [[] for _ in range(num_frames)]
    logits = []
    with ClipTracks(overlap) as tracks:
        for start in starts:
            masks = 4 * torch.randn(min(length, num_frames - start), queries, 6, 8)
            for t, frame in enumerate(masks, start):
                of_frame[t].append(frame)
            logits.append((torch.randn(queries, classes + 1), torch.randn(queries, 2)))
            tracks.append(*logits[-1], masks)
            assert tracks.num_frames == min(start + length, num_frames)
            assert len(tracks._waiting) <= overlap
        best = tracks.select(100)
        assert tracks.num_frames == num_frames and best.visible.shape == (12, num_frames)
        assert max(map(len, of_frame)) == -(-length // stride)

        mean = [torch.stack(values).mean(0) for values in zip(*logits, strict=True)]
        scores = class_scores(*mean)
        torch.testing.assert_close(best.scores, scores[best.queries, best.classes])
        for t, frames in enumerate(of_frame):
            kept = tracks.masks.read([(t, query) for query in range(queries)], CPU)
            expected = torch.stack(frames).mean(0)
            assert ((kept > 0) == (expected > 0)).all()
            near = kept.abs() != 1
            torch.testing.assert_close(kept[near], expected[near])
            assert near.any()


def test_the_memory_bridges_a_frame_in_which_a_query_is_lost() -> None:
    a, b, noise = torch.eye(3)
    frames = [torch.stack(pair) for pair in ((a, b), (noise, b), (b, a))]
    follow = QueryTracker(0.7)
    assert [follow(frame).tolist() for frame in frames] == [[0, 1], [0, 1], [1, 0]]
    expected = 0.7 * a + 0.3 * (0.7 * noise + 0.3 * a)
    torch.testing.assert_close(follow.memory[0], expected)


def test_length_and_precision_of_embeddings_do_not_matter() -> None:
    torch.manual_seed(0)
    first, order = torch.randn(6, 8), torch.randperm(6)
    follow = QueryTracker(1.0)
    follow(first)
    with torch.autocast("cpu", torch.bfloat16):
        assert follow((100 * first[order]).bfloat16()).tolist() == order.argsort().tolist()
    assert follow(torch.zeros(6, 8)).sort().values.tolist() == list(range(6))
    with pytest.raises(FloatingPointError, match="query embeddings are NaN or infinite"):
        follow(torch.full((6, 8), torch.nan))


def test_empty_masks_have_score_zero_and_empty_codes() -> None:
    """Also where more predictions are asked for than there are pairs of track and class."""
    with VideoTracks() as tracks:
        tracks.extend(torch.zeros(3, 2, 4), torch.zeros(3, 2, 2), torch.full((3, 2, 5, 5), -2.0))
        best = tracks.select(100, 0.1)
        assert best.scores.tolist() == [0.0] * 6 and not best.visible.any()
        sizes = MaskSizes((20, 20), (18, 20), (9, 11))
        tubes = encode_tubes(tracks.masks, best.queries.tolist(), best.visible.numpy(), sizes, CPU)
    assert tracks._file._file.closed
    assert [len(tube) for tube in tubes] == [3] * 6
    assert all(code["size"] == [9, 11] and not coco_mask.area(code) for code in sum(tubes, []))


def test_a_window_is_copied_from_the_device_once(monkeypatch) -> None:
    """As many copies for five frames as for one: each waits for the accelerator."""
    to_host, copies = torch.Tensor.cpu, {1: [], 5: []}
    for length, shapes in copies.items():
        monkeypatch.setattr(
            torch.Tensor, "cpu", lambda x, s=shapes: s.append(x.shape) or to_host(x)
        )
        with VideoTracks() as tracks:
            tracks.extend(*(torch.randn(length, 6, *s) for s in ((9,), (2,), (12, 16))))
    assert len(copies[1]) == len(copies[5]) <= 4
