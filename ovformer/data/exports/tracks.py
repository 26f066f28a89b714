"""Objects of a video as an annotation tool knows them: key frames, and what is between them."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ovformer.data.exports.media import Frames, MediaLibrary
from ovformer.data.exports.shapes import Shape


@contextmanager
def name_place_in_errors(place: str) -> Iterator[None]:
    """Turn errors about content of another kind than expected into one that names a place."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError) as error:
        kind = type(error).__name__
        raise ValueError(f"{place}: not as the format has it ({kind}: {error}).") from error


@dataclass
class KeyFrame:
    """What was drawn in a frame.

    Attributes:
        shapes: the parts of the object.
        is_visible: whether it is seen in this frame; if not, it only says where it goes.
        lasts: whether it is also there from this frame to the next key frame, or to the end.
    """

    shapes: list[Shape]
    is_visible: bool = True
    lasts: bool = False


@dataclass
class Track:
    """An object of a video.

    Attributes:
        name: what messages call it, with file and video.
        category: name of its class.
        keys: number of a frame, as the tool counts -> what was drawn in it.
        iscrowd: 1 for a group that is one annotation, as in COCO.
    """

    name: str
    category: str
    keys: dict[int, KeyFrame] = field(default_factory=dict)
    iscrowd: int = 0

    def shapes_at(self, frame: float) -> list[Shape]:
        """Return the parts that are seen in a frame.

        Args:
            frame: its number, or a place between two numbers.

        Raises:
            ValueError: what is between two key frames can't be computed.
        """
        if frame in self.keys:
            key = self.keys[frame]
            return key.shapes if key.is_visible else []
        numbers = sorted(self.keys)
        place = bisect_right(numbers, frame)
        if place == 0 or not self.keys[numbers[place - 1]].lasts:
            return []
        before = numbers[place - 1]
        if place == len(numbers):
            return self.keys[before].shapes
        after = numbers[place]
        ratio = (frame - before) / (after - before)
        try:
            return _between(self.keys[before].shapes, self.keys[after].shapes, ratio)
        except ValueError as error:
            raise ValueError(
                f"{self.name}: key frames {before} and {after}: {error}. Export the annotations "
                "with all frames"
            ) from error


def _between(start: list[Shape], end: list[Shape], ratio: float) -> list[Shape]:
    if len(start) != 1 or len(end) != 1 or type(start[0]) is not type(end[0]):
        raise ValueError("what is between shapes of different kinds can't be computed")
    return [start[0].between(end[0], ratio)]


@dataclass
class AnnotatedVideo:
    """A video and its objects.

    Attributes:
        name: of the video; the folder of its frames is called like it.
        frames: where they come from.
        tracks: its objects.
        numbers: of each frame, as the keys of the tracks count. A single number is that of the
            first frame, from which the others count on.
        size: height and width in pixels that the annotations are for, where the file says so.
        in_percent: whether boxes are in percent of the frame.
        expected: how many frames the tool counted, where it counts by itself. By its frame rate it
            may find others than there are; places in time are kept then.
    """

    name: str
    frames: Frames
    tracks: list[Track]
    numbers: Sequence[int] | int = 0
    size: tuple[int, int] | None = None
    in_percent: bool = False
    expected: int | None = None

    def number_of(self, position: int, count: int) -> float:
        """Return how the tracks count a frame.

        Args:
            position: from 0.
            count: how many frames there are.
        """
        if not isinstance(self.numbers, int):
            return self.numbers[position]
        if self.has_other_rate(count):
            return self.numbers + position * self.expected / count
        return self.numbers + position

    def has_other_rate(self, count: int) -> bool:
        """Return whether the tool's number of frames differs by more than rounding."""
        return self.expected is not None and abs(self.expected - count) > 1


@dataclass
class Export:
    """An export that is read, and how it is to be read.

    Attributes:
        path: what messages call it.
        library: where its frames may be.
        track_by: name of the attribute that says which object of the video a shape belongs to, in
            formats that list shapes by frame.
        single_frames: whether shapes without that attribute are objects of one frame.
        skipped: what was left out -> how often.
        notes: what a user should know.
    """

    path: str
    library: MediaLibrary
    track_by: str = "track_id"
    single_frames: bool = False
    skipped: Counter = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


class FrameTracks:
    """Collects the shapes of a video that come frame by frame, and joins them to tracks."""

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
            identity: which object of the video it belongs to; None if nothing says that. Several
                shapes of an object in one frame are its parts.
            shape: what was drawn.
            iscrowd: 1 for a group.

        Raises:
            ValueError: the object has another class elsewhere.
        """
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
            ValueError: nothing says which object some shapes belong to.
        """
        if self._alone and num_frames > 1 and not self._export.single_frames:
            raise ValueError(
                f"{self._alone[0].name}: nothing says which object of the video this is: it has no "
                f"{self._export.track_by!r} ({len(self._alone)} shapes of this video have none). "
                "--track-by names another attribute; with --single-frames each such shape becomes "
                "an object that is seen in one frame only."
            )
        return [*self._joined.values(), *self._alone]
