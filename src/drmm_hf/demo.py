"""A page in the browser that shows detections, their uncertainty, and how much of them to expect to be right.

What it shows comes from `load_measured` and `show`, which need no browser; `build_app` puts it on a page of gradio's.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.ops import batched_nms

from .configuration_drmm import DrmmConfig
from .data import open_image
from .data.scenes import CATEGORIES, render_scene
from .evaluation import predict_images
from .evaluation.analysis import check_classes, read_analysis, reading
from .evaluation.uncertainty import LEVELS
from .files import require
from .loading import predicted
from .modeling_drmm import DrmmForObjectDetection
from .postprocessing import box_intervals
from .visualization import draw_view

NMS_IOU = 0.5  # of two boxes of a class that overlap more, NMS would remove the one with the lower score
MAX_UPLOAD = "20mb"  # larger files are refused
KEEP_FILES = (60, 3600)  # seconds: how often to look for gradio's files of uploads and results, and how old they may be
_NO_PICTURE = "Upload a picture, or pick one of the examples."
_INTRODUCTION = """# D-RMM
Object detection as a mixture density: a score is the probability that there is an object times that of its class, and
each edge of a box has a density of its own. There is no NMS."""
_OF_ANOTHER_DETECTOR = """# {name}
What the detector finds, and how far its scores can be trusted."""
# On a phone the table scrolls inside its frame; without these it stretches the whole page.
_STYLE = """
.gradio-container { max-width: min(1280px, 100vw) !important; margin: 0 auto !important; }
.gradio-container .main, .gradio-container main { min-width: 0 !important; max-width: 100% !important; }
#table, #table > * { max-width: 100% !important; min-width: 0 !important; }
#table td, #table th { white-space: nowrap; }
footer { display: none !important; }
"""


@dataclass(frozen=True)
class Measured:
    """What a report of `drmm analyze` measured of one checkpoint on one data set."""

    edges: np.ndarray  # (M+1,) of the bins of scores over [0, 1]
    counts: np.ndarray  # (M,) detections in each bin
    confidences: np.ndarray  # (M,) their mean score; nan in empty bins
    precisions: np.ndarray  # (M,) the share of them that was right; nan in empty bins
    thresholds: dict[str, float | None]  # best one of each class by name (LRP)
    factor: float  # on γ, for intervals of the edges; 1 if none was fitted
    coverage: dict[float, float]  # share of edges inside their interval, by level, with that factor on γ
    images: int  # number of those it was measured on
    iou_threshold: float  # of a right detection

    def precision_above(self, threshold: float) -> float:
        """Share of right detections among those with a score above `threshold`; nan if the report has none there.

        Exact at the edges of the bins and interpolated between them. In the bin of the highest scores it stays that
        bin's precision: the report does not say how they lie inside.
        """
        right = self.counts * np.nan_to_num(self.precisions)
        above, right_above = (np.cumsum(values[::-1])[::-1] for values in (self.counts, right))
        filled = above > 0
        if not filled.any() or threshold >= self.edges[filled.sum()]:
            return math.nan
        return float(np.interp(threshold, self.edges[:-1][filled], right_above[filled] / above[filled]))

    def precision_at(self, score: float) -> float:
        """Share of right detections with about this score: the bins' precisions, interpolated between their means."""
        filled = self.counts > 0
        if not filled.any():
            return math.nan
        return float(np.interp(score, self.confidences[filled], self.precisions[filled]))


def load_measured(path: str | PathLike[str], checkpoint: str, classes: Sequence[str]) -> Measured:
    """Read the part of an `analysis.json` that is about one checkpoint.

    Args:
        path, checkpoint: as in `read_analysis`.
        classes: names of the model's classes, of which the report must know one.

    Raises:
        FileNotFoundError, ValueError: the file is no such report, or one of another model.
    """
    entry = read_analysis(path, checkpoint, ("data", "calibration", "thresholds", "uncertainty"))
    with reading(path):
        bins, intervals = entry["calibration"]["reliability"], entry["uncertainty"]
        thresholds = {name: one["score_threshold"] for name, one in entry["thresholds"]["per_class"].items()}
        check_classes(path, thresholds, classes)
        fitted = intervals["factor"] is not None
        covered = zip(intervals["levels"], intervals["coverage_after" if fitted else "coverage"], strict=True)
        # an empty bin has None, which becomes nan
        columns = [np.array(bins[f"bin_{name}"], float) for name in ("edges", "counts", "confidences", "accuracies")]
        return Measured(
            edges=columns[0],
            counts=columns[1],
            confidences=columns[2],
            precisions=columns[3],
            thresholds=thresholds,
            factor=intervals["factor"] if fitted else 1.0,
            coverage={level: share for level, share in covered if share is not None},
            images=entry["data"]["images"],
            iou_threshold=bins["iou_threshold"],
        )


