"""Drawn scenes of coloured shapes, still and moving: the data of the ``shapes`` benchmark.

A category is a colour and a shape: "red circle". Novel categories are combinations that no training
image shows, while each of their colours and each of their shapes occurs in a base category.

Legend: T frames, N objects, H W pixels.
"""

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

# Hue in degrees.
COLOURS = {"red": 0, "orange": 28, "yellow": 55, "green": 120, "blue": 220, "purple": 285}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
# Category i has the id i + 1 in the annotations.
CATEGORY_NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
NOVEL_NAMES = frozenset(
    [
        "red circle",
        "red star",
        "orange square",
        "orange ring",
        "yellow triangle",
        "yellow cross",
        "green star",
        "blue ring",
        "purple cross",
    ]
)
BASE_INDICES = tuple(i for i, name in enumerate(CATEGORY_NAMES) if name not in NOVEL_NAMES)

# At least this part of the area of each object has to be visible.
MIN_VISIBLE = 0.4
_HUE_JITTER = 6  # degrees
_SUPERSAMPLING = 4  # samples per pixel in each direction
_PLACEMENT_ATTEMPTS = 20
# Largest motion from one frame to the next: pixels, radians, logarithm of the size.
_MAX_SPEED = 12.0
_MAX_TURN = 0.2
_MAX_GROWTH = 0.04


@dataclass
class ShapeObject:
    """One object of a scene, in pixels of the image.

    Attributes:
        category: index into ``CATEGORY_NAMES``.
        centre: (x, y).
        radius: about half of the object's extent.
        angle: rotation in radians.
        rgb: colour, three values in 0..255.
    """

    category: int
    centre: tuple[float, float]
    radius: float
    angle: float
    rgb: tuple[float, float, float]


@dataclass
class Scene:
    """An image with its ground truth.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        categories: N indices into ``CATEGORY_NAMES``, from back to front.
        masks: bool (N, H, W), the visible pixels of each object; no two overlap.
    """

    image: np.ndarray
    categories: list[int]
    masks: np.ndarray


@dataclass
class MovingScene:
    """The frames of a video with their ground truth.

    Attributes:
        images: T of uint8 (H, W, 3), RGB.
        categories: N indices into ``CATEGORY_NAMES``, from back to front.
        masks: bool (N, T, H, W), the visible pixels of each object; no two overlap.
    """

    images: list[np.ndarray]
    categories: list[int]
    masks: np.ndarray


def draw_scene(
    rng: np.random.Generator,
    categories: Sequence[int],
    size: int,
    radius_range: tuple[float, float] = (12.0, 32.0),
) -> Scene:
    """Draw a scene with one object of each given category, which may repeat.

    Objects of one colour do not overlap: nobody could tell them apart. An object is skipped if no
    place is found where the objects behind it stay visible.

    Args:
        rng: source of all randomness.
        categories: indices into ``CATEGORY_NAMES``, from back to front.
        size: side of the square image in pixels.
        radius_range: smallest and largest radius in pixels.
    """
    canvas = draw_background(rng, size)
    placed, masks = _place(
        categories, lambda category: [random_object(rng, category, size, radius_range)], size
    )
    image = _draw_frame(rng, canvas, [poses[0] for poses in placed])
    return Scene(image, [poses[0].category for poses in placed], masks[:, 0])


