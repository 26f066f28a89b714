"""Fixtures of the data tests."""

from lvis_fixture import mini_lvis  # noqa: F401
