"""One generated scene: background, clutter, objects that cover each other, light and noise."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFilter

CATEGORIES: dict[str, int] = {
    "disc": 1,
    "ring": 3,
    "rectangle": 4,
    "rhombus": 7,
    "triangle": 9,
    "star": 12,
    "cross": 18,
}
"""Class names and COCO category ids. The ids have gaps, as COCO's own, so that id and label cannot be confused."""
FREQUENCIES = (0.22, 0.12, 0.20, 0.12, 0.14, 0.08, 0.12)
"""Share of each class: unequal, as in real data. Disc and ring, rectangle and rhombus look alike."""
MAX_OBJECTS = 12
BOXLESS_SHARE = 0.08
MIN_VISIBLE = 0.25
"""An object of whose pixels inside the image fewer than this share would stay visible is left out altogether."""
SUPERSAMPLING = 2
"""Masks are drawn at this multiple of the pixel grid: anti-aliased edges, boxes known to half a pixel."""

Point = tuple[float, float]


class SceneObject(NamedTuple):
    """An object that was drawn.

    `box` is the tight `(x1, y1, x2, y2)` in pixels of the object's shape inside the image, covered parts included
    (amodal), to half a pixel. `visible` is the share of this shape's pixels that nearer objects do not touch, `area`
    the size of the shape in px².
    """

    name: str
    box: tuple[float, ...]
    visible: float
    area: float


class Scene(NamedTuple):
    """`image` (H, W, 3) uint8 and its objects, farthest first (later ones cover earlier ones)."""

    image: np.ndarray
    objects: list[SceneObject]


class Shape(NamedTuple):
    """What is drawn of a shape: `alpha` (h, w) float32 in 0..1, the coverage of the image's pixels in these rows and
    columns, and the tight `box` as in `SceneObject`.
    """

    place: tuple[slice, slice]
    alpha: np.ndarray
    box: tuple[float, ...]


def render_scene(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    min_size: float,
    max_size: float,
    mean_objects: float,
    classes: Sequence[str] = tuple(CATEGORIES),
) -> Scene:
    """Draw one scene of objects of some `classes`.

    About 8% of the scenes have no object, the others 1 to 12, drawn from a geometric law of mean `mean_objects` that is
    cut at 12. Sizes (longer side of the box, pixels) are log-uniform in `min_size`..`max_size`. Objects of one class
    sometimes come in groups that overlap.
    """
    kept = _drop_covered(_place_objects(rng, height, width, min_size, max_size, mean_objects, classes), height, width)
    canvas = _clutter(_background(rng, height, width), rng, int(rng.integers(1, 7)))
    for _, shape in kept:
        _paint(canvas, shape, rng)
        if rng.random() < 0.06:
            canvas = _thin_line(canvas, rng)
    return Scene(_light_and_noise(canvas, rng), [item for item, _ in kept])


def outline(name: str, rng: np.random.Generator) -> list[np.ndarray]:
    """Random polygons (P, 2) of a class around the origin, not scaled: the first is filled, later ones are holes."""
    angle = rng.uniform(0, 2 * np.pi)
    holes = []
    if name in ("disc", "ring"):
        points = _regular(48) * (1.0, rng.uniform(0.65, 1.0))
        if name == "ring":  # from pin hole (hard to tell from a disc) to thin ring
            holes.append(points * rng.uniform(0.15, 0.6))
    elif name == "rectangle":
        points = _regular(4, phase=np.pi / 4) * (1.0, rng.uniform(0.6, 1.0))
    elif name == "rhombus":
        points = _regular(4) * (1.0, rng.uniform(0.45, 0.75))
    elif name == "triangle":
        points = np.array([(-1.0, -0.7), (1.0, -0.7), (rng.uniform(-0.5, 0.5), rng.uniform(0.5, 1.0))])
    elif name == "star":
        points = _regular(10)
        points[1::2] *= rng.uniform(0.38, 0.55)
        points *= (1.0, rng.uniform(0.75, 1.0))
    else:  # a cross
        a = rng.uniform(0.22, 0.4)
        corner = np.array([(a, a), (a, 1.0), (-a, 1.0)])
        points = np.concatenate([_rotate(corner, quarter * np.pi / 2) for quarter in range(4)])
        points = points * (1.0, rng.uniform(0.75, 1.0))
    return [_rotate(polygon, angle) for polygon in (points, *holes)]


