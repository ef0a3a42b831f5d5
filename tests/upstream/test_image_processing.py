"""transformers' own tests of every image processor, run on this one: `make test-upstream`."""

import unittest

from transformers_upstream.test_image_processing_common import (
    AnnotationFormatTestMixin,
    ImageProcessingTester,
    ImageProcessingTestMixin,
)

from drmm_hf import DrmmImageProcessor


class DrmmImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent):
        super().__init__(parent, size={"shortest_edge": 64, "longest_edge": 96})

    def _get_image_processing_classes(self):
        return {"torchvision": DrmmImageProcessor}

    def expected_output_image_shape(self, images) -> tuple[int, int, int]:
        """The largest height and width after resizing, padded to a multiple of 32."""
        height, width = zip(*map(self._resized, images), strict=True)
        return self.num_channels, -(-max(height) // 32) * 32, -(-max(width) // 32) * 32

    def _resized(self, image) -> tuple[int, int]:
        """mmdetection's keep-ratio rule, with the rounding of the released code."""
        if hasattr(image, "size") and isinstance(image.size, tuple):
            width, height = image.size
        else:
            sides = [side for side in image.shape if side > 4]
            height, width = sides
        factor = min(96 / max(height, width), 64 / min(height, width))
        return int(height * factor + 0.5), int(width * factor + 0.5)


class DrmmImageProcessingTest(ImageProcessingTestMixin, AnnotationFormatTestMixin, unittest.TestCase):
    image_processor_tester_class = DrmmImageProcessingTester

    @unittest.skip("its fixture, a COCO picture with annotations, is not in the source distribution")
    def test_processor_can_use_legacy_annotation_format(self) -> None: ...

    @unittest.skip("the model takes three channels: a mean of four numbers is refused, and images become RGB")
    def test_call_numpy_4_channels(self) -> None: ...
