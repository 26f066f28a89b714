"""Frames in and films out: video files, pictures and folders of pictures, arrays, live streams.

A frame is uint8 (H, W, 3), RGB, upright, with the time at which it is shown. Files of videos are
read and written by PyAV (the package ``av``, extra [demo]).
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps

from ovformer.data.files.image_files import IMAGE_ERRORS, IMAGE_SUFFIXES, natural_sort_key
from ovformer.data.files.untrusted_masks import MAX_PIXELS
from ovformer.files import replacing, temporary_name

# Frames per second of what has no times: folders, lists, iterators.
DEFAULT_RATE = 10.0
# FFmpeg's formats whose files hold their frames themselves. Others may name further files or
# addresses, and those are opened: of a file from somebody else, only these should be read.
SELF_CONTAINED = "asf,avi,flv,gif,h264,hevc,ivf,m4v,matroska,mov,mpeg,mpegts,mpegvideo,mxf,ogg,webm"
# What a picture may be, whatever its suffix: reading some others starts programs.
_PICTURES = {"AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"}
# Of films: times are kept as multiples of so many parts of a second.
_CLOCK = 90_000

logger = logging.getLogger(__name__)


class Frame(NamedTuple):
    """A frame of a video.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        time: seconds from the beginning.
        number: in the file or stream it comes from, counted from 0.
    """

    image: np.ndarray
    time: float
    number: int


class VideoSource:
    """A video that can be iterated over more than once.

    Attributes:
        path: the file or folder.
        num_frames: as the container says or time and rate suggest; None where nobody knows.
        rate: frames per second, on average.
        is_still: whether it is one picture and no video.
    """

    def __init__(
        self, path: str | PathLike, formats: str | None = None, max_pixels: int = MAX_PIXELS
    ) -> None:
        """Look at a file or folder.

        Args:
            path: a video, a picture, or a folder of pictures, which are taken in the order of their
                names (2 before 10).
            formats: those of FFmpeg that a video may have, with commas (:data:`SELF_CONTAINED`);
                None for all.
            max_pixels: of a frame. One with more is an error, if possible before it is decoded.

        Raises:
            FileNotFoundError: there is no such file, or the folder has no picture.
            ValueError: it is neither a video nor a picture, or a video with too many pixels.
            ModuleNotFoundError: PyAV is not installed.
        """
        self.path = Path(path)
        self.num_frames: int | None = None
        self.rate = DEFAULT_RATE
        self.is_still = False
        self._images: list[Path] = []
        self._limits = formats, max_pixels
        if self.path.is_dir():
            self._images = sorted(
                (p for p in self.path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES),
                key=lambda p: natural_sort_key(p.name),
            )
            if not self._images:
                raise FileNotFoundError(
                    f"{path}: no picture in this folder. Looked for {', '.join(IMAGE_SUFFIXES)}"
                )
        elif not self.path.exists():
            raise FileNotFoundError(f"{path}: no such video, picture or folder")
        elif self.path.suffix.lower() in IMAGE_SUFFIXES:
            self._images, self.is_still = [self.path], True
        else:
            with _opened(self.path, *self._limits) as (container, stream):
                self.rate = float(stream.average_rate or stream.guessed_rate or DEFAULT_RATE)
                self.num_frames = _expected_frames(container, stream, self.rate)
        if self._images:
            self.num_frames = len(self._images)

    @property
    def file_names(self) -> list[str] | None:
        """The pictures of a folder; None for a video file."""
        return [path.name for path in self._images] or None

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames, with the times that the file gives them.

        A video that breaks off gives the frames before that, and a warning.

        Raises:
            ValueError: there is not a single frame that can be decoded, or one has too many pixels.
        """
        max_pixels = self._limits[1]
        if self._images:
            for number, path in enumerate(self._images):
                yield Frame(read_picture(path, max_pixels), number / self.rate, number)
            return
        with _opened(self.path, *self._limits) as (container, stream):
            yield from _decoded(self.path, container, stream, max_pixels)