def rasterize(polygons: list[np.ndarray], size: float, center: Point, height: int, width: int) -> Shape:
    """Draw polygons so that their longer side is `size` pixels and their middle is at `center` (x, y)."""
    low, high = polygons[0].min(axis=0), polygons[0].max(axis=0)
    scale = size / (high - low).max()
    corner = (np.floor(np.array(center) - size / 2) - 1).astype(int)
    side = int(np.ceil(size)) + 4
    canvas = PIL.Image.new("L", (side * SUPERSAMPLING, side * SUPERSAMPLING))
    draw = PIL.ImageDraw.Draw(canvas)
    for index, polygon in enumerate(polygons):
        points = ((polygon - (low + high) / 2) * scale + center - corner) * SUPERSAMPLING
        draw.polygon(_tuples(points), fill=0 if index else 255)
    (left, top), (right, bottom) = np.maximum(corner, 0), np.minimum(corner + side, (width, height))
    x1, y1, x2, y2 = np.array([left, top, right, bottom]) - np.tile(corner, 2)
    alpha = (np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32) / 255)[y1:y2, x1:x2]
    inside = canvas.crop((SUPERSAMPLING * x1, SUPERSAMPLING * y1, SUPERSAMPLING * x2, SUPERSAMPLING * y2))
    box = np.array(inside.getbbox()) / SUPERSAMPLING + (left, top, left, top)
    return Shape((slice(top, bottom), slice(left, right)), alpha, tuple(box.tolist()))


def _place_objects(
    rng: np.random.Generator,
    height: int,
    width: int,
    min_size: float,
    max_size: float,
    mean_objects: float,
    classes: Sequence[str],
) -> list[tuple[str, Shape]]:
    """Class and shape of the wanted objects, farthest first."""
    if rng.random() < BOXLESS_SHARE:
        return []
    placed: list[tuple[str, Shape]] = []
    shares = np.array([share if kind in classes else 0.0 for kind, share in zip(CATEGORIES, FREQUENCIES, strict=True)])
    name, size, x, y = "", 0.0, 0.0, 0.0
    for index in range(min(MAX_OBJECTS, 1 + int(rng.exponential(mean_objects - 1)))):
        if index and rng.random() < 0.2:
            # A group: another one of the same class that touches or overlaps the last.
            size = float(np.clip(size * rng.uniform(0.7, 1.3), min_size, max_size))
            x, y = x + rng.uniform(-0.9, 0.9) * size, y + rng.uniform(-0.9, 0.9) * size
        else:
            name = list(CATEGORIES)[rng.choice(len(CATEGORIES), p=shares / shares.sum())]
            size = float(np.exp(rng.uniform(np.log(min_size), np.log(max_size))))
            x, y = rng.uniform(0, width), rng.uniform(0, height)
        # At most a fifth of the longer side sticks out of the image.
        margin = 0.3 * size
        x, y = float(np.clip(x, margin, width - margin)), float(np.clip(y, margin, height - margin))
        placed.append((name, rasterize(outline(name, rng), size, (x, y), height, width)))
    return placed


def _drop_covered(placed: list[tuple[str, Shape]], height: int, width: int) -> list[tuple[SceneObject, Shape]]:
    """Leave out objects that nearer ones would hide; an object left out hides nothing itself."""
    covered = np.zeros((height, width), dtype=bool)
    kept = []
    for name, shape in reversed(placed):
        touched = shape.alpha > 0
        visible = float((touched & ~covered[shape.place]).sum() / touched.sum())
        if visible >= MIN_VISIBLE:
            covered[shape.place] |= touched
            kept.append((SceneObject(name, shape.box, visible, float(shape.alpha.sum())), shape))
    return kept[::-1]


def _paint(canvas: np.ndarray, shape: Shape, rng: np.random.Generator) -> None:
    """Blend a textured shape into the canvas, in colors that differ from what is below it."""
    region, alpha = canvas[shape.place], shape.alpha[..., None]
    below = (region * alpha).sum(axis=(0, 1)) / max(float(alpha.sum()), 1.0)
    color, second = _color_unlike(below, rng, 70.0), _color_unlike(below, rng, 50.0)
    surface = color + _texture(region.shape[0], region.shape[1], rng)[..., None] * (second - color)
    canvas[shape.place] = region + alpha * (surface - region)


