"""Pictures to pick from: generated scenes for a model of their classes, or a folder of one's own."""

from collections.abc import Collection

import numpy as np
from PIL import Image

from ..data.scene_rendering import render_scene
from ..data.scene_shapes import CATEGORIES
from ..evaluation.predict_cli import find_images

_MOST = 12
# The quick start's sizes, with fewer objects in a scene, so that each band can be seen.
_SIZE, _OBJECT_SIZES, _OBJECTS = (288, 384), (32.0, 120.0), 7.0


def example_scenes(classes: Collection[str], number: int = 6) -> list[Image.Image]:
    """Generated scenes, always the same; none for a model that does not know their classes."""
    if not set(CATEGORIES) <= set(classes):
        return []
    # A seed of their own: none of them is in a data set that `generate_scenes` writes.
    sources = [np.random.default_rng([2205, 8714, index]) for index in range(number)]
    low, high = _OBJECT_SIZES
    scenes = [render_scene(rng, *_SIZE, min_size=low, max_size=high, mean_objects=_OBJECTS) for rng in sources]
    return [Image.fromarray(scene.image) for scene in scenes]


def example_files(folder: str) -> list[str]:
    """The first pictures of a folder, in the order of their names; FileNotFoundError if there are none."""
    return [str(path) for path in find_images([folder])[:_MOST]]
