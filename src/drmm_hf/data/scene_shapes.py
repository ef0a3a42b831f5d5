"""The object classes of the generated scenes: outlines, masks and surface textures."""

from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageDraw

SUPERSAMPLING = 2
"""Masks are drawn at this multiple of the pixel grid: anti-aliased edges, boxes known to half a pixel."""

CATEGORIES: dict[str, int] = {
    "disc": 1,
    "ring": 3,
    "rectangle": 4,
    "rhombus": 7,
    "triangle": 9,
    "star": 12,
    "cross": 18,
}
"""Class names and COCO category ids. The ids have gaps, as COCO's own, so that id and label cannot be
confused."""

FREQUENCIES = (0.22, 0.12, 0.20, 0.12, 0.14, 0.08, 0.12)
"""Share of each class: unequal, as in real data. Disc and ring, rectangle and rhombus look alike."""


@dataclass(frozen=True)
class Patch:
    """One shape drawn on a small canvas.

    `alpha` (h, w) float32 in 0..1 is the coverage of each pixel, `fine` (h·s, w·s) bool the shape on the grid
    that is s = SUPERSAMPLING times finer. Their left top corner lies at pixel `(left, top)` of the image,
    which may be negative.
    """

    alpha: np.ndarray
    fine: np.ndarray
    left: int
    top: int

    def box(self, part: tuple[slice, slice]) -> tuple[float, float, float, float]:
        """Tight `(x1, y1, x2, y2)` in image pixels of what lies in some rows and columns of `alpha`."""
        top, left = part[0].start, part[1].start
        rows, columns = (slice(p.start * SUPERSAMPLING, p.stop * SUPERSAMPLING) for p in part)
        fine = self.fine[rows, columns]
        down, across = np.flatnonzero(fine.any(axis=1)), np.flatnonzero(fine.any(axis=0))
        return (
            float(self.left + left + across[0] / SUPERSAMPLING),
            float(self.top + top + down[0] / SUPERSAMPLING),
            float(self.left + left + (across[-1] + 1) / SUPERSAMPLING),
            float(self.top + top + (down[-1] + 1) / SUPERSAMPLING),
        )


def outline(name: str, rng: np.random.Generator) -> list[np.ndarray]:
    """Random polygons (P, 2) of a class around the origin, not scaled: the first is filled, later ones are
    holes."""
    angle = rng.uniform(0, 2 * np.pi)
    if name in ("disc", "ring"):
        ellipse = _regular(48) * (1.0, rng.uniform(0.65, 1.0))
        rings = [ellipse]
        if name == "ring":
            # From pin hole (hard to tell from a disc) to thin ring.
            rings.append(ellipse * rng.uniform(0.15, 0.6))
        return [_rotate(ring, angle) for ring in rings]
    if name == "rectangle":
        points = _regular(4, phase=np.pi / 4) * (1.0, rng.uniform(0.6, 1.0))
    elif name == "rhombus":
        points = _regular(4) * (1.0, rng.uniform(0.45, 0.75))
    elif name == "triangle":
        points = np.array([(-1.0, -0.7), (1.0, -0.7), (rng.uniform(-0.5, 0.5), rng.uniform(0.5, 1.0))])
    elif name == "star":
        points = _regular(10)
        points[1::2] *= rng.uniform(0.38, 0.55)
        points *= (1.0, rng.uniform(0.75, 1.0))
    elif name == "cross":
        a = rng.uniform(0.22, 0.4)
        corner = np.array([(a, a), (a, 1.0), (-a, 1.0)])
        points = np.concatenate([_rotate(corner, quarter * np.pi / 2) for quarter in range(4)])
        points = points * (1.0, rng.uniform(0.75, 1.0))
    else:
        raise ValueError(f"{name!r} is no class of the generated scenes; the classes are {list(CATEGORIES)}")
    return [_rotate(points, angle)]


def rasterize(polygons: list[np.ndarray], size: float, center: tuple[float, float]) -> Patch:
    """Draw polygons so that their longer side is `size` pixels and their middle is at `center` (x, y)."""
    low, high = polygons[0].min(axis=0), polygons[0].max(axis=0)
    scale = size / (high - low).max()
    middle = (low + high) / 2
    left, top = (np.floor(np.array(center) - size / 2) - 1).astype(int).tolist()
    side = int(np.ceil(size)) + 4
    canvas = PIL.Image.new("L", (side * SUPERSAMPLING, side * SUPERSAMPLING))
    draw = PIL.ImageDraw.Draw(canvas)
    for index, polygon in enumerate(polygons):
        points = ((polygon - middle) * scale + center - (left, top)) * SUPERSAMPLING
        draw.polygon([tuple(point) for point in points.tolist()], fill=0 if index else 255)
    alpha = np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32) / 255
    return Patch(alpha, np.asarray(canvas) > 0, left, top)


def texture(height: int, width: int, color: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A surface (height, width, 3) float32 in 0..255 made of two colors (3,)."""
    kind = rng.choice(["plain", "gradient", "stripes", "checks", "speckle"], p=[0.3, 0.2, 0.2, 0.1, 0.2])
    angle = rng.uniform(0, 2 * np.pi)
    # The distance of every pixel along a random direction.
    along = np.add.outer(np.arange(height) * np.sin(angle), np.arange(width) * np.cos(angle)).astype(np.float32)
    if kind == "plain":
        mix = np.zeros((height, width), dtype=np.float32)
    elif kind == "gradient":
        mix = (along - along.min()) / (np.ptp(along) + 1e-6)
    elif kind == "stripes":
        mix = (np.sin(along * 2 * np.pi / rng.uniform(5, 16)) > rng.uniform(-0.5, 0.5)).astype(np.float32)
    elif kind == "checks":
        period = int(rng.integers(3, 9))
        mix = (np.add.outer(np.arange(height) // period, np.arange(width) // period) % 2).astype(np.float32)
    else:
        mix = rng.random((height, width), dtype=np.float32) * 0.8
    return color + mix[..., None] * (second - color)


def _regular(corners: int, phase: float = 0.0) -> np.ndarray:
    angles = phase + np.arange(corners) * (2 * np.pi / corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _rotate(points: np.ndarray, angle: float) -> np.ndarray:
    cosine, sine = np.cos(angle), np.sin(angle)
    return points @ np.array([(cosine, sine), (-sine, cosine)])
