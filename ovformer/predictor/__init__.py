"""The library: finds the objects of videos and images, for words that can change at any time.

It uses the engine's checkpoints, the vocabularies of data, the tracking of modeling and the tube
IoU of evaluation. Only demo/, export/ and scripts import it.
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