@dataclass(frozen=True)
class View:
    """What is shown: RGB picture, `columns` and `rows` of the table (best first), and Markdown text."""

    picture: Image.Image
    columns: list[str]
    rows: list[list[str]]
    text: str


def show(
    image: Image.Image,
    detections: Mapping[str, torch.Tensor],
    config: DrmmConfig,
    measured: Measured | None = None,
    *,
    threshold: float = 0.3,
    level: float | None = 0.8,
    nms: bool = False,
) -> View:
    """Everything the page shows of one image.

    Args:
        image, detections: what `predict_images` was given, and what it returned.
        config: of the model.
        measured: of the model's report, if there is one; its factor widens or narrows the bands.
        threshold: scores above it are shown, in [0, 1].
        level: probability that the bands of the edges stand for; None for no bands.
        nms: whether to show what NMS would remove.
    """
    found = {name: values[detections["scores"] > threshold] for name, values in detections.items()}
    names = {int(label): name for label, name in (config.id2label or {}).items()}
    labels, scores = found["labels"].tolist(), found["scores"].tolist()
    text = [f"**No detection** has a score above {threshold:.2f}."]
    if scores:
        text = [
            f"**{len(scores)} detection{'s' * (len(scores) > 1)}** above {threshold:.2f}. Their scores add up "
            f"to {sum(scores):.1f}: so many of them are right, if the scores are calibrated."
        ]
    columns = {"class": [names[label] for label in labels], "score": [f"{score:.2f}" for score in scores]}
    if measured:
        columns["expected precision"] = [f"{measured.precision_at(score):.0%}" for score in scores]
    removed = intervals = None
    if nms:
        removed = torch.ones(len(scores), dtype=torch.bool)
        removed[batched_nms(found["boxes"], found["scores"], found["labels"], NMS_IOU)] = False
        crossed = int(removed.sum())
        outcome = f"remove {crossed} of them, crossed out in gray" if crossed else "change nothing here"
        text.append(f"NMS at IoU {NMS_IOU:g} would {outcome}.")
    if level is not None and "scales" in found:
        scales = (measured.factor if measured else 1.0) * found["scales"]
        ends = box_intervals(found["boxes"], scales, level, config.density, config.student_t_dof)
        intervals = torch.stack(ends, dim=1)
        bands = f"The bands hold each edge with a probability of {level:.0%}, says the predicted density"
        if measured and measured.factor != 1.0:
            bands += f" with γ times {measured.factor:.2f}, which the report fitted"
        if measured and level in measured.coverage:
            bands += f". Measured: {measured.coverage[level]:.0%} of the edges inside"
        text.append(f"{bands}.")
    for edge, name in enumerate(("left", "top", "right", "bottom")):
        places = found["boxes"][:, edge]
        columns[name] = [f"{place:.1f}" for place in places.tolist()]
        if intervals is not None:
            halves = (intervals[:, 1, edge] - places).tolist()
            columns[name] = [f"{place} ± {half:.1f}" for place, half in zip(columns[name], halves, strict=True)]
    if removed is not None:
        columns["NMS"] = ["removed" if one else "kept" for one in removed.tolist()]
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    picture = draw_view(image, found, names, intervals=intervals, removed=removed)
    return View(picture, list(columns), rows, "\n\n".join(text))


def threshold_text(threshold: float, measured: Measured | None) -> str:
    """What to expect of the detections above a threshold, in Markdown."""
    if measured is None:
        return (
            "**A score is its own expected precision**, if the model is calibrated: of detections with score 0.8, "
            "80% are right. No report is given that says how well it is."
        )
    precision = measured.precision_above(threshold)
    where = f"above {threshold:.2f} on the report's {measured.images} images, IoU {measured.iou_threshold:g}"
    if math.isnan(precision):
        first = f"**Expected precision unknown**: no detection scored {where}."
    else:
        first = f"**Expected precision {precision:.0%}**: the share of right ones {where}."
    best = ", ".join(f"{name} {value:.2f}" for name, value in measured.thresholds.items() if value is not None)
    return f"{first} Best thresholds: {best}." if best else first


def example_scenes(classes: Collection[str], number: int = 6) -> list[Image.Image]:
    """Generated scenes of the shapes that a model knows, always the same; none if it knows none."""
    known = [name for name in CATEGORIES if name in classes]
    # A seed of their own: none of them is in a data set that `generate_scenes` writes.
    generators = [np.random.default_rng([2205, 8714, index]) for index in range(number if known else 0)]
    sizes = {"min_size": 32.0, "max_size": 120.0, "mean_objects": 7.0}
    return [
        Image.fromarray(render_scene(generator, 288, 384, classes=known, **sizes).image) for generator in generators
    ]


