"""Writes frames into a video file that browsers play, with PyAV (extra [demo])."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ovformer.data.files.video_files import import_av
from ovformer.files import replacing, temporary_name

# Times are stored as multiples of 1 / _CLOCK seconds, the usual clock of MPEG.
_CLOCK = 90_000


class VideoWriter:
    """Writes an mp4 (H.264, yuv420p); a context manager.

    The file appears, complete, when the block ends, also by an exception.

    Args:
        path: ends in ``.mp4``.
        rate: frames per second, for players that ask; each frame has its own time.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path = path
        self._av = import_av()
        self._container = self._av.open(
            str(temporary_name(path)), "w", format="mp4", options={"movflags": "faststart"}
        )
        self._rate = Fraction(max(rate, 0.1)).limit_denominator(1001)
        self._stream: Any = None
        self._last = -1

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        # No frame was written. An mp4 without a stream can't be played, so the file is removed.
        if self._stream is None:
            self._container.close()
            temporary_name(self.path).unlink(missing_ok=True)
            return
        with replacing(self.path):
            # The encoder holds frames back, to look ahead; this asks for the rest of them.
            try:
                self._container.mux(self._stream.encode())
            finally:
                self._container.close()

    def write(self, image: np.ndarray, time: float) -> None:
        """Add a frame. One whose size differs from the first is resized.

        Args:
            image: uint8 (H, W, 3), RGB.
            time: seconds from the beginning of the output video, rising.
        """
        # The first frame decides the size: only now is it known.
        if self._stream is None:
            # yuv420p halves the sides of its colours, so both are rounded up to even numbers.
            height, width = (side + side % 2 for side in image.shape[:2])
            self._stream = self._container.add_stream("libx264", rate=self._rate)
            self._stream.height, self._stream.width = height, width
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = Fraction(1, _CLOCK)
            self._stream.options = {"crf": "20", "preset": "fast"}
        height, width = self._stream.height, self._stream.width
        if height - image.shape[0] not in (0, 1) or width - image.shape[1] not in (0, 1):
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        padding = ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0))
        frame = self._av.VideoFrame.from_ndarray(np.pad(image, padding, "edge"), format="rgb24")
        # The encoder refuses a frame that is not later than the one before.
        frame.pts = self._last = max(round(time * _CLOCK), self._last + 1)
        frame.time_base = Fraction(1, _CLOCK)
        self._container.mux(self._stream.encode(frame))
