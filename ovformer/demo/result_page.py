"""A page to look at: the film, when each object is seen, and what it looks like."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import groupby
from urllib.parse import quote

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from ovformer.demo.painter import track_colour
from ovformer.predictor.predictions import FramesResult, VideoResult

_THUMBNAIL = 120  # pixels of the longer side
_ROWS = 200  # objects that are listed, the best ones
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 1.5rem auto;
       padding: 0 1rem; color: #222; background: #fff; }
h1 { font-size: 1.4rem; margin: 0 0 .6rem; overflow-wrap: anywhere; }
video, .picture { display: block; max-width: 100%; max-height: 70vh; background: #111; }
p { margin: .6rem 0; } .quiet { color: #555; font-size: 14px; }
table { border-collapse: collapse; width: 100%; margin-top: 1rem; table-layout: fixed; }
td { padding: .35rem .5rem; border-top: 1px solid #ddd; vertical-align: middle; }
.thumbnail { width: 136px; } .thumbnail img { display: block; border-radius: 3px; }
.name { width: 14rem; overflow-wrap: anywhere; }
.name i { display: inline-block; width: .8em; height: .8em; border-radius: 2px;
          margin-right: .4em; }
.score { width: 4rem; text-align: right; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: 26px; background: #f0f0f0; cursor: pointer; }
"""
_SCRIPT = """
const film = document.querySelector("video"), lines = document.querySelectorAll(".now");
document.querySelectorAll("svg").forEach(bar => bar.addEventListener("click", event => {
  const box = bar.getBoundingClientRect();
  film.currentTime = (event.clientX - box.left) / box.width * bar.dataset.seconds;
}));
function move() {
  lines.forEach(line => {
    const x = film.currentTime / line.parentNode.dataset.seconds * 1000;
    line.setAttribute("x1", x); line.setAttribute("x2", x);
  });
  requestAnimationFrame(move);
}
if (film) move();
"""


@dataclass
class Thumbnails:
    """Pictures of the objects of a video, each from the frame in which it is largest.

    Attributes:
        pictures: track id -> uint8 (h, w, 3), RGB.
    """

    result: VideoResult | FramesResult
    pictures: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._listed = self.result.listed(_ROWS)
        self._frames = self._listed.areas.argmax(1).tolist()

    def look(self, t: int, image: np.ndarray) -> None:
        """Look at frame ``t``, uint8 (H, W, 3) RGB."""
        for item, best in zip(self._listed.objects, self._frames, strict=True):
            if best == t:
                self.pictures[item.track_id] = _cut_out(image, item.segmentations[t])


def page(
    title: str,
    media: str,
    result: VideoResult | FramesResult,
    thumbnails: dict[int, str],
    notes: Sequence[str] = (),
    base: str = "",
) -> str:
    """Return a page as HTML.

    Args:
        title: for example the name of the video.
        media: the film (.mp4), which has a poster.jpg, or the picture, relative to the page.
        result: one object for each thing.
        thumbnails: track id -> picture, relative to the page.
        notes: sentences about how it was made.
        base: where film and pictures are, with a slash at its end; empty for beside the page.
    """
    is_film = media.endswith(".mp4")
    player = (
        f'<video src="{quote(media)}" poster=poster.jpg controls loop muted playsinline></video>'
        if is_film
        else f'<img class=picture src="{quote(media)}" alt="the picture with its objects">'
    )
    seconds = _duration(result.times)
    rows = []
    listed = result.listed(_ROWS)
    for item, areas in zip(listed.objects, listed.areas, strict=True):
        colour = track_colour(item.track_id)
        image = thumbnails.get(item.track_id)
        picture = f'<img src="{escape(image)}" alt="{escape(item.name)}">' if image else ""
        timeline = ""
        if is_film:
            timeline = f"<td>{_timeline(areas > 0, result.times, seconds, colour, item.score)}"
        rows.append(
            f"<tr><td class=thumbnail>{picture}<td class=name><i style='background:{colour}'></i>"
            f"{escape(item.name)}<td class=score>{item.score:.2f}{timeline}"
        )
    count = len(result.objects)
    found = "1 object" if count == 1 else f"{count} objects"
    found += f" (the best {_ROWS} below)" if count > _ROWS else ""
    if is_film:
        found += f" in {len(result.times)} frames, {seconds:.1f} s. A click on a line goes there."
    words = ", ".join(result.names[:50]) + (" ..." if len(result.names) > 50 else "")
    return "\n".join(
        [
            "<!doctype html><html lang=en><meta charset=utf-8>",
            "<meta name=viewport content='width=device-width, initial-scale=1'>",
            *([f'<base href="{escape(base)}">'] if base else []),
            f"<title>{escape(title)}</title><style>{_STYLE}</style>",
            f"<h1>{escape(title)}</h1>{player}",
            f"<p>{found}</p>",
            f"<table>{''.join(rows)}</table>",
            f"<p class=quiet>Words ({len(result.names)}): {escape(words)}</p>",
            *(f"<p class=quiet>{escape(note)}</p>" for note in notes),
            f"<script>{_SCRIPT}</script></html>" if is_film else "</html>",
        ]
    )


def _timeline(
    seen: np.ndarray, times: Sequence[float], seconds: float, colour: str, score: float
) -> str:
    """Return a bar in which the time that an object is seen is coloured; higher is surer."""
    ends = [*times[1:], seconds]
    height = 6 + 20 * score
    parts = []
    for is_seen, run in groupby(enumerate(seen.tolist()), key=lambda pair: pair[1]):
        frames = [t for t, _ in run]
        if is_seen:
            begin, end = times[frames[0]], ends[frames[-1]]
            left, right = (1000 * time / seconds for time in (begin, end))
            parts.append(
                f"<rect x={left:.1f} y={26 - height:.1f} width={max(right - left, 1):.1f} "
                f"height={height:.1f} fill='{colour}'><title>{begin:.2f} to {end:.2f} s, score "
                f"{score:.2f}</title></rect>"
            )
    return (
        f"<svg viewBox='0 0 1000 26' preserveAspectRatio=none data-seconds={seconds:.3f}>"
        f"{''.join(parts)}<line class=now y1=0 y2=26 stroke='#222' stroke-width=2 /></svg>"
    )


def _duration(times: Sequence[float]) -> float:
    """Return the end of the last frame, which is shown as long as the one before, in seconds."""
    last = times[-1] - times[-2] if len(times) > 1 else 0.0
    return max(times) + (last if last > 0 else 0.1)  # damaged files repeat times


def _cut_out(image: np.ndarray, rle: dict) -> np.ndarray:
    """Return the part of a picture around a mask, with the rest of it darker."""
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
