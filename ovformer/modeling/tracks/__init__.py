"""Queries over time: tracks, their scores, and their masks."""