def draw_moving_scene(
    rng: np.random.Generator,
    categories: Sequence[int],
    num_frames: int,
    size: int,
    radius_range: tuple[float, float] = (12.0, 32.0),
    *,
    background: np.ndarray | None = None,
    move: Callable[..., list[ShapeObject]] | None = None,
) -> MovingScene:
    """Draw a scene whose objects move, turn and change their size.

    Each object is wholly inside the image in at least one frame. It may leave, enter and be hidden
    in some frames, if enough of it is visible over all frames. Objects of one colour never overlap.

    Args:
        rng: source of all randomness.
        categories: indices into ``CATEGORY_NAMES``, from back to front.
        num_frames: T.
        size: side of the square frames in pixels.
        radius_range: smallest and largest radius in pixels, where the object is inside.
        background: float32 (size, size, 3), 0..255; by default :func:`draw_background`.
        move: (rng, object, T) -> its T poses; by default :func:`random_motion`.
    """
    background = draw_background(rng, size) if background is None else background
    move = move or random_motion
    placed, masks = _place(
        categories,
        lambda category: move(rng, random_object(rng, category, size, radius_range), num_frames),
        size,
    )
    images = [
        _draw_frame(rng, background.copy(), [poses[t] for poses in placed])
        for t in range(num_frames)
    ]
    return MovingScene(images, [poses[0].category for poses in placed], masks)


def _place(
    categories: Sequence[int], propose: Callable[[int], list[ShapeObject]], size: int
) -> tuple[list[list[ShapeObject]], np.ndarray]:
    """Find a place for an object of each category, each in front of the ones before.

    Args:
        categories: from back to front.
        propose: category -> T random poses of an object.
        size: side of the image in pixels.

    Returns:
        The poses of the N objects for which a place was found, and their visible pixels, bool
        (N, T, size, size).
    """
    placed: list[list[ShapeObject]] = []
    masks = np.zeros((0, 1, size, size), bool)
    full_areas = np.zeros(0)
    for category in categories:
        for _ in range(_PLACEMENT_ATTEMPTS):
            poses = propose(category)
            # The new object is in front of all placed ones and hides parts of them.
            covered = np.stack([object_alpha(pose, size) >= 0.5 for pose in poses])
            visible = masks & ~covered
            hidden = (masks & covered).any((1, 2, 3))
            same_colour = [_colour(other[0].category) == _colour(category) for other in placed]
            enough = visible.sum((1, 2, 3)) >= MIN_VISIBLE * full_areas
            if np.all(enough & ~(hidden & np.asarray(same_colour, bool))):
                masks = np.concatenate([visible, covered[None]])
                full_areas = np.append(full_areas, covered.sum())
                placed.append(poses)
                break
    return placed, masks


def _draw_frame(
    rng: np.random.Generator, canvas: np.ndarray, objects: Sequence[ShapeObject]
) -> np.ndarray:
    """Paint objects from back to front; return uint8 (H, W, 3). The canvas is overwritten."""
    for item in objects:
        paint(canvas, object_alpha(item, len(canvas)), item.rgb)
    return finish(rng, canvas)


def random_motion(
    rng: np.random.Generator, item: ShapeObject, num_frames: int
) -> list[ShapeObject]:
    """Move an object evenly; a random one of its T poses is the given one."""
    speed, direction = rng.uniform(0, _MAX_SPEED), rng.uniform(0, 2 * np.pi)
    velocity = speed * np.array([np.cos(direction), np.sin(direction)])
    turn, growth = rng.uniform(-_MAX_TURN, _MAX_TURN), rng.uniform(-_MAX_GROWTH, _MAX_GROWTH)
    moments = np.arange(num_frames) - rng.integers(num_frames)
    return [
        replace(
            item,
            centre=tuple(item.centre + moment * velocity),
            radius=item.radius * np.exp(moment * growth),
            angle=item.angle + moment * turn,
        )
        for moment in moments
    ]


