"""One generated scene: background, clutter, objects that cover each other, light and noise."""

from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFilter

from .scene_shapes import CATEGORIES, FREQUENCIES, Patch, outline, rasterize, texture

MAX_OBJECTS = 12
BOXLESS_SHARE = 0.08
MIN_VISIBLE = 0.25
"""An object of whose pixels inside the image fewer than this share would stay visible is left out
altogether."""

_NAMES = tuple(CATEGORIES)


@dataclass(frozen=True)
class SceneObject:
    """An object that was drawn.

    `box` is the tight `(x1, y1, x2, y2)` in pixels of the object's shape inside the image, covered parts
    included (amodal), to half a pixel. `mask` (H, W) bool are the pixels that this shape touches, `visible`
    the share of them that nearer objects do not touch, `area` the size of the shape in px².
    """

    name: str
    box: tuple[float, float, float, float]
    mask: np.ndarray
    visible: float
    area: float


@dataclass(frozen=True)
class Scene:
    """`image` (H, W, 3) uint8 and its objects, farthest first (later ones cover earlier ones)."""

    image: np.ndarray
    objects: list[SceneObject]


def render_scene(
    rng: np.random.Generator, height: int, width: int, *, min_size: float, max_size: float, mean_objects: float
) -> Scene:
    """Draw one scene.

    About 8% of the scenes have no object, the others 1 to 12, drawn from a geometric law of mean `mean_objects` that
    is cut at 12. Sizes (longer side of the box,
    pixels) are log-uniform in `min_size`..`max_size`. Objects of one class sometimes come in groups that
    overlap.
    """
    placed = _place_objects(rng, height, width, min_size, max_size, mean_objects)
    kept = _drop_covered(placed, height, width)
    canvas = _background(rng, height, width)
    canvas = _clutter(canvas, rng, int(rng.integers(1, 7)))
    for _, patch in kept:
        _paint(canvas, patch, rng)
        if rng.random() < 0.06:
            canvas = _thin_line(canvas, rng)
    return Scene(_light_and_noise(canvas, rng), [item for item, _ in kept])


def _place_objects(
    rng: np.random.Generator, height: int, width: int, min_size: float, max_size: float, mean_objects: float
) -> list[tuple[str, Patch]]:
    """Class, shape and place of the wanted objects, farthest first."""
    if rng.random() < BOXLESS_SHARE:
        return []
    count = min(MAX_OBJECTS, 1 + int(rng.exponential(mean_objects - 1)))
    placed: list[tuple[str, Patch]] = []
    name, size, center = "", 0.0, (0.0, 0.0)
    for index in range(count):
        if index and rng.random() < 0.2:
            # A group: another one of the same class that touches or overlaps the last.
            size = float(np.clip(size * rng.uniform(0.7, 1.3), min_size, max_size))
            center = (center[0] + rng.uniform(-0.9, 0.9) * size, center[1] + rng.uniform(-0.9, 0.9) * size)
        else:
            name = _NAMES[rng.choice(len(_NAMES), p=FREQUENCIES)]
            size = float(np.exp(rng.uniform(np.log(min_size), np.log(max_size))))
            center = (rng.uniform(0, width), rng.uniform(0, height))
        # At most a fifth of the longer side sticks out of the image.
        margin = 0.3 * size
        center = (
            float(np.clip(center[0], margin, width - margin)),
            float(np.clip(center[1], margin, height - margin)),
        )
        placed.append((name, rasterize(outline(name, rng), size, center)))
    return placed


def _drop_covered(placed: list[tuple[str, Patch]], height: int, width: int) -> list[tuple[SceneObject, Patch]]:
    """Leave out objects that nearer ones would hide; an object left out hides nothing itself."""
    covered = np.zeros((height, width), dtype=bool)
    kept = []
    for name, patch in reversed(placed):
        rows, columns, inside = _overlap(patch, height, width)
        shape = patch.alpha[inside] > 0
        pixels = int(shape.sum())
        visible = float((shape & ~covered[rows, columns]).sum() / pixels) if pixels else 0.0
        if visible < MIN_VISIBLE:
            continue
        covered[rows, columns] |= shape
        mask = np.zeros((height, width), dtype=bool)
        mask[rows, columns] = shape
        area = float(patch.alpha[inside].sum())
        kept.append((SceneObject(name, patch.box(inside), mask, visible, area), patch))
    return kept[::-1]


def _paint(canvas: np.ndarray, patch: Patch, rng: np.random.Generator) -> None:
    """Blend a textured patch into the canvas, in colors that differ from what is below it."""
    rows, columns, inside = _overlap(patch, *canvas.shape[:2])
    region, alpha = canvas[rows, columns], patch.alpha[inside][..., None]
    below = (region * alpha).sum(axis=(0, 1)) / max(float(alpha.sum()), 1.0)
    color, second = _color_unlike(below, rng, 70.0), _color_unlike(below, rng, 50.0)
    surface = texture(region.shape[0], region.shape[1], color, second, rng)
    canvas[rows, columns] = region + alpha * (surface - region)


