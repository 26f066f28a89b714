import numpy as np
import pytest

from ovformer.evaluation.duplicates import StreamIdentities, merge_duplicates, merge_predictions
from support.masks import compressed_rle


def make_square(left: int) -> dict:
    """A square of 6 pixels in an image of 8 x 40."""
    mask = np.zeros((8, 40), bool)
    mask[1:7, left : left + 6] = True
    return compressed_rle(mask)


HERE, NEAR, THERE = make_square(0), make_square(1), make_square(20)


def test_a_handover_is_one_object() -> None:
    """The second track takes over from the first; its masks fill the gaps of the better one."""
    tubes = [[HERE, HERE, HERE, None, None], [None, None, NEAR, NEAR, None]]
    assert merge_duplicates(tubes, 5, 0.5) == [(0, [HERE, HERE, HERE, NEAR, None])]
    # An IoU of 30 / 42: with a stricter one they are two.
    assert [number for number, _ in merge_duplicates(tubes, 5, 0.8)] == [0, 1]


def test_tracks_that_never_meet_are_two_objects() -> None:
    tubes = [[HERE, None], [None, HERE]]
    assert merge_duplicates(tubes, 2, 0.5) == list(enumerate(tubes))


def test_objects_that_cross_are_two() -> None:
    left, right = map(make_square, range(0, 30, 3)), map(make_square, range(27, -3, -3))
    assert len(merge_duplicates([list(left), list(right)], 10, 0.5)) == 2


def test_a_third_track_may_coincide_with_the_second_only() -> None:
    tubes = [[HERE, HERE, None, None], [None, HERE, THERE, None], [None, None, THERE, THERE]]
    assert merge_duplicates(tubes, 4, 0.5) == [(0, [HERE, HERE, THERE, THERE])]


def test_empty_tracks_and_a_limit() -> None:
    empty = compressed_rle(np.zeros((8, 40), bool))
    tubes = [[empty, None], [HERE, None], [THERE, empty], [None, HERE]]
    assert merge_duplicates(tubes, 2, 0.5, limit=2) == [(1, [HERE, None]), (2, [THERE, None])]
    assert merge_duplicates([], 2, 0.5) == []


def test_merged_predictions() -> None:
    def entry(score: float, category_id: int, *tube: dict | None) -> dict:
        return {
            "video_id": 1,
            "score": score,
            "category_id": category_id,
            "segmentations": list(tube),
        }

    truth = {
        "videos": [{"id": 1, "height": 8, "width": 40, "length": 2}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    entries = [entry(0.4, 1, HERE, None), entry(0.9, 2, HERE, HERE), entry(0.1, 1, THERE, THERE)]
    (kept,) = merge_predictions(truth, entries, score_threshold=0.3)
    assert kept == {**entries[1], "track_id": 0}
    assert len(list(merge_predictions(truth, entries))) == 2
    with pytest.raises(ValueError, match="Prediction 0.*category_id 5"):
        list(merge_predictions(truth, [entry(0.4, 5, HERE, None)]))


TOGETHER, APART, ALONE = np.ones((2, 2)), np.eye(2), np.ones((1, 1))


def test_an_object_keeps_its_number_while_any_of_its_tracks_sees_it() -> None:
    identities = StreamIdentities()
    assert identities.update([7], [0.9], ALONE, 0.3) == [(0, 0)]
    assert identities.update([3, 7], [0.8, 0.7], TOGETHER, 0.3) == [(0, 0)]
    # The first track sleeps; after 50 frames without any, the second one is back.
    assert identities.update([3], [0.8], ALONE, 0.3) == [(0, 0)]
    for _ in range(50):
        assert identities.update([], [], np.ones((0, 0)), 0.3) == []
    assert identities.update([3], [0.8], ALONE, 0.3) == [(0, 0)]


def test_objects_that_cross_keep_their_numbers() -> None:
    identities = StreamIdentities()
    for ious in (APART, APART, TOGETHER, APART):
        shown = identities.update([0, 1], [0.9, 0.8], ious, 0.3)
        assert shown == ([(0, 0)] if ious is TOGETHER else [(0, 0), (1, 1)])


def test_a_track_that_goes_over_to_another_object_is_outvoted() -> None:
    identities = StreamIdentities()
    first = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    for _ in range(3):
        assert identities.update([5, 6, 8], [0.9, 0.8, 0.7], first, 0.3) == [(0, 0), (2, 1)]
    # The best track of object 0 is on object 1 now, and better than its own.
    over = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]])
    assert identities.update([5, 6, 8], [0.9, 0.8, 0.7], over, 0.3) == [(0, 1), (1, 0)]


def test_a_weak_track_is_not_shown_and_tells_who_is_who() -> None:
    identities = StreamIdentities()
    identities.update([0, 1], [0.9, 0.2], TOGETHER, 0.3)
    assert identities.update([1], [0.2], ALONE, 0.3) == []
    # A strong track that is new follows the object that the weak one knows.
    assert identities.update([4, 1], [0.9, 0.2], TOGETHER, 0.3) == [(0, 0)]
    # A weak track without an object makes none.
    assert identities.update([9], [0.2], ALONE, 0.3) == []
    assert identities.update([9], [0.5], ALONE, 0.3) == [(0, 1)]


def test_a_new_object_does_not_take_the_place_of_one_in_the_same_frame(monkeypatch) -> None:
    monkeypatch.setattr("ovformer.evaluation.duplicates._OBJECTS_PER_TRACK", 1)
    identities = StreamIdentities(memory=2)  # halves the votes in each frame
    for _ in range(3):
        identities.update([0], [1.0], ALONE, 0.0)
    identities.update([1], [1e-5], ALONE, 0.0)
    for _ in range(1062):  # the weak votes are gone, the strong ones not yet
        identities.update([], [], np.ones((0, 0)), 0.0)
    assert identities.update([1, 0], [0.9, 0.8], APART, 0.0) == [(0, 2), (1, 0)]


def test_numbers_are_unique_and_memory_is_bounded() -> None:
    identities = StreamIdentities(memory=1)  # forgets all votes, so each object is a new one
    numbers = []
    for _ in range(100):
        shown = identities.update([0, 1], [0.9, 0.8], APART, 0.3)
        numbers += [number for _, number in shown]
    assert numbers == list(range(200))
    assert identities.num_objects == 8  # four for each track
