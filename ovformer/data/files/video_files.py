"""Reads frames from video files, images, folders of images, arrays and live streams.

A frame is uint8 (H, W, 3), RGB, upright, with the time at which it is shown. Video files are read
by PyAV (the package ``av``, extra [demo]).

Legend: H W pixels.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ovformer.data.files.image_files import IMAGE_ERRORS, IMAGE_SUFFIXES, natural_sort_key
from ovformer.data.files.untrusted_masks import MAX_PIXELS

# Frames per second of folders, lists and iterators, which have no times.
DEFAULT_RATE = 10.0
# FFmpeg's formats whose files hold their frames themselves. Other formats may name further files
# or addresses, which FFmpeg opens: read only these formats from an untrusted source.
SELF_CONTAINED = "asf,avi,flv,gif,h264,hevc,ivf,m4v,matroska,mov,mpeg,mpegts,mpegvideo,mxf,ogg,webm"
# Allowed formats of an image, with any suffix: Pillow starts programs to read some others.
_PICTURES = {"AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"}

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

    Args:
        path: a video, an image, or a folder of images, which are sorted by name (2 before 10).
        formats: FFmpeg's names of the formats that a video may have, with commas
            (:data:`SELF_CONTAINED`); None for all.
        max_pixels: most pixels of a frame. A larger one is an error, if possible before decoding.

    Attributes:
        path: the file or folder.
        num_frames: as the container says or duration and rate suggest; None where it is unknown.
        rate: frames per second, on average.
        is_still: whether it is a single image and no video.

    Raises:
        FileNotFoundError: the file does not exist, or the folder has no image.
        ValueError: it is neither a video nor an image, or a video with too many pixels.
        ModuleNotFoundError: PyAV is not installed.
    """

    def __init__(
        self, path: str | PathLike, formats: str | None = None, max_pixels: int = MAX_PIXELS
    ) -> None:
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
                    f"{path}: no image in this folder. Looked for {', '.join(IMAGE_SUFFIXES)}"
                )
        elif not self.path.exists():
            raise FileNotFoundError(f"{path}: no such video, image or folder")
        elif self.path.suffix.lower() in IMAGE_SUFFIXES:
            self._images, self.is_still = [self.path], True
        else:
            with _open_video(self.path, *self._limits) as (container, stream):
                self.rate = float(stream.average_rate or stream.guessed_rate or DEFAULT_RATE)
                self.num_frames = _estimate_num_frames(container, stream, self.rate)
        if self._images:
            self.num_frames = len(self._images)

    @property
    def file_names(self) -> list[str] | None:
        """The images of a folder; None for a video file."""
        return [path.name for path in self._images] or None

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames, with the times that the file gives them.

        A video that is cut off yields the frames before the cut, and a warning is logged.

        Raises:
            ValueError: no frame can be decoded, or one has too many pixels.
        """
        max_pixels = self._limits[1]
        if self._images:
            for number, path in enumerate(self._images):
                yield Frame(read_untrusted_image(path, max_pixels), number / self.rate, number)
            return
        with _open_video(self.path, *self._limits) as (container, stream):
            yield from _decode(self.path, container, stream, max_pixels)


def iterate_frames(video: Any) -> Iterable[Frame]:
    """Return an iterable over the frames of anything that can be a video.

    Args:
        video: a path (see :class:`VideoSource`), an image as an array, or an iterable of
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
    return _number_frames(video)


def to_rgb(image: np.ndarray | Image.Image) -> np.ndarray:
    """Convert an image to uint8 (H, W, 3), RGB.

    Args:
        image: uint8 or uint16, (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), channels in the order
            RGB(A); or a PIL image. The higher 8 of 16 bits are kept; transparency is ignored.

    Raises:
        ValueError: it has another shape or type, or no pixel.
    """
    if isinstance(image, Image.Image):
        image = _convert_pil(image)
    image = np.asarray(image)
    has_channels = image.ndim == 3 and image.shape[2] in (1, 3, 4)
    has_type = image.dtype in (np.uint8, np.uint16)
    if not (image.ndim == 2 or has_channels) or not has_type or not image.size:
        raise ValueError(
            "a frame has to be uint8 (or uint16) of shape (height, width, 3) in RGB, or grey "
            f"(height, width), got {image.dtype} {image.shape}"
        )
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.ndim == 2 or image.shape[2] == 1:
        image = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(image[:, :, :3])


