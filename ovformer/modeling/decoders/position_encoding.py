"""Positions of the pixels of feature maps, as sine encodings and as reference points.

Both depend on sizes only. The latest few are cached, so that they are made once per shape and not
once per image; the cache does not grow.

Legend: T frames of a clip, C channels, H W pixels, S tokens (pixels, row by row).
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps

import torch
from torch import Tensor

# An image needs three levels, with encodings of one or two widths.
_CACHE_SIZE = 8


def _cache_latest(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Cache the latest results, except those of a traced graph: its tensors are invalid outside."""
    cached = lru_cache(maxsize=_CACHE_SIZE)(function)

    @wraps(function)
    def wrapper(*arguments: object) -> Tensor:
        if torch.compiler.is_compiling():
            return function(*arguments)
        return cached(*arguments)

    wrapper.cache_info = cached.cache_info
    return wrapper


def _to_integers(*sizes: int) -> tuple[int, ...]:
    """Return sizes as integers, which can be cache keys; a traced graph keeps its symbols."""
    return sizes if torch.compiler.is_compiling() else tuple(map(int, sizes))


def sine_position_encoding(
    height: int,
    width: int,
    channels: int,
    device: torch.device,
    temperature: float = 10000.0,
) -> Tensor:
    """Return a sine position encoding in two dimensions.

    Source: "Attention is all you need", https://arxiv.org/abs/1706.03762, section 3.5, in the form
    of DETR, https://arxiv.org/abs/2005.12872. The first half of the channels encodes the row, the
    second half the column; both run from 0 to 2 pi over the image.

    Args:
        height: H.
        width: W.
        channels: C, a multiple of 4.
        device: where the encoding is wanted.
        temperature: ratio of the longest to the shortest wave length, over 2 pi.

    Returns:
        (H * W, C) float32. Shared between calls: not to be changed.

    Raises:
        ValueError: C is not a multiple of 4.
    """
    if channels % 4:
        raise ValueError(
            "MODEL.SEM_SEG_HEAD.CONVS_DIM and MODEL.MASK_FORMER.HIDDEN_DIM have to be multiples "
            f"of 4 for sine positions, got {channels}"
        )
    return _sine_position_encoding(*_to_integers(height, width), channels, device, temperature)


@_cache_latest
def _sine_position_encoding(
    height: int, width: int, channels: int, device: torch.device, temperature: float
) -> Tensor:
    # A tensor made in inference mode could not be used in a later training step.
    with torch.inference_mode(False), torch.no_grad():
        rows, columns = (
            _encode(length, channels // 2, device, temperature) for length in (height, width)
        )
        # Rows come first, as in DETR: published weights expect this order.
        rows, columns = rows[:, None].expand(-1, width, -1), columns.expand(height, -1, -1)
        return torch.cat((rows, columns), dim=2).flatten(0, 1)


def clip_position_encoding(
    num_frames: int,
    height: int,
    width: int,
    channels: int,
    device: torch.device,
    temperature: float = 10000.0,
) -> Tensor:
    """Return the sine encoding in three dimensions, of the tokens of all frames of a clip.

    It is the sum of the encoding of the pixel in its frame and that of the frame. The latter takes
    all channels, and runs from 0 to 2 pi over the clip. Source: VisTR,
    https://arxiv.org/abs/2011.14503, which concatenates the two.

    Args:
        num_frames: T.
        height: H.
        width: W.
        channels: C, a multiple of 4.
        device: where the encoding is wanted.
        temperature: ratio of the longest to the shortest wave length, over 2 pi.

    Returns:
        (T * H * W, C) float32, frame by frame. Shared between calls: not to be changed.

    Raises:
        ValueError: C is not a multiple of 4.
    """
    sizes = _to_integers(num_frames, height, width)
    return _clip_position_encoding(*sizes, channels, device, temperature)


@_cache_latest
def _clip_position_encoding(
    num_frames: int,
    height: int,
    width: int,
    channels: int,
    device: torch.device,
    temperature: float,
) -> Tensor:
    pixels = sine_position_encoding(height, width, channels, device, temperature)
    with torch.inference_mode(False), torch.no_grad():
        # The encoding of the frame takes all channels: the two are added, not concatenated.
        frames = _encode(num_frames, channels, device, temperature)
        return (pixels + frames[:, None]).flatten(0, 1)


def _encode(length: int, channels: int, device: torch.device, temperature: float) -> Tensor:
    """Return the sine encoding of 1 to ``length``: (length, C)."""
    index = torch.arange(channels, dtype=torch.float32, device=device)
    period = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / channels)
    # From 1, with a small term in the divisor: as in DETR, which counts pixels with cumsum.
    position = torch.arange(1, length + 1, dtype=torch.float32, device=device)
    angle = (position / (length + 1e-6) * (2 * math.pi))[:, None] / period
    return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)


def reference_points(shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Return the centre of each pixel of several feature maps.

    Args:
        shapes: height and width of each map, in pixels.
        device: where the points are wanted.

    Returns:
        (S, 2) float32: x and y of the pixels of all maps, 0 to 1 from edge to edge of their map.
        Shared between calls: not to be changed.
    """
    return _reference_points(tuple(_to_integers(*shape) for shape in shapes), device)


@_cache_latest
def _reference_points(shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        points = []
        for height, width in shapes:
            y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
            x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
            grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
            points.append(torch.stack((grid_x.flatten(), grid_y.flatten()), dim=1))
        return torch.cat(points)
