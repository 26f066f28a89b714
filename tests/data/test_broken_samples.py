"""The number of broken samples, and its limit."""

import pytest

from ovformer.data.samples.broken_samples import ALWAYS_ALLOWED, BrokenSampleCounter, SampleError


def test_each_message_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    tally = BrokenSampleCounter(0.05)
    batch = [{"image_id": 1, "broken": ["a", "b"]}, {"image_id": 2}]
    assert tally.take(batch) == 2
    assert batch == [{"image_id": 1}, {"image_id": 2}]
    assert tally.take([{"broken": ["b"]}]) == 1
    assert [r.getMessage().rsplit(" ", 1)[1] for r in caplog.records] == ["a", "b"]


def test_a_few_are_allowed_and_a_share() -> None:
    tally = BrokenSampleCounter(0.05)
    for iteration in range(ALWAYS_ALLOWED):
        tally.count(1, iteration + 1)
    with pytest.raises(SampleError, match=r"11 of 22 samples could not be loaded.*MAX_BROKEN"):
        tally.count(1, 11)
    tally = BrokenSampleCounter(0.05)
    tally.count(50, 950)
    tally.count(0, 100)  # nothing new is wrong
    with pytest.raises(SampleError, match="51 of 1001"):
        tally.count(1, 950)
