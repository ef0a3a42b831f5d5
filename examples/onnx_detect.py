"""Detect objects with an exported detector: onnxruntime, numpy and Pillow, nothing else.

    python scripts/export.py CHECKPOINT exported --format onnx --with-postprocessing
    python examples/onnx_detect.py exported picture.jpg --draw detections.png

Also reads exports without post-processing and of a fixed size. Copy what you need.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps


class OnnxDetector:
    """An export folder, ready to use."""

    def __init__(self, folder: str | Path):
        self.settings = json.loads((Path(folder) / "export.json").read_text(encoding="utf-8"))
        self.session = onnxruntime.InferenceSession(
            str(Path(folder) / self.settings["file"]), providers=["CPUExecutionProvider"]
        )

    def __call__(self, image: Image.Image, threshold: float = 0.5, top_k: int = 100) -> list[dict[str, Any]]:
        """Detections of one image, best first: score, label, box (xyxy) and scale (gamma of each edge), in pixels."""
        pixel_values, pixel_mask = preprocess(image, self.settings["image_processor"])
        inputs = {"pixel_values": pixel_values, "pixel_mask": pixel_mask}
        inputs["target_sizes"] = np.array([[image.height, image.width]], dtype=np.int64)
        batch = self.settings["batch"]
        if batch != "dynamic":  # a fixed batch is filled with copies
            inputs = {name: np.repeat(value, batch, axis=0) for name, value in inputs.items()}
        values = self.session.run(self.settings["outputs"], {name: inputs[name] for name in self.settings["inputs"]})
        outputs = {name: value[0] for name, value in zip(self.settings["outputs"], values, strict=True)}
        if "logits" in outputs:
            outputs = rank(outputs, (image.height, image.width), top_k)
        names = self.settings["id2label"]
        detections = []
        for i in range(min(top_k, int((outputs["scores"] > threshold).sum()))):  # sorted by score
            detection = {"score": float(outputs["scores"][i]), "label": names[str(outputs["labels"][i])]}
            detection["box"] = outputs["boxes"][i].tolist()
            if "scales" in outputs:
                detection["scale"] = outputs["scales"][i].tolist()
            detections.append(detection)
        return detections


def preprocess(image: Image.Image, settings: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The image processor in numpy: pixel_values (1, 3, H, W) float32 and pixel_mask (1, H, W) int64."""
    image = to_rgb(image)
    if settings["do_resize"]:
        size = resized_size(image.height, image.width, settings["size"])
        image = image.resize((size[1], size[0]), Image.Resampling(settings["resample"]))
    pixels = np.asarray(image, dtype=np.float32)
    if settings["do_rescale"]:
        pixels = pixels * np.float32(settings["rescale_factor"])
    if settings["do_normalize"]:
        pixels = (pixels - np.float32(settings["image_mean"])) / np.float32(settings["image_std"])
    height, width = pixels.shape[:2]
    canvas = settings.get("pad_size")
    if canvas is None:
        multiple = settings["size_divisor"]
        canvas = {"height": -(-height // multiple) * multiple, "width": -(-width // multiple) * multiple}
    if height > canvas["height"] or width > canvas["width"]:
        raise ValueError(f"an image of {height}x{width} does not fit into pad_size {canvas}")
    pixel_values = np.zeros((1, 3, canvas["height"], canvas["width"]), dtype=np.float32)
    pixel_values[0, :, :height, :width] = pixels.transpose(2, 0, 1)
    pixel_mask = np.zeros((1, canvas["height"], canvas["width"]), dtype=np.int64)
    pixel_mask[0, :height, :width] = 1
    return pixel_values, pixel_mask


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB; transparency over white, and 16-bit grey as 8-bit."""
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.float32)
        if image.mode != "I" or grey.max(initial=0) > 255:
            grey = np.rint(grey / 257)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    rgba = np.asarray(image.convert("RGBA"), dtype=np.float32)
    alpha = rgba[..., 3:] / 255
    return Image.fromarray(np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8))


def resized_size(height: int, width: int, size: dict[str, int]) -> tuple[int, int]:
    """(height, width) after the resize: exactly given, by the edges, or as large as fits."""
    if "height" in size:
        return size["height"], size["width"]
    if "max_height" in size:
        scale = min(size["max_height"] / height, size["max_width"] / width)
        return int(height * scale), int(width * scale)
    scales = []
    if size.get("shortest_edge"):
        scales.append(size["shortest_edge"] / min(height, width))
    if size.get("longest_edge"):
        scales.append(size["longest_edge"] / max(height, width))
    return max(1, int(height * min(scales) + 0.5)), max(1, int(width * min(scales) + 0.5))


def rank(outputs: dict[str, np.ndarray], size: tuple[int, int], top_k: int) -> dict[str, np.ndarray]:
    """Raw outputs of one image to ranked detections in pixels of the image of `size` (height, width)."""
    logits = outputs["logits"]
    index = np.argsort(-logits.ravel(), kind="stable")[:top_k]
    components, labels = np.divmod(index, logits.shape[1])
    pixels = np.array([size[1], size[0]] * 2, dtype=np.float32)
    center, extent = np.split(outputs["pred_boxes"][components], 2, axis=1)
    ranked = {
        "scores": 1 / (1 + np.exp(-logits[components, labels])),
        "labels": labels,
        "boxes": np.concatenate((center - extent / 2, center + extent / 2), axis=1) * pixels,
    }
    if "pred_scales" in outputs:
        ranked["scales"] = outputs["pred_scales"][components] * pixels
    return ranked


def draw(image: Image.Image, detections: list[dict[str, Any]]) -> Image.Image:
    """The image with labeled boxes."""
    canvas = image.convert("RGB")
    pen = ImageDraw.Draw(canvas)
    for detection in detections:
        left, top, right, bottom = detection["box"]
        if right > left and bottom > top:
            pen.rectangle((left, top, right, bottom), outline=(230, 57, 70), width=2)
        pen.text((left + 3, top + 2), f"{detection['label']} {detection['score']:.2f}", fill=(230, 57, 70))
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description="Detect objects with an exported ONNX detector.")
    parser.add_argument("export", help="folder of scripts/export.py --format onnx")
    parser.add_argument("image")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--draw", help="PNG to write")
    arguments = parser.parse_args()
    image = ImageOps.exif_transpose(Image.open(arguments.image))
    detections = OnnxDetector(arguments.export)(image, arguments.threshold)
    for found in detections:
        print(f"{found['score']:.3f}  {found['label']}  " + " ".join(f"{value:.1f}" for value in found["box"]))
    if arguments.draw:
        draw(image, detections).save(arguments.draw)


if __name__ == "__main__":
    main()
