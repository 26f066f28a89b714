"""Lists and checks the image files of a data set of images or of videos."""

import logging
import os
import re
import struct
from collections.abc import Iterable, Iterator

from PIL import Image

from ovformer.d2 import CfgNode
from ovformer.data.files.image_embeddings import make_image_key

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# The errors that Pillow raises for a file that is not an image, is broken, or is far too large.
IMAGE_ERRORS = (
    Image.DecompressionBombError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)

logger = logging.getLogger(__name__)


def natural_sort_key(name: str) -> list:
    """Return a key that sorts numbers in names by their value: frame2 before frame10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def iterate_images(records: Iterable[dict]) -> Iterator[dict]:
    """Yield the images of a data set, and the frames of its videos.

    Args:
        records: dataset dicts.

    Yields:
        The dict of an image; of a frame "file_name", "clip_key", "video_id" and its number "frame".
    """
    for record in records:
        if "file_names" not in record:
            yield record
            continue
        keys = record.get("clip_keys") or map(make_image_key, record["file_names"])
        for t, (file_name, key) in enumerate(zip(record["file_names"], keys, strict=True)):
            yield {
                "file_name": file_name,
                "clip_key": key,
                "video_id": record["video_id"],
                "frame": t,
            }


def read_missing_limit(cfg: CfgNode) -> float:
    """Return the share of a data set's images that ``DATALOADER`` allows to be missing."""
    return cfg.DATALOADER.MAX_BROKEN if cfg.DATALOADER.SKIP_BROKEN else 0.0


def check_images_exist(name: str, records: Iterable[dict], max_missing: float = 0.0) -> None:
    """Check that all images or frames of a data set exist, by listing each folder once.

    Args:
        name: the data set, for the error message.
        records: its dataset dicts; URLs are not checked.
        max_missing: the share of missing images up to which a warning replaces the error.

    Raises:
        FileNotFoundError: images are missing.
    """
    folders: dict[str, set[str]] = {}
    missing = []
    count = 0
    for entry in iterate_images(records):
        count += 1
        folder, file_name = os.path.split(entry["file_name"])
        if "://" in folder:
            continue
        # One listing per folder is much faster than a check of each file.
        if folder not in folders:
            folders[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if file_name not in folders[folder]:
            missing.append(entry)
    if missing:
        first = missing[0]["file_name"]
        if "frame" in missing[0]:
            first += " (frame {frame} of video {video_id})".format(**missing[0])
        message = f"{name}: {len(missing)} of {count} images not found, the first is {first}. "
        if len(missing) > max_missing * count:
            raise FileNotFoundError(
                f"{message}datasets/README.md says how the folders are laid out."
            )
        logger.warning("%sThey are skipped: DATALOADER.SKIP_BROKEN.", message)