def read_untrusted_image(path: str | PathLike, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an untrusted image as uint8 (H, W, 3), RGB, upright as its EXIF data say.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it can't be decoded, or has more than ``max_pixels`` pixels.
    """
    try:
        formats = _PICTURES.intersection(Image.registered_extensions().values())
        with Image.open(path, formats=sorted(formats)) as image:
            _check_pixels(image.height, image.width, max_pixels)
            return to_rgb(ImageOps.exif_transpose(image))
    # It is one of IMAGE_ERRORS, an OSError, but no fault of the image.
    except FileNotFoundError:
        raise
    except IMAGE_ERRORS as error:
        raise ValueError(f"{path}: the image can't be decoded ({error})") from error


def thin_frames(frames: Iterable[Frame], stride: int = 1, seconds: float = 0.0) -> Iterator[Frame]:
    """Thin out a video: yield one frame in ``stride``, and of those about one per ``seconds``.

    Args:
        frames: in order of time.
        stride: keep one frame of ``stride``.
        seconds: keep the first frame after each multiple of this many seconds; 0 for all.
    """
    due = 0.0
    for index, frame in enumerate(frames):
        if index % stride == 0 and frame.time >= due - 1e-6:
            yield frame
            due = due + seconds if due + seconds > frame.time else frame.time + seconds


def import_av() -> ModuleType:
    """Import PyAV, or raise a ModuleNotFoundError that says how to install it."""
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
def _open_video(path: Path, formats: str | None, max_pixels: int) -> Iterator[tuple[Any, Any]]:
    """Open a video: the container and its first video stream."""
    av = import_av()
    # FFmpeg may open this file only: a playlist names others, and addresses.
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


def _check_pixels(height: int, width: int, max_pixels: int, place: str = "") -> None:
    """Raise ValueError if a frame has too many pixels."""
    if height * width > max_pixels:
        raise ValueError(
            f"{place}{height} x {width} pixels (height x width) is too large: at most {max_pixels} "
            "pixels are allowed"
        )


def _decode(path: Path, container: Any, stream: Any, max_pixels: int) -> Iterator[Frame]:
    """Yield the frames of a stream; broken packets are skipped and reported at the end."""
    av = import_av()
    number, broken, start, reason = 0, 0, None, ""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                break
            frames = packet.decode()
        # Later packets may be whole: a damaged video gives all the frames that it still has.
        except av.error.FFmpegError as error:
            broken, reason = broken + 1, error.strerror
            continue
        for frame in frames:
            time = frame.time if frame.time is not None else number / DEFAULT_RATE
            # Some files count from another time than 0; users count from the first frame.
            start = time if start is None else start
            # The size may change within a stream, so the check when it was opened is not enough.
            _check_pixels(frame.height, frame.width, max_pixels, f"{path}: a frame of ")
            image = frame.to_ndarray(format="rgb24")
            turns = round(frame.rotation / 90) % 4
            image = np.ascontiguousarray(np.rot90(image, turns)) if turns else image
            yield Frame(image, time - start, number)
            number += 1
    if not number:
        raise ValueError(f"{path}: a video without a frame that can be decoded")
    # In other formats than mp4 the stream's count is unknown, or includes packets without frames.
    is_short = "mp4" in container.format.name and number < stream.frames
    if broken or is_short:
        logger.warning(
            "%s: %d frames could be read, but the file says that it has %s. It is cut off or "
            "damaged%s",
            path,
            number,
            stream.frames or "more",
            f" ({broken} broken packets: {reason})" if broken else "",
        )


def _estimate_num_frames(container: Any, stream: Any, rate: float) -> int | None:
    """Return the number of frames by the stream's count or its duration; None if unknown."""
    if stream.frames:
        return stream.frames
    if stream.duration is not None:
        return round(float(stream.duration * stream.time_base) * rate)
    return round(container.duration / 1e6 * rate) if container.duration else None


def _number_frames(images: Iterable[Any]) -> Iterator[Frame]:
    """Yield images as frames with times at the default rate; frames stay as they are."""
    for number, image in enumerate(images):
        if isinstance(image, Frame):
            yield image
        else:
            yield Frame(to_rgb(image), number / DEFAULT_RATE, number)


def _convert_pil(image: Image.Image) -> np.ndarray:
    """Return the pixels of a PIL image as uint8 RGB, or uint16 grey for 16-bit images."""
    if image.mode.startswith("I"):  # 16 bits, or 32 bits with values of 16
        return np.clip(np.asarray(image), 0, 65535).astype(np.uint16)
    return np.asarray(image.convert("RGB"))
