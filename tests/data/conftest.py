"""Fixtures of the data tests."""

from lvis_fixture import mini_lvis  # noqa: F401
from mini_videos import mini_videos_fixture  # noqa: F401
