"""Fixtures of the evaluation tests."""

from video_fixture import make_video_set  # noqa: F401
