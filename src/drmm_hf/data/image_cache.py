"""Decoded, downscaled images kept in memory, for data sets that fit."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from .images import DecodedImage, Size, decode_image, image_source


class ImageCache:
    """Keeps images as uint8 arrays until `max_bytes` are used; the others are decoded every time.

    Nothing is evicted: when an epoch visits every image once in random order, keeping a fixed subset serves
    more requests than keeping the latest. Every process has its own cache, so the bound holds per DataLoader
    worker.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes <= 0:
            raise ValueError(f"cache_bytes={max_bytes}: must be positive")
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._images: dict[str, tuple[np.ndarray, Size]] = {}

    def __len__(self) -> int:
        return len(self._images)

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker gets the transform by pickle: sending the pixels costs more than decoding them
        # again.
        return {"max_bytes": self.max_bytes, "used_bytes": 0, "_images": {}}

    def get(self, example: Mapping[str, Any], needed: Callable[[Size], Size]) -> DecodedImage:
        """The image of an example, downscaled to the size that is needed.

        Only images that come from a file are kept, under its path. `needed` gives
        the size from the stored one, and must always give the same.
        """
        source, _ = image_source(example)
        key = str(source) if isinstance(source, Path) else None
        if key in self._images:
            pixels, stored = self._images[key]
            return _scaled(PIL.Image.fromarray(pixels), stored)
        image = decode_image(example)
        stored = image.height, image.width
        height, width = needed(stored)
        if height < stored[0] and width < stored[1]:
            image = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
        if key is not None and self.used_bytes + pixels.nbytes <= self.max_bytes:
            self._images[key] = pixels, stored
            self.used_bytes += pixels.nbytes
        return _scaled(image, stored)


def _scaled(image: PIL.Image.Image, stored: Size) -> DecodedImage:
    return DecodedImage(image, (image.width / stored[1], image.height / stored[0]), stored)
