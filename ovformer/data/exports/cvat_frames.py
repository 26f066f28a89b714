"""Finds the frames of a task of CVAT: in the zip file, in a folder, or in a video file."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from ovformer.data.exports.media import (
    VIDEO_SUFFIXES,
    FrameFiles,
    Frames,
    MediaFile,
    MediaLibrary,
    VideoFrames,
    Zip,
)
from ovformer.data.files.image_files import IMAGE_SUFFIXES, natural_sort_key

# CVAT's names of the frames of a video.
_FRAME_NAME = re.compile(r"frame_(\d+)$")


def frames_by_number(
    library: MediaLibrary, task: str, source: str, numbers: range | None, place: str
) -> tuple[Frames, Sequence[int]]:
    """Find the frames of a task whose annotations only number them.

    Args:
        library: where they may be.
        task: name of the task, and perhaps of the folder of its frames.
        source: name of the video file, "" for a task of images.
        numbers: of the frames, where the file says so.
        place: for messages.

    Returns:
        The frames, and their numbers, without the frames that were deleted in CVAT.

    Raises:
        FileNotFoundError: there is no frame.
        ValueError: the numbers of the images are ambiguous.
    """
    images = library.images()
    if source and not (images and isinstance(images[0].source, Zip)):
        try:
            found = library.find(source, VIDEO_SUFFIXES, place)
        except FileNotFoundError:
            if not images:
                raise
        else:
            if numbers is None:
                raise ValueError(f"{place}: no numbers of the annotated frames of {found}.")
            return VideoFrames(found, numbers), numbers
    if not images:
        raise FileNotFoundError(
            f"{place}: found neither frames nor a video. Export with images from CVAT, or name the "
            "folder of the frames, or the video, with --media."
        )
    return _number_images(_select_images(images, task, source, place), numbers, place)


def frames_by_name(library: MediaLibrary, names: Sequence[str], source: str, path: str) -> Frames:
    """Find the frames that annotations name: files, or frames of a video file.

    Args:
        library: where they may be.
        names: of the frames.
        source: name of the video file, "" for a task of images.
        path: of the export, for messages.

    Raises:
        FileNotFoundError: a frame is missing.
        ValueError: a name is ambiguous.
    """
    numbers = [_FRAME_NAME.search(PurePosixPath(name).stem) for name in names]
    if source and None not in numbers and not library.images():
        found = library.find(source, VIDEO_SUFFIXES, f"{path}: image {names[0]}")
        return VideoFrames(found, [int(match[1]) for match in numbers])
    return FrameFiles(
        [library.find(name, IMAGE_SUFFIXES, f"{path}: image {name}") for name in names]
    )


def _select_images(images: list[MediaFile], task: str, source: str, place: str) -> list[MediaFile]:
    """Return the images of the task's own folder, if they lie in several."""
    folders = defaultdict(list)
    for found in images:
        folders[PurePosixPath(found.name).parent].append(found)
    if len(folders) == 1:
        return images
    own = [f for f in folders if f.name in (task, PurePosixPath(source).stem)]
    if len(own) != 1:
        raise ValueError(
            f"{place}: expected a folder of frames called {task!r}, found "
            f"{', '.join(map(str, folders))}."
        )
    return folders[own[0]]


def _number_images(
    images: list[MediaFile], numbers: range | None, place: str
) -> tuple[Frames, Sequence[int]]:
    matches = [_FRAME_NAME.search(PurePosixPath(found.name).stem) for found in images]
    if None not in matches:
        by_number = {int(match[1]): found for match, found in zip(matches, images, strict=True)}
        present = [n for n in sorted(by_number) if numbers is None or n in numbers]
        if not present:
            raise ValueError(f"{place}: no image of its frames {numbers}.")
        return FrameFiles([by_number[n] for n in present]), present
    names = sorted(found.name for found in images)
    if names != sorted(names, key=natural_sort_key):
        raise ValueError(
            f"{place}: the numbers of the images are ambiguous, because CVAT sorts names as text, "
            f"for example {names[:3]}. Export as 'CVAT for images', which names each image."
        )
    if numbers is not None and len(numbers) != len(images):
        raise ValueError(f"{place}: has {len(numbers)} frames, but there are {len(images)} images.")
    files = sorted(images, key=lambda found: found.name)
    return FrameFiles(files), numbers or range(len(files))
