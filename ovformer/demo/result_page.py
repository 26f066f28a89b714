"""The HTML page of a prediction: the output video, when each object is seen, and a thumbnail of it.

Legend: T frames, N objects, H W pixels of a frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from urllib.parse import quote

import cv2
import jinja2
import numpy as np
from pycocotools import mask as coco_mask

from ovformer.demo.painter import track_colour
from ovformer.predictor.predictions import FramesResult, VideoResult

# Names, titles and notes come from users: autoescape keeps HTML inside them text.
TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("ovformer.demo"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_THUMBNAIL = 120  # pixels of the longer side
_MAX_ROWS = 200  # the page lists the objects with the highest scores


@dataclass
class Thumbnails:
    """Thumbnails of the objects of a video, each from the frame in which the object is largest.

    Attributes:
        images: track id -> uint8 (h, w, 3), RGB.
    """

    result: VideoResult | FramesResult
    images: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._listed = self.result.take_first(_MAX_ROWS)
        self._frames = self._listed.areas.argmax(1).tolist()

    def add_frame(self, t: int, image: np.ndarray) -> None:
        """Cut out the objects that are largest in frame ``t``, uint8 (H, W, 3) RGB."""
        for item, largest in zip(self._listed.objects, self._frames, strict=True):
            if largest == t:
                self.images[item.track_id] = _cut_out(image, item.segmentations[t])


def render_result_page(
    title: str,
    media: str,
    result: VideoResult | FramesResult,
    thumbnails: dict[int, str],
    notes: Sequence[str] = (),
    base: str = "",
) -> str:
    """Return the page of a prediction as HTML.

    Args:
        title: for example the name of the video.
        media: path of the output video (.mp4), beside which poster.jpg lies, or of the output
            image, relative to the page.
        result: one object for each thing.
        thumbnails: track id -> path of an image, relative to the page.
        notes: sentences about how the result was made.
        base: URL of the folder of all these paths, with a slash at its end; empty for the folder
            of the page.
    """
    seconds = _measure_duration(result.times)
    listed = result.take_first(_MAX_ROWS)
    rows = [
        {
            "name": item.name,
            "score": item.score,
            "colour": track_colour(item.track_id),
            "thumbnail": thumbnails.get(item.track_id),
            "spans": _find_visible_spans(areas > 0, result.times, seconds),
        }
        for item, areas in zip(listed.objects, listed.areas, strict=True)
    ]
    return TEMPLATES.get_template("result_page.html").render(
        title=title,
        base=base,
        media=quote(media),
        is_video=media.endswith(".mp4"),
        count=len(result.objects),
        listed=_MAX_ROWS,
        num_frames=len(result.times),
        seconds=seconds,
        rows=rows,
        names=result.names,
        notes=notes,
    )


def _find_visible_spans(
    is_seen: np.ndarray, times: Sequence[float], seconds: float
) -> list[tuple[float, float]]:
    """Return begin and end, in seconds, of each run of frames in which an object is seen.

    Args:
        is_seen: bool (T).
        times: of the T frames, in seconds.
        seconds: duration of the video.
    """
    # A frame is shown until the next one begins.
    ends = [*times[1:], seconds]
    spans = []
    for is_visible, run in groupby(range(len(times)), key=lambda t: is_seen[t]):
        if is_visible:
            frames = list(run)
            spans.append((times[frames[0]], ends[frames[-1]]))
    return spans


def _measure_duration(times: Sequence[float]) -> float:
    """Return the end of the last frame, which is shown as long as the one before, in seconds."""
    last = times[-1] - times[-2] if len(times) > 1 else 0.0
    return max(times) + (last if last > 0 else 0.1)  # damaged files repeat times


def _cut_out(image: np.ndarray, rle: dict) -> np.ndarray:
    """Return the part of an image around a mask, darker outside the mask."""
    left, top, width, height = (int(value) for value in coco_mask.toBbox(rle))
    margin = max(2, max(width, height) // 8)
    rows = slice(max(0, top - margin), top + height + margin)
    columns = slice(max(0, left - margin), left + width + margin)
    mask = coco_mask.decode(rle)[rows, columns, None]
    part = np.where(mask, image[rows, columns], image[rows, columns] // 2)
    factor = _THUMBNAIL / max(part.shape[:2])
    size = [max(1, round(side * factor)) for side in part.shape[1::-1]]
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cv2.resize(part.astype(np.uint8), size, interpolation=way)