def _texture(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Share of the second of two colors (height, width) float32 in 0..1."""
    kind = rng.choice(["plain", "gradient", "stripes", "checks", "speckle"], p=[0.3, 0.2, 0.2, 0.1, 0.2])
    angle = rng.uniform(0, 2 * np.pi)
    # The distance of every pixel along a random direction.
    along = np.add.outer(np.arange(height) * np.sin(angle), np.arange(width) * np.cos(angle)).astype(np.float32)
    if kind == "plain":
        return np.zeros((height, width), dtype=np.float32)
    if kind == "gradient":
        return (along - along.min()) / (np.ptp(along) + 1e-6)
    if kind == "stripes":
        return (np.sin(along * 2 * np.pi / rng.uniform(5, 16)) > rng.uniform(-0.5, 0.5)).astype(np.float32)
    if kind == "checks":
        period = int(rng.integers(3, 9))
        return (np.add.outer(np.arange(height) // period, np.arange(width) // period) % 2).astype(np.float32)
    return rng.random((height, width), dtype=np.float32) * 0.8


def _color_unlike(other: np.ndarray, rng: np.random.Generator, distance: float) -> np.ndarray:
    """A random color (3,) that is `distance` (RGB, 0..255) from `other`, or the farthest of a few."""
    candidates = rng.uniform(10, 245, (6, 3))
    distances = np.linalg.norm(candidates - other, axis=1)
    far = distances >= distance
    return candidates[np.argmax(far if far.any() else distances)].astype(np.float32)


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth color field plus blotches (H, W, 3) float32."""
    field = _smooth_field(rng.uniform(0, 255, (2, 2, 3)) * 0.5 + rng.uniform(20, 110, 3), height, width)
    if rng.random() < 0.6:
        grain = int(rng.integers(8, 40))
        cells = rng.normal(0, rng.uniform(6, 26), (height // grain + 2, width // grain + 2, 1))
        field += _smooth_field(cells, height, width)
    return field


def _clutter(canvas: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    """Things that are no class: lines, soft blobs, strokes like writing, half shapes."""
    height, width = canvas.shape[:2]
    image = _as_picture(canvas)
    draw = PIL.ImageDraw.Draw(image)
    for kind in rng.choice(["line", "arc", "blob", "writing", "half"], count, p=[0.3, 0.15, 0.2, 0.2, 0.15]):
        color = tuple(rng.integers(0, 256, 3).tolist())
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        if kind == "line":
            end = (rng.uniform(0, width), rng.uniform(0, height))
            draw.line([(x, y), end], fill=color, width=int(rng.integers(1, 6)))
        elif kind == "blob":
            _soft_blob(image, rng, (x, y), color)
        elif kind == "writing":
            _writing(draw, rng, (x, y), color)
        else:
            extent = rng.uniform(0.1, 0.4) * height if kind == "arc" else rng.uniform(8, 45)
            start = rng.uniform(0, 360)
            corners = (x - extent, y - extent, x + extent, y + extent)
            if kind == "arc":
                draw.arc(corners, start, start + rng.uniform(40, 150), fill=color, width=int(rng.integers(1, 5)))
            elif rng.random() < 0.5:
                draw.chord(corners, start, start + rng.uniform(120, 180), fill=color)
            else:
                draw.pieslice(corners, start, start + rng.uniform(60, 100), fill=color)
    return np.asarray(image, dtype=np.float32).copy()


def _soft_blob(image: PIL.Image.Image, rng: np.random.Generator, center: Point, color: tuple[int, ...]) -> None:
    radius_x, radius_y = rng.integers(8, 50, 2).tolist()
    squares = (np.linspace(-1, 1, 2 * radius) ** 2 for radius in (radius_y, radius_x))
    profile = np.clip(1 - np.add.outer(*squares), 0, 1)
    mask = PIL.Image.fromarray((profile * rng.uniform(90, 255)).astype(np.uint8))
    image.paste(color, (int(center[0]) - radius_x, int(center[1]) - radius_y), mask)


def _writing(draw: PIL.ImageDraw.ImageDraw, rng: np.random.Generator, start: Point, color: tuple[int, ...]) -> None:
    cell = rng.uniform(5, 14)
    for glyph in range(int(rng.integers(3, 10))):
        corner = np.array([start[0] + glyph * cell * 0.8, start[1]])
        points = corner + rng.uniform(0, 1, (int(rng.integers(3, 6)), 2)) * (0.6 * cell, cell)
        draw.line(_tuples(points), fill=color, width=1 + int(cell > 9))


def _thin_line(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A line in front of what has been drawn so far, as a wire or a hair."""
    height, width = canvas.shape[:2]
    image = _as_picture(canvas)
    ends = rng.uniform(0, (width, height), (2, 2))
    color = tuple(rng.integers(0, 256, 3).tolist())
    PIL.ImageDraw.Draw(image).line(_tuples(ends), fill=color, width=int(rng.integers(1, 3)))
    return np.asarray(image, dtype=np.float32).copy()


def _light_and_noise(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = canvas.shape[:2]
    canvas = canvas * _smooth_field(rng.uniform(0.6, 1.25, (3, 3, 1)), height, width)
    canvas += (rng.uniform(0, 9) * rng.standard_normal((height, width), dtype=np.float32))[..., None]
    image = _as_picture(canvas)
    if rng.random() < 0.25:
        image = image.filter(PIL.ImageFilter.GaussianBlur(rng.uniform(0.5, 1.1)))
    return np.asarray(image)


def _smooth_field(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Interpolate a coarse grid (h, w, C) smoothly to (height, width, C) float32."""
    channels = [PIL.Image.fromarray(values[..., c].astype(np.float32)) for c in range(values.shape[2])]
    smooth = [channel.resize((width, height), PIL.Image.Resampling.BICUBIC) for channel in channels]
    return np.stack([np.asarray(channel) for channel in smooth], axis=2)


def _as_picture(canvas: np.ndarray) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def _tuples(points: np.ndarray) -> list[tuple[float, ...]]:
    return [tuple(point) for point in points.tolist()]


def _regular(corners: int, phase: float = 0.0) -> np.ndarray:
    angles = phase + np.arange(corners) * (2 * np.pi / corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _rotate(points: np.ndarray, angle: float) -> np.ndarray:
    cosine, sine = np.cos(angle), np.sin(angle)
    return points @ np.array([(cosine, sine), (-sine, cosine)])
