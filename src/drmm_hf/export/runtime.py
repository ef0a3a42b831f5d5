"""An exported file as something that runs: from tensors by name to tensors, and as a detector to evaluate."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .onnx_file import session
from .parity import Run


def load_run(path: Path, output_names: Sequence[str]) -> Run:
    """A function from inputs by name to the outputs in order, of a `.onnx` or a `.pt2` file.

    Args:
        path: the file; its ending says which kind it is.
        output_names: of the outputs of an ONNX file, in the order wanted.

    Raises:
        ImportError: see `require_onnx`.
    """
    if path.suffix == ".onnx":
        runtime = session(path)
        names = list(output_names)

        def run_onnx(inputs: Mapping[str, Tensor]) -> list[Tensor]:
            found = runtime.run(names, {name: value.numpy() for name, value in inputs.items()})
            return [torch.from_numpy(value) for value in found]

        return run_onnx
    module = torch.export.load(path).module()

    def run_program(inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            return module(**inputs)

    return run_program


class ExportedDetector(nn.Module):
    """An exported file without ranking in the place of a model, for `evaluation.predict_dataset`.

    Args:
        run: see `load_run`.
        output_names: of the file.
    """

    def __init__(self, run: Run, output_names: Sequence[str]):
        super().__init__()
        self.run, self.output_names = run, list(output_names)
        # says where inputs go and in which type
        self.anchor = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> dict[str, Any]:
        """`logits`, `pred_boxes` and the other outputs of the file by name, as post-processing takes them."""
        # inference tensors cannot be passed to a captured program
        inputs = {"pixel_values": pixel_values.clone(), "pixel_mask": pixel_mask.clone()}
        return dict(zip(self.output_names, self.run(inputs), strict=True))
