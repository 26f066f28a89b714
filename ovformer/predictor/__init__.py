"""Prediction on one's own videos, for one's own words.

This layer stands on all others: it uses the engine's checkpoints, data's vocabularies, modeling's
tracking and evaluation's overlaps of tubes, and nothing but scripts uses it. The engine does not
know it: training and evaluation on data sets need no video files, no drawing and no vocabulary that
changes.
"""

from ovformer.predictor.predictions import (
    FrameResult,
    FramesResult,
    ObjectInFrame,
    VideoObject,
    VideoResult,
)
from ovformer.predictor.video_predictor import VideoPredictor

__all__ = [
    "FrameResult",
    "FramesResult",
    "ObjectInFrame",
    "VideoObject",
    "VideoPredictor",
    "VideoResult",
]