def draw_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a background of soft texture and little colour: float32 (size, size, 3), 0..255."""
    tint = rng.uniform(70, 190) + rng.uniform(-14, 14, 3)
    canvas = np.broadcast_to(tint.astype(np.float32), (size, size, 3)).copy()
    # Coarse and fine blotches of brightness.
    for cells, contrast in ((4, 22), (size // 8, 12)):
        noise = rng.normal(0, contrast, (cells, cells)).astype(np.float32)
        canvas += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)[..., None]
    return canvas


def random_object(
    rng: np.random.Generator, category: int, size: int, radius_range: tuple[float, float]
) -> ShapeObject:
    """Return an object of random size, place, rotation and shade, wholly inside the image."""
    hue = (COLOURS[_colour(category)] + rng.uniform(-_HUE_JITTER, _HUE_JITTER)) % 360 / 360
    rgb = colorsys.hsv_to_rgb(hue, rng.uniform(0.75, 1.0), rng.uniform(0.7, 1.0))
    radius = rng.uniform(*radius_range)
    x, y = rng.uniform(radius, size - radius, 2)
    angle = rng.uniform(0, 2 * np.pi)
    return ShapeObject(category, (x, y), radius, angle, tuple(255 * c for c in rgb))


def object_alpha(item: ShapeObject, size: int) -> np.ndarray:
    """Return the part of each pixel that an object covers: float32 (size, size), 0..1.

    The object may be partly or wholly outside.
    """
    x, y = item.centre
    reach = int(np.ceil(1.2 * item.radius)) + 1
    left, top = int(x) - reach, int(y) - reach
    side = 2 * reach + 1
    # The object is drawn on a patch around it, at a higher resolution, and then copied.
    cos, sin = np.cos(item.angle), np.sin(item.angle)
    rotation = item.radius * np.array([[cos, sin], [-sin, cos]])
    # fillPoly takes pixel centres in 1/16 pixel; a point p in pixels is at p * scale - 0.5 there.
    offset = np.array([x - left, y - top])
    rings = [
        np.round(((ring @ rotation + offset) * _SUPERSAMPLING - 0.5) * 16).astype(np.int32)
        for ring in _outline(SHAPES[item.category % len(SHAPES)])
    ]
    fine = np.zeros((side * _SUPERSAMPLING,) * 2, np.uint8)
    cv2.fillPoly(fine, rings, 255, shift=4)
    patch = cv2.resize(fine, (side, side), interpolation=cv2.INTER_AREA)
    alpha = np.zeros((size, size), np.float32)
    rows = slice(*np.clip((top, top + side), 0, size))
    columns = slice(*np.clip((left, left + side), 0, size))
    inner = patch[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    alpha[rows, columns] = inner / np.float32(255)
    return alpha


def paint(canvas: np.ndarray, alpha: np.ndarray, rgb: Sequence[float]) -> None:
    """Blend a colour into ``canvas`` (H, W, 3), in place, by ``alpha`` (H, W)."""
    canvas += alpha[..., None] * (np.asarray(rgb, np.float32) - canvas)


def finish(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Add the grain of a camera and return the image: uint8 (H, W, 3)."""
    grain = rng.standard_normal(canvas.shape[:2], np.float32)[..., None]
    return np.clip(canvas + 5 * grain, 0, 255).astype(np.uint8)


def _colour(category: int) -> str:
    return CATEGORY_NAMES[category].split()[0]


def _outline(shape: str) -> list[np.ndarray]:
    """Return the closed polygons of a shape, (points, 2) around the origin, radius about 1."""
    if shape == "circle":
        return [_regular(36, 0.88)]
    if shape == "ring":
        return [_regular(36, 0.95), _regular(36, 0.52)]
    if shape == "square":
        return [_regular(4, 1.05)]
    if shape == "triangle":
        return [_regular(3, 1.1)]
    if shape == "star":
        star = _regular(10, 1.1)
        star[1::2] *= 0.42
        return [star]
    # cross: three corners of one arm, turned by a quarter three times.
    corners = np.array([[1.0, -0.32], [1.0, 0.32], [0.32, 0.32]])
    quarter = np.array([[0.0, 1.0], [-1.0, 0.0]])
    turns = [np.linalg.matrix_power(quarter, n) for n in range(4)]
    return [np.concatenate([corners @ turn for turn in turns])]


def _regular(corners: int, radius: float) -> np.ndarray:
    angles = np.arange(corners) * 2 * np.pi / corners
    return radius * np.stack([np.cos(angles), np.sin(angles)], 1)
