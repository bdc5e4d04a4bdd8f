"""Draws scenes: every shape is an outline in the unit square, filled with antialiased edges. Pure.

The detector compares against the same `coverage`, so a drawn scene and its judge always agree.
"""

import functools
import io

import numpy as np
from PIL import Image, ImageDraw

from blip3o.data.sets.scenes_world import COLORS, GROUNDS, Scene

_SUPERSAMPLE = 8  # subpixels a side for the coverage of an edge pixel


def _regular(radii: list[float]) -> np.ndarray:
    """A closed outline around the centre with these radii at equal angles, the first one at the top."""
    angles = np.arange(len(radii)) * 2 * np.pi / len(radii)
    return np.stack([np.sin(angles), -np.cos(angles)], axis=1) * np.array(radii)[:, None]


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y], axis=1)


def _cross(arm: float) -> np.ndarray:
    """A Greek cross in [-1, 1]² with arms of half-width `arm`."""
    corner = [(-arm, -1), (arm, -1), (arm, -arm)]  # turned by a right angle three times
    turns = [(x, y) for quarter in range(4) for x, y in [_turn(point, quarter) for point in corner]]
    return np.array(turns, dtype=float)


def _turn(point: tuple[float, float], quarters: int) -> tuple[float, float]:
    x, y = point
    for _ in range(quarters):
        x, y = -y, x
    return x, y


def _fitted(outline: np.ndarray) -> np.ndarray:
    """The outline stretched to touch all four sides of the unit square."""
    low, high = outline.min(axis=0), outline.max(axis=0)
    return (outline - low) / (high - low)


OUTLINES = {
    "circle": _fitted(_regular([1.0] * 64)),
    "square": np.array([(0, 0), (1, 0), (1, 1), (0, 1)], dtype=float),
    "triangle": np.array([(0.5, 0), (1, 1), (0, 1)], dtype=float),
    "star": _fitted(_regular([1.0, 0.42] * 5)),
    "cross": _fitted(_cross(0.34)),
    "heart": _fitted(_heart()),
}


@functools.lru_cache(maxsize=4096)
def coverage(shape: str, width: int, height: int) -> np.ndarray:
    """How much of each pixel is filled by a shape that touches all sides of a box of `width` x `height` pixels.

    float32 [height, width] in 0 … 1, read only.
    """
    fine = Image.new("L", (width * _SUPERSAMPLE, height * _SUPERSAMPLE))
    # Pillow's pixel centres lie on whole numbers, so the outline's span is one subpixel less than the box.
    points = OUTLINES[shape] * (np.array(fine.size) - 1)
    ImageDraw.Draw(fine).polygon([(float(x), float(y)) for x, y in points], fill=255)
    filled = np.asarray(fine.reduce(_SUPERSAMPLE), dtype=np.float32) / 255
    filled.setflags(write=False)
    return filled


def render(scene: Scene) -> Image.Image:
    """The scene as an RGB image of `scene.size` pixels square."""
    pixels = np.empty((scene.size, scene.size, 3), dtype=np.float32)
    pixels[:] = GROUNDS[scene.ground]
    for item in scene.objects:
        x0, y0, x1, y1 = item.box
        alpha = coverage(item.shape, x1 - x0, y1 - y0)[..., None]
        pixels[y0:y1, x0:x1] += alpha * (np.array(COLORS[item.color], dtype=np.float32) - pixels[y0:y1, x0:x1])
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def png(scene: Scene) -> bytes:
    """The scene as an encoded PNG."""
    buffer = io.BytesIO()
    render(scene).save(buffer, "PNG")
    return buffer.getvalue()
