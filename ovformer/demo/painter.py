"""Draws objects on frames: masks, outlines, names and scores, in colours that tracks keep.

Uses supervision and matplotlib's fonts (extra [demo]).
"""

import logging
from collections.abc import Iterable, Sequence
from functools import lru_cache
from types import ModuleType

import cv2
import numpy as np

from ovformer.predictor.predictions import ObjectInFrame

# White text can be read on all of them.
COLOURS = (
    *("#d62728", "#1f6fb4", "#2a8a2a", "#8e44ad", "#c75b12", "#0f7f8c", "#c2185b", "#6d4c41"),
    *("#3949ab", "#5c7a14", "#b8860b", "#455a64", "#7b1fa2", "#00695c", "#ad3b28", "#1a237e"),
)
OPACITY = 0.25  # of masks: an object's own colours stay visible
_MAX_LETTERS = 40  # of a name

logger = logging.getLogger(__name__)


def track_colour(track_id: int) -> str:
    """Return the colour of a track, as "#rrggbb"."""
    return COLOURS[track_id % len(COLOURS)]


class Painter:
    """Draws the objects of a frame.

    Args:
        scale: factor by which frames are enlarged first, so that names fit on small ones.

    Raises:
        ModuleNotFoundError: supervision is not installed.
    """

    def __init__(self, scale: int = 1) -> None:
        self.scale = scale
        self._sv = _import_supervision()
        lookup = {
            "color": self._sv.ColorPalette.from_hex(list(COLOURS)),
            "color_lookup": self._sv.ColorLookup.TRACK,
        }
        self._annotators = [
            self._sv.MaskAnnotator(opacity=OPACITY, **lookup),
            self._sv.PolygonAnnotator(thickness=2, **lookup),
        ]
        self._lookup = lookup

    def __call__(self, frame: np.ndarray, objects: Sequence[ObjectInFrame]) -> np.ndarray:
        """Return a frame with objects drawn on it.

        Args:
            frame: uint8 (H, W, 3), RGB; it is not changed.
            objects: their ``track_id`` selects the colour.
        """
        if self.scale > 1:
            frame = cv2.resize(
                frame, None, fx=self.scale, fy=self.scale, interpolation=cv2.INTER_CUBIC
            )
        if not objects:
            return frame
        masks = np.stack([item.mask for item in objects])
        if self.scale > 1:
            masks = masks.repeat(self.scale, 1).repeat(self.scale, 2)
        detections = self._sv.Detections(
            xyxy=self._sv.mask_to_xyxy(masks).astype(np.float64),
            mask=masks,
            tracker_id=np.array([item.track_id or 0 for item in objects]),
        )
        # supervision draws on BGR images, as OpenCV does.
        drawn = np.ascontiguousarray(frame[:, :, ::-1])
        for annotator in self._annotators:
            drawn = annotator.annotate(drawn, detections)
        names = [_shorten(item.name) for item in objects]
        # A new one for each frame: which font has all letters depends on the names.
        labels = self._sv.RichLabelAnnotator(
            font_path=find_font("".join(sorted(set("".join(names))))),
            font_size=int(np.clip(min(frame.shape[:2]) / 32, 11, 32)),
            text_padding=3,
            smart_position=True,
            **self._lookup,
        )
        texts = [f"{name} {item.score:.2f}" for name, item in zip(names, objects, strict=True)]
        return np.ascontiguousarray(labels.annotate(drawn, detections, texts)[:, :, ::-1])


def choose_scale(size: tuple[int, int]) -> int:
    """Return the factor that enlarges frames of a height and width until names can be read."""
    # About 360 pixels on the short side, but not more than 1920 on the long one.
    return max(1, min(-(-360 // min(size)), 1920 // max(size)))


@lru_cache(maxsize=64)
def find_font(letters: str) -> str:
    """Return the path of a font that has all these letters, or else most of them.

    matplotlib's own font comes first, then those of the system.
    """
    from matplotlib import font_manager, ft2font, get_data_path

    own = f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    best, missing = own, _find_missing(ft2font.FT2Font(own), letters)
    for path in sorted(font_manager.findSystemFonts()) if missing else ():
        try:
            lacks = _find_missing(ft2font.FT2Font(path), letters)
        except (RuntimeError, OSError):  # a format that can't be drawn
            continue
        if len(lacks) < len(missing):
            best, missing = path, lacks
        if not missing:
            break
    if missing:
        logger.warning(
            "No font on this machine has %s, so the output video lacks these letters; the HTML "
            "page and the JSON files have them. On Debian, install fonts-noto-cjk or another font",
            " ".join(missing[:5]),
        )
    return best


def _find_missing(font: object, letters: Iterable[str]) -> list[str]:
    """Return the letters that a font lacks, without blanks."""
    known = font.get_charmap()
    return [letter for letter in letters if ord(letter) not in known and not letter.isspace()]


def _shorten(name: str) -> str:
    return name if len(name) <= _MAX_LETTERS else name[: _MAX_LETTERS - 1] + "…"


def _import_supervision() -> ModuleType:
    """Return supervision; where it is not installed, raise an error that says how to install it."""
    try:
        import supervision
    except ModuleNotFoundError as error:
        if error.name != "supervision":
            raise
        raise ModuleNotFoundError(
            "drawing needs supervision, which is not installed: pip install 'ovformer[demo]'",
            name="supervision",
        ) from error
    return supervision
