"""Masks of all queries of a video, stored until the video ends: only then the best are chosen.

A float32 mask of 1/4 of the image's resolution for each of 100 queries is 5.8 MB per frame of
360 x 640 pixels, too much for a long video. A temporary file therefore stores

* which logits are positive, one bit each;
* the logits, in float32, near the boundary of the mask: where a logit of the other sign is at most
  two places away in both directions.

This is enough to get the mask at another resolution exactly. Resizing a mask to the padded and
then to the original image (:func:`ovformer.ops.mask_resize.restore_masks`) is bilinear twice, and
makes a pixel from at most 3 x 3 neighbouring logits with weights that are not negative. Where the
logits have the same sign, the pixel has it, too; where they do not, all of them are stored.

Legend: Q queries, N masks, T frames, h w resolution of the mask features, H W pixels.
"""

import logging
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ovformer.ops.mask_resize import restore_masks
from ovformer.ops.mask_rle import encode_masks

logger = logging.getLogger(__name__)

_LARGE_FILE = 1 << 30  # bytes; the log mentions a file that gets larger
_PIXELS_AT_ONCE = 1 << 22  # pixels of all masks that are resized together


class SpillFile:
    """Arrays in a temporary file, deleted with this object or when it is closed.

    The file is in ``$TMPDIR``, or else where the system keeps temporary files.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="ovformer_")
        self.size = 0

    def write(self, array: np.ndarray) -> int:
        """Append an array.

        Returns:
            Its offset, in bytes from the beginning of the file.

        Raises:
            OSError: there is no space left.
        """
        offset = self.size
        try:
            self._file.seek(offset)
            self._file.write(np.ascontiguousarray(array).data)
            self._file.flush()  # a full disk is an error now, not at some later call
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}: {tempfile.gettempdir()} holds {offset / 1e6:.0f} MB of the "
                "current video's masks and needs more. Set TMPDIR to a folder with more space",
            ) from error
        self.size += array.nbytes
        if offset < _LARGE_FILE <= self.size:
            logger.info(
                "A long video: over 1 GiB of its masks is kept in %s", tempfile.gettempdir()
            )
        return offset

    def read(self, offset: int, count: int, dtype: type) -> np.ndarray:
        """Return ``count`` numbers of a type from an offset of :meth:`write`."""
        array = np.empty(count, dtype)
        self._file.seek(offset)
        self._file.readinto(array.data)
        return array

    def close(self) -> None:
        """Delete the file."""
        self._file.close()

    def __del__(self) -> None:
        self.close()


class MaskSizes(NamedTuple):
    """Heights and widths in pixels, in the order in which masks go through them.

    Attributes:
        padded: the network input with its padding.
        image: without the padding, which is at the bottom and on the right.
        output: the original frames.
    """

    padded: tuple[int, int]
    image: tuple[int, int]
    output: tuple[int, int]


class MaskStore:
    """Mask logits of each frame, with what is needed for exact masks at another resolution.

    Args:
        file: stores them.
    """

    def __init__(self, file: SpillFile) -> None:
        self._file = file
        self._offsets: list[int] = []
        self._shape = (0, 0, 0)

    def extend(self, logits: Tensor) -> None:
        """Store the masks of the next frames. They are copied from an accelerator together.

        Args:
            logits: (T, Q, h, w); only T may differ between calls.
        """
        self._shape = tuple(logits.shape[1:])
        inside = logits > 0
        # All of it on the accelerator: only what is stored is copied to the host.
        near = _near_boundary(inside.flatten(0, 1)).view_as(inside)
        counts = near.flatten(2).sum(2).cpu().numpy()
        bits = np.packbits(inside.flatten(2).cpu().numpy(), axis=2)
        values = logits[near].float().cpu().numpy()
        first_values = np.cumsum(counts.sum(1))[:-1]
        for ends, frame_bits, frame_values in zip(
            counts.cumsum(1), bits, np.split(values, first_values), strict=True
        ):
            # The end of each query's values comes first, so that one query can be read alone.
            self._offsets.append(self._file.write(ends))
            self._file.write(frame_bits)
            self._file.write(frame_values)

    def read(self, items: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
        """Return masks.

        Args:
            items: frame and query of each of N masks.
            device: of the result.

        Returns:
            (N, h, w) float32: the logits near boundaries, elsewhere 1 or -1 by their sign.
        """
        num_queries, height, width = self._shape
        # A frame in the file: Q int64 ends of values, Q rows of bits, then the float32 values.
        row = -(-height * width // 8)  # bytes of one query's bits, rounded up
        bits, values = [], []
        for frame, query in items:
            ends_at = self._offsets[frame]
            ends = self._file.read(ends_at, num_queries, np.int64)
            begin = ends[query - 1] if query else 0
            bits_at = ends_at + ends.nbytes
            values_at = bits_at + num_queries * row + 4 * begin
            bits.append(self._file.read(bits_at + query * row, row, np.uint8))
            values.append(self._file.read(values_at, ends[query] - begin, np.float32))
        # One copy to the device for all masks, of bits that become numbers there.
        inside = np.unpackbits(np.stack(bits), axis=1, count=height * width)
        inside = torch.from_numpy(inside.view(bool)).to(device).unflatten(1, (height, width))
        # The signs say where the boundary is, so the file need not say where its values belong.
        logits = inside.float() * 2 - 1
        logits[_near_boundary(inside)] = torch.from_numpy(np.concatenate(values)).to(device)
        return logits


def encode_tubes(
    store: MaskStore,
    queries: Sequence[int],
    visible: np.ndarray,
    sizes: MaskSizes,
    device: torch.device,
) -> list[list[dict]]:
    """Return the RLEs of the masks of some queries, at the original resolution.

    Args:
        store: the masks.
        queries: the query of each of N predictions. Several predictions may share one.
        visible: bool (N, T), false where a prediction's mask is left empty.
        sizes: of the frames.
        device: where masks are resized.

    Returns:
        For each prediction T COCO RLEs. Equal masks may be the same object.
    """
    empty = encode_masks(torch.zeros(1, *sizes.output, dtype=torch.bool))[0]
    # Predictions of several classes share a query: each mask is encoded once.
    items = sorted({(int(t), queries[n]) for n, t in np.argwhere(visible)})
    pixels = max(height * width for height, width in (sizes.padded, sizes.output))
    step = max(1, _PIXELS_AT_ONCE // pixels)
    codes = {}
    for start in range(0, len(items), step):
        chunk = items[start : start + step]
        logits = restore_masks(store.read(chunk, device), *sizes)
        codes.update(zip(chunk, encode_masks(logits > 0), strict=True))
    return [
        [codes[t, query] if is_visible else empty for t, is_visible in enumerate(row)]
        for query, row in zip(queries, visible.tolist(), strict=True)
    ]


def _near_boundary(inside: Tensor) -> Tensor:
    """Return where the 5 x 5 neighbourhood is partly inside: bool (N, h, w) -> bool (N, h, w)."""
    return _grow(inside) & _grow(~inside)


def _grow(masks: Tensor) -> Tensor:
    """Grow masks (N, h, w) by two pixels in both directions. Faster than pooling."""
    # One pixel at a time, twice along each side.
    for dim in (1, 1, 2, 2):
        length = masks.shape[dim] - 1
        grown = masks.clone()
        grown.narrow(dim, 1, length).bitwise_or_(masks.narrow(dim, 0, length))
        grown.narrow(dim, 0, length).bitwise_or_(masks.narrow(dim, 1, length))
        masks = grown
    return masks