def build_app(
    model: DrmmForObjectDetection,
    processor: Any,
    measured: Measured | None = None,
    examples: Sequence[Image.Image | str] = (),
) -> Any:
    """The page as a `gradio.Blocks`, ready for `launch_app`.

    Args:
        model, processor: as `load_detector` gives them.
        measured: of the model's report, if there is one.
        examples: pictures to pick from.

    Raises:
        ImportError: gradio is not installed.
    """
    gr = require("gradio", "demo")
    with_bands = "scales" in predicted(model)
    bands = [("off", None), *((f"{level:.0%}", level) for level in LEVELS)]

    def detect(path: str | None) -> Any:
        if path is None:
            return None
        try:
            image = open_upload(path)
        except (OSError, ValueError) as error:
            raise gr.Error(str(error), print_exception=False) from error
        return image, predict_images(model, processor, [image])[0]

    def redraw(found: Any, threshold: float, level: float | None, nms: bool) -> tuple[Any, ...]:
        said = threshold_text(threshold, measured)
        if found is None:
            return None, _NO_PICTURE, said, gr.Dataframe(value=None)
        image, detections = found
        view = show(image, detections, model.config, measured, threshold=threshold, level=level, nms=nms)
        return view.picture, view.text, said, gr.Dataframe(value=view.rows, headers=view.columns)

    with gr.Blocks(title="Object detection", analytics_enabled=False, fill_width=True, delete_cache=KEEP_FILES) as app:
        gr.Markdown(_INTRODUCTION if with_bands else _OF_ANOTHER_DETECTOR.format(name=type(model).__name__))
        found = gr.State()
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                # as a file, which this package opens: it refuses what may harm, and says what is wrong
                image = gr.Image(
                    type="filepath", image_mode=None, sources=["upload", "clipboard"], label="Picture", height=300,
                    elem_id="input",
                )  # fmt: skip
                if examples:
                    gr.Examples(
                        [[one] for one in examples], image, label="Examples", elem_id="examples", examples_per_page=12
                    )
            # The controls stand below what they change, so that both are in sight on a phone.
            with gr.Column(scale=3, min_width=320):
                picture = gr.Image(
                    label="Detections", show_label=False, interactive=False, format="png", elem_id="output",
                    buttons=["download", "fullscreen"], alt_text="The picture with its detections",
                )  # fmt: skip
                text = gr.Markdown(_NO_PICTURE, elem_id="summary")
                threshold = gr.Slider(0.0, 1.0, 0.3, step=0.01, label="Show scores above", elem_id="threshold")
                expected = gr.Markdown(threshold_text(threshold.value, measured), elem_id="expected")
                level = gr.Radio(
                    bands, value=0.8 if with_bands else None, visible=with_bands, elem_id="level",
                    label="Uncertainty of the edges: bands of probability",
                )  # fmt: skip
                nms = gr.Checkbox(False, label=f"Show what NMS would remove (IoU {NMS_IOU:g})", elem_id="nms")
        table = gr.Dataframe(
            label="Detections, pixels of the picture", headers=["class", "score"], interactive=False, type="array",
            elem_id="table",
        )  # fmt: skip
        controls = [threshold, level, nms]
        shown = {"fn": redraw, "inputs": [found, *controls], "outputs": [picture, text, expected, table]}
        image.change(detect, image, found).then(**shown)
        for control in controls:
            # Dragging the slider asks more often than can be answered: the last position counts.
            control.change(**shown, trigger_mode="always_last", show_progress="hidden")
    return app


def open_upload(path: str) -> Image.Image:
    """An uploaded file as an RGB image, turned as the browser shows it.

    Raises:
        OSError, ValueError: as `open_image`; the message has the file's name without its folders, which are the
            server's own.
    """
    try:
        return open_image(path)
    except (OSError, ValueError) as error:
        raise type(error)(str(error).replace(str(path), Path(path).name).partition("; replace the file")[0]) from None


def launch_app(app: Any, port: int | None = None, share: bool = False) -> None:
    """Serve the page until it is interrupted.

    Args:
        app: from `build_app`.
        port: by default the environment's GRADIO_SERVER_PORT, or the first free one from 7860 on.
        share: also give it a public address through gradio's servers.

    Raises:
        OSError: the port is taken.
    """
    themes = require("gradio", "demo").themes
    # Fonts of the browser, so that the page loads nothing from elsewhere.
    theme = themes.Default(
        font=[themes.Font("system-ui"), themes.Font("sans-serif")],
        font_mono=[themes.Font("ui-monospace"), themes.Font("monospace")],
    )
    app.launch(
        server_port=port, share=share, theme=theme, css=_STYLE, max_file_size=MAX_UPLOAD, footer_links=[],
        ssr_mode=False,
    )  # fmt: skip
