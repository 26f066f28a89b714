"""Finds and copies the frames of annotated videos: in video files, folders of images, zip files.

No name inside an untrusted file becomes a path on this machine: names are only compared with those
of existing files, and frames are written under new names.
"""

import lzma
import re
import shutil
import stat
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

import cv2
from PIL import Image

from ovformer.data.files.image_files import IMAGE_ERRORS, IMAGE_SUFFIXES
from ovformer.data.files.video_files import VideoSource

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv")
# More bytes than an annotation file or image needs, and too few to fill a disk or the memory.
MAX_MEMBER_BYTES = 2**30
# No image or annotation file above this size compresses by more than this factor.
_LARGE_BYTES, _MAX_PACKING = 2**24, 200
_JPEG_QUALITY = 95
# The errors of reading a member of a zip file that is broken or has an unknown compression.
_ZIP_ERRORS = (EOFError, NotImplementedError, lzma.LZMAError, zipfile.BadZipFile, zlib.error)
# The folder of macOS's metadata, whose files have the names of the packed files.
_MACOS = "__MACOSX/"
# Label Studio puts eight digits of a hash in front of the names of uploaded files.
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")
# EXIF: the tag of the orientation, and its values for images that are turned by 90 degrees.
_ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)


class Frames(Protocol):
    """The frames of a video before they are written."""

    def probe(self) -> tuple[int, tuple[int, int]]:
        """Return the number of frames, and their (height, width) in pixels.

        Raises:
            ValueError: the frames differ in size, can't be read, or are too few.
        """

    def write(self, folder: Path, chosen: Sequence[int]) -> list[str]:
        """Write some frames into a folder, and return the names of the files in order."""


class Folder:
    """Images and videos in a folder and those below it, or one file.

    Attributes:
        names: of the files, relative, with "/".
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such folder or file of videos or frames.")
        self.path = path if path.is_dir() else path.parent
        files = path.rglob("*") if path.is_dir() else [path]
        self.names = [
            file.relative_to(self.path).as_posix()
            for file in sorted(files)
            if file.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES and file.is_file()
        ]

    def open(self, name: str) -> BinaryIO:
        """Open one of the files."""
        return (self.path / name).open("rb")

    def __str__(self) -> str:
        return str(self.path)


class Zip:
    """A zip file; only checked members are read, one at a time.

    Attributes:
        names: of the members, without folders and macOS's metadata.

    Raises:
        ValueError: the file is broken or encrypted, or has a member that lies elsewhere, is a link
            or is too large.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path}: not a zip file, or cut off ({error}).") from error
        self.names = []
        for info in self._zip.infolist():
            self._check(info)
            if not info.is_dir() and not info.filename.startswith(_MACOS):
                self.names.append(info.filename)

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """Open a member. At most the checked number of bytes is read.

        Raises:
            ValueError: the content is broken, which may show when it is read.
        """
        try:
            with self._zip.open(name) as file:
                yield file
        except _ZIP_ERRORS as error:
            raise ValueError(
                f"{self.path}: member {name!r} can't be unpacked ({error}). Export it again."
            ) from error

    def __str__(self) -> str:
        return str(self.path)

    def _check(self, info: zipfile.ZipInfo) -> None:
        # All by the directory of the zip file, before a single byte is unpacked.
        place, parts = f"{self.path}: member {info.filename!r}", info.filename.split("/")
        if info.filename.startswith("/") or ".." in parts or "\\" in info.filename:
            raise ValueError(f"{place} lies outside of the zip file's own folder. Don't trust it.")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ValueError(f"{place} is a link. Pack the file itself.")
        if info.flag_bits & 1:
            raise ValueError(f"{place} is encrypted. Unpack it and give the folder.")
        if info.file_size > MAX_MEMBER_BYTES:
            raise ValueError(
                f"{place} unpacks to {info.file_size:,} bytes; at most {MAX_MEMBER_BYTES:,} are "
                "allowed."
            )
        if info.file_size > max(_LARGE_BYTES, _MAX_PACKING * info.compress_size):
            raise ValueError(
                f"{place} unpacks from {info.compress_size:,} to {info.file_size:,} bytes, as no "
                "image or annotation does. Don't trust it."
            )