def iterate_frames(video: Any) -> Iterable[Frame]:
    """Return the frames of anything that can be a video.

    Args:
        video: a path (see :class:`VideoSource`), a picture as an array, or an iterable of
            :class:`Frame`, of arrays (see :func:`to_rgb`) or of PIL images.
    """
    if isinstance(video, str | PathLike):
        return VideoSource(video)
    if isinstance(video, VideoSource):
        return video
    if isinstance(video, np.ndarray) and (video.ndim == 2 or video.shape[2:] in {(1,), (3,), (4,)}):
        video = [video]
    elif isinstance(video, Image.Image):
        video = [video]
    if not isinstance(video, Iterable):
        raise TypeError(
            f"expected a path, an array, or an iterable of frames, got {type(video).__name__}"
        )
    return _numbered(video)


def to_rgb(image: np.ndarray | Image.Image) -> np.ndarray:
    """Return a picture as uint8 (H, W, 3), RGB.

    Args:
        image: uint8 or uint16, (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), channels in the order
            RGB(A); or a PIL image. Of 16 bits the higher 8 are kept, and transparency is ignored.

    Raises:
        ValueError: it has another shape or type, or no pixel.
    """
    if isinstance(image, Image.Image):
        image = _pil_pixels(image)
    image = np.asarray(image)
    is_picture = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))
    if not is_picture or image.dtype not in (np.uint8, np.uint16) or not image.size:
        raise ValueError(
            "a frame has to be uint8 (or uint16) of shape (height, width, 3) in RGB, or grey "
            f"(height, width), got {image.dtype} {image.shape}"
        )
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.ndim == 2 or image.shape[2] == 1:
        image = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(image[:, :, :3])


