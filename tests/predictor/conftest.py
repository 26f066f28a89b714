"""Fixtures of the tests of prediction."""

from predictor_fixture import make_frames, predictor, trained  # noqa: F401
