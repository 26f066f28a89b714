import numpy as np
from pycocotools import mask as coco_mask

from ovformer.predictor.predictions import ObjectInFrame
from ovformer_tools.benchmarks import identities


def test_an_object_leaves_and_returns() -> None:
    frames = identities.draw_video(0, gap=6)
    x, y = identities.CENTRES[0]
    corner = [frame[y, x].astype(int) for frame in frames]
    seen = [bool(np.abs(pixel - corner[0]).max() < 60) for pixel in corner]
    assert seen[: identities.BEFORE - 4] == [True] * 8
    assert not any(seen[identities.BEFORE : identities.BEFORE + 6]) and all(seen[-8:])


def test_a_second_track_keeps_the_number_by_votes_only() -> None:
    def see(track: int, score: float) -> ObjectInFrame:
        mask = np.zeros((128, 128), np.uint8, order="F")
        mask[28:36, 28:36] = 1
        return ObjectInFrame(track, 0, "cat", score, coco_mask.encode(mask), (28, 28, 36, 36))

    tracks = [[see(0, 0.9), see(1, 0.8)]] * 8 + [[see(1, 0.8)]] * 4
    for show, expected in ((identities.by_frame, False), (identities.Merger(0.3), True)):
        counts = {"returned": [], "stayed": []}
        identities.compare(identities.number_objects(tracks, show), counts)
        assert counts == {"returned": [expected], "stayed": []}
