"""The objects of a video in an annotation tool: tracks of key frames and interpolated shapes."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ovformer.data.exports.media import Frames, MediaLibrary
from ovformer.data.exports.shapes import Shape


@contextmanager
def name_place_in_errors(place: str) -> Iterator[None]:
    """Turn errors about unexpected content into a ValueError that names the place."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError) as error:
        kind = type(error).__name__
        raise ValueError(f"{place}: not valid in this format ({kind}: {error}).") from error


@dataclass
class KeyFrame:
    """The shapes of an object in a frame.

    Attributes:
        shapes: the parts of the object.
        is_visible: whether the object is visible in this frame; if not, the key frame only guides
            the interpolation.
        lasts: whether the object is visible after this frame until the next key frame or the end.
    """

    shapes: list[Shape]
    is_visible: bool = True
    lasts: bool = False


@dataclass
class Track:
    """An object of a video.

    Attributes:
        name: its name in messages, with file and video.
        category: name of its class.
        keys: number of a frame, as the tool counts -> key frame.
        iscrowd: 1 for a group that is one annotation, as in COCO.
    """

    name: str
    category: str
    keys: dict[int, KeyFrame] = field(default_factory=dict)
    iscrowd: int = 0

    def shapes_at(self, frame: float) -> list[Shape]:
        """Return the parts that are visible in a frame.

        Args:
            frame: its number, or a value between two numbers.

        Raises:
            ValueError: the shapes between two key frames can't be computed.
        """
        if frame in self.keys:
            key = self.keys[frame]
            return key.shapes if key.is_visible else []
        numbers = sorted(self.keys)
        place = bisect_right(numbers, frame)
        # Before its first key frame an object is absent, after one that does not last as well.
        if place == 0 or not self.keys[numbers[place - 1]].lasts:
            return []
        before = numbers[place - 1]
        # Nothing follows to move to, so the object stays where it was, as the tools show it.
        if place == len(numbers):
            return self.keys[before].shapes
        after = numbers[place]
        ratio = (frame - before) / (after - before)
        try:
            return _interpolate(self.keys[before].shapes, self.keys[after].shapes, ratio)
        except ValueError as error:
            raise ValueError(
                f"{self.name}: key frames {before} and {after}: {error}. Export the annotations "
                "with all frames"
            ) from error


def _interpolate(start: list[Shape], end: list[Shape], ratio: float) -> list[Shape]:
    if len(start) != 1 or len(end) != 1 or type(start[0]) is not type(end[0]):
        raise ValueError("shapes between shapes of different kinds can't be computed")
    return [start[0].between(end[0], ratio)]


@dataclass
class AnnotatedVideo:
    """A video and its objects.

    Attributes:
        name: of the video, and of the folder of its frames.
        frames: reads them.
        tracks: its objects.
        numbers: number of each frame, as the tracks count; or the number of the first frame.
        size: height and width in pixels of the annotated frames, where the file says so.
        in_percent: whether boxes are in percent of the frame.
        expected: number of frames by the tool's own count, if it has one. Its frame rate may be
            wrong: then annotations are matched by time.
    """

    name: str
    frames: Frames
    tracks: list[Track]
    numbers: Sequence[int] | int = 0
    size: tuple[int, int] | None = None
    in_percent: bool = False
    expected: int | None = None

    def number_of(self, position: int, count: int) -> float:
        """Return the number of a frame in the tracks.

        Args:
            position: of the frame, from 0.
            count: number of frames of the video.
        """
        if not isinstance(self.numbers, int):
            return self.numbers[position]
        # By time: the same share of the video, which may fall between two frames of the tool.
        if self.has_other_rate(count):
            return self.numbers + position * self.expected / count
        return self.numbers + position

    def has_other_rate(self, count: int) -> bool:
        """Return whether the tool's number of frames differs by more than rounding."""
        return self.expected is not None and abs(self.expected - count) > 1


@dataclass
class Export:
    """An export, the options of reading it, and what was skipped.

    Attributes:
        path: its name in messages.
        library: finds its frames.
        track_by: name of the attribute that names the object of a shape, in formats that list
            shapes by frame.
        single_frames: whether shapes without that attribute become objects of one frame.
        skipped: reason -> number of skipped parts.
        notes: notes for the user.
    """

    path: str
    library: MediaLibrary
    track_by: str = "track_id"
    single_frames: bool = False
    skipped: Counter = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


class FrameTracks:
    """Joins the shapes of a video, which are listed frame by frame, to tracks."""

    def __init__(self, export: Export) -> None:
        self._export = export
        self._joined: dict[Hashable, Track] = {}
        self._alone: list[Track] = []

    def add(
        self,
        place: str,
        frame: int,
        category: str,
        identity: Hashable | None,
        shape: Shape,
        iscrowd: int = 0,
    ) -> None:
        """Add a shape.

        Args:
            place: for messages: file, frame and number of the shape.
            frame: number of the frame.
            category: name of its class.
            identity: of the object; None if it is unknown. Several shapes of an object in one
                frame are its parts.
            shape: the shape.
            iscrowd: 1 for a group.

        Raises:
            ValueError: the object has another class elsewhere.
        """
        # Not an error yet: in a video of one frame every shape is an object of its own.
        if identity is None:
            self._alone.append(Track(place, category, {frame: KeyFrame([shape])}, iscrowd))
            return
        track = self._joined.setdefault(identity, Track(place, category, {}, iscrowd))
        if track.category != category:
            raise ValueError(
                f"{place} is {category!r}, but the same object ({self._export.track_by} "
                f"{identity}) is {track.category!r} in {track.name}. An object has one class."
            )
        track.keys.setdefault(frame, KeyFrame([])).shapes.append(shape)

    def tracks(self, num_frames: int) -> list[Track]:
        """Return the tracks of the video.

        Args:
            num_frames: of the video.

        Raises:
            ValueError: the object of a shape is unknown.
        """
        if self._alone and num_frames > 1 and not self._export.single_frames:
            raise ValueError(
                f"{self._alone[0].name}: the object of this shape is unknown: it has no "
                f"{self._export.track_by!r} ({len(self._alone)} shapes of this video have none). "
                "--track-by names another attribute; with --single-frames each such shape becomes "
                "an object of one frame."
            )
        return [*self._joined.values(), *self._alone]
