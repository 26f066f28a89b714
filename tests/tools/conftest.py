"""Fixtures of the tools' tests."""

from predictor_fixture import make_frames, trained  # noqa: F401