def read_picture(path: str | PathLike, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return a picture as uint8 (H, W, 3), RGB, upright as its EXIF data say.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it can't be decoded, or has more than ``max_pixels`` pixels.
    """
    try:
        formats = _PICTURES.intersection(Image.registered_extensions().values())
        with Image.open(path, formats=sorted(formats)) as image:
            _check_pixels(image.height, image.width, max_pixels)
            return to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise
    except IMAGE_ERRORS as error:
        raise ValueError(f"{path}: the picture can't be decoded ({error})") from error


def thin_frames(frames: Iterable[Frame], stride: int = 1, seconds: float = 0.0) -> Iterator[Frame]:
    """Yield some of the frames.

    Args:
        frames: in order of time.
        stride: one of so many.
        seconds: the first that comes after each multiple of so many seconds; 0 for all.
    """
    due = 0.0
    for index, frame in enumerate(frames):
        if index % stride == 0 and frame.time >= due - 1e-6:
            yield frame
            due = due + seconds if due + seconds > frame.time else frame.time + seconds


class VideoWriter:
    """Writes an mp4 (H.264, yuv420p) that browsers play; a context manager.

    The file is there, and complete, when the block has ended, in whatever way.
    """

    def __init__(self, path: Path, rate: float) -> None:
        """Make the file.

        Args:
            path: ends in ``.mp4``.
            rate: frames per second, for players that ask; each frame has a time of its own.
        """
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
        if self._stream is None:
            self._container.close()
            temporary_name(self.path).unlink(missing_ok=True)
            return
        with replacing(self.path):
            try:
                self._container.mux(self._stream.encode())
            finally:
                self._container.close()

    def write(self, image: np.ndarray, time: float) -> None:
        """Add a frame. One of another size than the first is resized.

        Args:
            image: uint8 (H, W, 3), RGB.
            time: seconds from the beginning of the film, rising.
        """
        if self._stream is None:
            height, width = (-(-side // 2) * 2 for side in image.shape[:2])  # yuv420p: even sides
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
        frame.pts = self._last = max(round(time * _CLOCK), self._last + 1)
        frame.time_base = Fraction(1, _CLOCK)
        self._container.mux(self._stream.encode(frame))


def import_av() -> ModuleType:
    """Return PyAV, or raise ModuleNotFoundError that says how to install it."""
    try:
        import av
    except ModuleNotFoundError as error:
        if error.name != "av":
            raise
        raise ModuleNotFoundError(
            "videos are read and written by PyAV, which is missing: pip install 'ovformer[demo]'",
            name="av",
        ) from error
    return av


@contextmanager
def _opened(path: Path, formats: str | None, max_pixels: int) -> Iterator[tuple[Any, Any]]:
    """Open a video: the container and its first video stream."""
    av = import_av()
    # Only this file: a playlist may name others, and addresses.
    options = {"protocol_whitelist": "file", **({"format_whitelist": formats} if formats else {})}
    try:
        container = av.open(f"file:{path}", options=options)
    except av.error.FFmpegError as error:
        raise ValueError(
            f"{path}: neither a video nor a picture that can be read ({error.strerror}). A file "
            "that was cut off before its index was written can't be read either"
        ) from error
    with container:
        streams = [s for s in container.streams.video if s.codec_context is not None]
        if not streams:
            raise ValueError(f"{path}: has no pictures, only sound or other data")
        _check_pixels(streams[0].height, streams[0].width, max_pixels, f"{path}: a frame of ")
        streams[0].thread_type = "AUTO"
        yield container, streams[0]


def _check_pixels(height: int, width: int, most: int, place: str = "") -> None:
    """Raise ValueError where a frame has too many pixels."""
    if height * width > most:
        raise ValueError(
            f"{place}{height} x {width} pixels (height x width) is too large, at most {most} "
            "pixels are taken"
        )


def _decoded(path: Path, container: Any, stream: Any, max_pixels: int) -> Iterator[Frame]:
    """Decode a stream, over broken packets."""
    av = import_av()
    number, broken, start, reason = 0, 0, None, ""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                break
            frames = packet.decode()
        except av.error.FFmpegError as error:
            broken, reason = broken + 1, error.strerror
            continue
        for frame in frames:
            time = frame.time if frame.time is not None else number / DEFAULT_RATE
            start = time if start is None else start
            # A stream may go on with larger frames than it says at the beginning.
            _check_pixels(frame.height, frame.width, max_pixels, f"{path}: a frame of ")
            image = frame.to_ndarray(format="rgb24")
            turns = round(frame.rotation / 90) % 4
            image = np.ascontiguousarray(np.rot90(image, turns)) if turns else image
            yield Frame(image, time - start, number)
            number += 1
    if not number:
        raise ValueError(f"{path}: a video without a frame that can be decoded")
    # Other formats than mp4 count places without a frame, or do not know.
    is_short = "mp4" in container.format.name and number < stream.frames
    if broken or is_short:
        logger.warning(
            "%s: gave %d frames, but it says that it has %s. It is cut off or damaged%s",
            path,
            number,
            stream.frames or "more",
            f" ({broken} places: {reason})" if broken else "",
        )


def _expected_frames(container: Any, stream: Any, rate: float) -> int | None:
    """Return how many frames a video has, or by its duration should have; None if unknown."""
    if stream.frames:
        return stream.frames
    if stream.duration is not None:
        return round(float(stream.duration * stream.time_base) * rate)
    return round(container.duration / 1e6 * rate) if container.duration else None


def _numbered(images: Iterable[Any]) -> Iterator[Frame]:
    for number, image in enumerate(images):
        if isinstance(image, Frame):
            yield image
        else:
            yield Frame(to_rgb(image), number / DEFAULT_RATE, number)


def _pil_pixels(image: Image.Image) -> np.ndarray:
    """Return the pixels of a PIL image, of those with 16 bits all 16."""
    if image.mode.startswith("I"):  # 16 bits, or 32 of which PNG uses 16
        return np.clip(np.asarray(image), 0, 65535).astype(np.uint16)
    return np.asarray(image.convert("RGB"))