class MediaFile(NamedTuple):
    """A file among the media."""

    source: Folder | Zip
    name: str

    def __str__(self) -> str:
        return f"{self.source}/{self.name}"


class MediaLibrary:
    """All places where frames and videos may be, in the order of the search.

    Attributes:
        sources: these places.
    """

    def __init__(self, sources: Sequence[Folder | Zip]) -> None:
        self.sources = sources
        # For each place: its files by name, and by name without suffix.
        self._index: list[dict[str, list[MediaFile]]] = []
        for source in sources:
            index = defaultdict(list)
            for name in source.names:
                path = PurePosixPath(name)
                for key in {path.name, path.stem}:
                    index[key].append(MediaFile(source, name))
            self._index.append(index)

    def images(self) -> list[MediaFile]:
        """Return the images of the first place that has any."""
        for source in self.sources:
            if found := [MediaFile(source, name) for name in source.names if _is_image(name)]:
                return found
        return []

    def find(self, reference: str, suffixes: Sequence[str], place: str) -> MediaFile:
        """Find the file that an annotation is about.

        Args:
            reference: its path or address on the machine of the annotation tool. The file name is
                compared, and among files of the same name also the folders.
            suffixes: allowed suffixes. A reference without a suffix matches all of them.
            place: for the error message.

        Raises:
            FileNotFoundError: no file matches.
            ValueError: several files match equally well.
        """
        # First as a path: "#" and "%" in a path have another meaning in an address.
        for wanted in (_as_path(reference), parse_path(reference)):
            keys = {wanted.name, _UPLOAD_PREFIX.sub("", wanted.name)}
            for index in self._index:
                found = [
                    one
                    for key in keys
                    for one in index.get(key, ())
                    if PurePosixPath(one.name).suffix.lower() in suffixes
                ]
                if found:
                    return _select_nearest(found, wanted, place)
        raise FileNotFoundError(
            f"{place}: {wanted.name!r} is not among the files of "
            f"{', '.join(map(str, self.sources)) or 'no folder'}. Name its folder with --media."
        )


class FrameFiles:
    """Frames in image files, which are copied."""

    def __init__(self, files: Sequence[MediaFile]) -> None:
        self.files = files

    def probe(self) -> tuple[int, tuple[int, int]]:
        """See :class:`Frames`."""
        # Only the headers are read: decoding all frames would take as long as the conversion.
        sizes = {}
        for found in self.files:
            sizes.setdefault(_read_image_size(found), found)
        if len(sizes) > 1:
            (one, first), (two, second), *_ = sizes.items()
            raise ValueError(
                f"{first} has {one[0]} x {one[1]} pixels (height x width), {second} has {two[0]} x "
                f"{two[1]}. The frames of a video have one size; are these several videos?"
            )
        return len(self.files), next(iter(sizes))

    def write(self, folder: Path, chosen: Sequence[int]) -> list[str]:
        """See :class:`Frames`."""
        names = []
        for number in chosen:
            found = self.files[number]
            suffix = PurePosixPath(found.name).suffix.lower()
            names.append(f"{number:05d}{suffix}")
            with found.source.open(found.name) as source, (folder / names[-1]).open("wb") as target:
                shutil.copyfileobj(source, target)
        return names