def _color_unlike(other: np.ndarray, rng: np.random.Generator, distance: float) -> np.ndarray:
    """A random color (3,) that is `distance` (RGB, 0..255) from `other`, or the farthest of a few."""
    candidates = rng.uniform(10, 245, (6, 3))
    distances = np.linalg.norm(candidates - other, axis=1)
    index = np.argmax(distances >= distance) if (distances >= distance).any() else np.argmax(distances)
    return candidates[index].astype(np.float32)


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
    image = PIL.Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    draw = PIL.ImageDraw.Draw(image)
    for kind in rng.choice(["line", "arc", "blob", "writing", "half"], count, p=[0.3, 0.15, 0.2, 0.2, 0.15]):
        color = tuple(rng.integers(0, 256, 3).tolist())
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        if kind == "line":
            end = (rng.uniform(0, width), rng.uniform(0, height))
            draw.line([(x, y), end], fill=color, width=int(rng.integers(1, 6)))
        elif kind == "arc":
            extent = rng.uniform(0.1, 0.4) * height
            start = rng.uniform(0, 360)
            corners = (x - extent, y - extent, x + extent, y + extent)
            draw.arc(corners, start, start + rng.uniform(40, 150), fill=color, width=int(rng.integers(1, 5)))
        elif kind == "blob":
            _soft_blob(image, rng, (x, y), color)
        elif kind == "writing":
            _writing(draw, rng, (x, y), color)
        else:
            extent = rng.uniform(8, 45)
            start = rng.uniform(0, 360)
            corners = (x - extent, y - extent, x + extent, y + extent)
            if rng.random() < 0.5:
                draw.chord(corners, start, start + rng.uniform(120, 180), fill=color)
            else:
                draw.pieslice(corners, start, start + rng.uniform(60, 100), fill=color)
    return np.asarray(image, dtype=np.float32).copy()


def _soft_blob(
    image: PIL.Image.Image, rng: np.random.Generator, center: tuple[float, float], color: tuple[int, ...]
) -> None:
    radius_x, radius_y = rng.integers(8, 50, 2).tolist()
    profile = np.clip(
        1 - np.add.outer(np.linspace(-1, 1, 2 * radius_y) ** 2, np.linspace(-1, 1, 2 * radius_x) ** 2), 0, 1
    )
    mask = PIL.Image.fromarray((profile * rng.uniform(90, 255)).astype(np.uint8))
    image.paste(color, (int(center[0]) - radius_x, int(center[1]) - radius_y), mask)


def _writing(
    draw: PIL.ImageDraw.ImageDraw,
    rng: np.random.Generator,
    start: tuple[float, float],
    color: tuple[int, ...],
) -> None:
    cell = rng.uniform(5, 14)
    for glyph in range(int(rng.integers(3, 10))):
        corner = np.array([start[0] + glyph * cell * 0.8, start[1]])
        points = corner + rng.uniform(0, 1, (int(rng.integers(3, 6)), 2)) * (0.6 * cell, cell)
        draw.line([tuple(point) for point in points.tolist()], fill=color, width=1 + int(cell > 9))


def _thin_line(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A line in front of what has been drawn so far, as a wire or a hair."""
    height, width = canvas.shape[:2]
    image = PIL.Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    ends = [(rng.uniform(0, width), rng.uniform(0, height)) for _ in range(2)]
    color = tuple(rng.integers(0, 256, 3).tolist())
    PIL.ImageDraw.Draw(image).line(ends, fill=color, width=int(rng.integers(1, 3)))
    return np.asarray(image, dtype=np.float32).copy()


def _light_and_noise(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = canvas.shape[:2]
    canvas = canvas * _smooth_field(rng.uniform(0.6, 1.25, (3, 3, 1)), height, width)
    canvas += (rng.uniform(0, 9) * rng.standard_normal((height, width), dtype=np.float32))[..., None]
    image = np.clip(canvas, 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        blur = PIL.ImageFilter.GaussianBlur(rng.uniform(0.5, 1.1))
        image = np.asarray(PIL.Image.fromarray(image).filter(blur))
    return image


def _smooth_field(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Interpolate a coarse grid (h, w, C) smoothly to (height, width, C) float32."""
    channels = [
        PIL.Image.fromarray(values[..., c].astype(np.float32)).resize((width, height), PIL.Image.Resampling.BICUBIC)
        for c in range(values.shape[2])
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=2)


def _overlap(patch: Patch, height: int, width: int) -> tuple[slice, slice, tuple[slice, slice]]:
    """Rows and columns of the image that a patch covers, and the part of the patch they correspond to."""
    patch_height, patch_width = patch.alpha.shape
    top, bottom = max(patch.top, 0), min(patch.top + patch_height, height)
    left, right = max(patch.left, 0), min(patch.left + patch_width, width)
    inside = (slice(top - patch.top, bottom - patch.top), slice(left - patch.left, right - patch.left))
    return slice(top, bottom), slice(left, right), inside