class VideoFrames:
    """Frames inside a video file, which become JPEGs.

    Args:
        found: the video file.
        wanted: numbers of the frames in the file, rising; None for all.
    """

    def __init__(self, found: MediaFile, wanted: Sequence[int] | None = None) -> None:
        if isinstance(found.source, Zip):
            raise ValueError(f"{found}: a video inside a zip file. Unpack it and give the folder.")
        self.path = found.source.path / found.name
        self._wanted = wanted

    def probe(self) -> tuple[int, tuple[int, int]]:
        """See :class:`Frames`. The video is decoded, because its header may have a wrong length."""
        count, size = 0, None
        for frame in VideoSource(self.path):
            height, width = frame.image.shape[:2]
            size = size or (height, width)
            if (height, width) != size:
                raise ValueError(
                    f"{self.path}: frame {frame.number} has {height} x {width} pixels (height x "
                    f"width), those before have {size[0]} x {size[1]}. The frames of a video have "
                    "one size."
                )
            count += 1
        if self._wanted is None:
            return count, size
        if self._wanted[-1] >= count:
            raise ValueError(
                f"{self.path}: the annotations are for frames up to {self._wanted[-1]}, but it has "
                f"{count} (0 to {count - 1}). Is it the video that was annotated, whole?"
            )
        return len(self._wanted), size

    def write(self, folder: Path, chosen: Sequence[int]) -> list[str]:
        """See :class:`Frames`."""
        # A video is decoded from its start in one pass, so the wanted frames are looked up.
        numbers = {(i if self._wanted is None else self._wanted[i]): i for i in chosen}
        names = []
        for frame in VideoSource(self.path):
            if frame.number in numbers:
                names.append(f"{numbers[frame.number]:05d}.jpg")
                options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
                if not cv2.imwrite(str(folder / names[-1]), frame.image[..., ::-1], options):
                    raise OSError(f"{folder / names[-1]}: the frame could not be written")
        return names


@contextmanager
def open_export(path: Path) -> Iterator[tuple[BinaryIO, Zip | None]]:
    """Open the annotations of an export.

    Args:
        path: an .xml or .json file, or a zip file with one of these and perhaps images.

    Yields:
        The annotations, and the zip file that holds them or None.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another type, or is a zip file with no or several annotations.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    if path.suffix.lower() in (".xml", ".json"):
        with path.open("rb") as file:
            yield file, None
        return
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: expected an export of annotations: .xml, .json or .zip.")
    source = Zip(path)
    inner = [name for name in source.names if name.lower().endswith((".xml", ".json"))]
    if len(inner) != 1:
        raise ValueError(
            f"{path}: expected one .xml or .json inside, found {inner or 'none'}. Unpack it and "
            "name the file."
        )
    with source.open(inner[0]) as file:
        yield file, source


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def parse_path(reference: str) -> PurePosixPath:
    """Return the path inside an address, as Label Studio writes it, or a path of Windows."""
    try:
        address = urlsplit(reference.replace("\\", "/"))
    except ValueError:  # not an address
        return _as_path(reference)
    path = parse_qs(address.query).get("d", [address.path])[0]
    return PurePosixPath(unquote(path))


def _as_path(reference: str) -> PurePosixPath:
    return PurePosixPath(reference.replace("\\", "/"))


def _select_nearest(found: list[MediaFile], wanted: PurePosixPath, place: str) -> MediaFile:
    """Return the file whose folders agree best with the wanted path."""

    def rate(one: MediaFile) -> tuple[bool, int]:
        """Return whether the name agrees, and the number of last folders that agree."""
        *folders, name = PurePosixPath(one.name).parts
        pairs = zip(reversed(folders), reversed(wanted.parts[:-1]), strict=False)
        same = [a == b for a, b in pairs]
        return name == wanted.name, (same + [False]).index(False)

    found.sort(key=rate, reverse=True)
    if len(found) > 1 and rate(found[0]) == rate(found[1]):
        raise ValueError(f"{place}: {wanted} may be {found[0]} or {found[1]}. Keep one of them.")
    return found[0]


def _read_image_size(found: MediaFile) -> tuple[int, int]:
    """Read the height and width of an image, upright as its EXIF data say."""
    try:
        with found.source.open(found.name) as file, Image.open(file) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
    except IMAGE_ERRORS as error:
        raise ValueError(f"{found}: not an image that can be read ({error}).") from error
    return (width, height) if turned else (height, width)
