"""The page of the demo, with gradio."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageOps

from .data import open_image
from .demo import LEVELS, NMS_IOU, Measured, Options, detect, show, threshold_text
from .loading import predicted
from .modeling_drmm import DrmmForObjectDetection

MAX_UPLOAD = "20mb"
"""Larger files are refused."""
KEEP_FILES = (60, 3600)
"""Seconds: how often to look for files that gradio made of uploads and results, and how old they may be."""
_NO_PICTURE = "Upload a picture, or pick one of the examples."
_INTRODUCTION = """# D-RMM
Object detection as a mixture density: a score is the probability that there is an object times that of its class, and
each edge of a box has a density of its own. There is no NMS."""
# On a phone the table scrolls inside its frame; without these it stretches the whole page.
_STYLE = """
.gradio-container { max-width: min(1280px, 100vw) !important; margin: 0 auto !important; }
.gradio-container .main, .gradio-container main { min-width: 0 !important; max-width: 100% !important; }
#table, #table > * { max-width: 100% !important; min-width: 0 !important; }
#table td, #table th { white-space: nowrap; }
footer { display: none !important; }
"""


def import_gradio() -> Any:
    """The gradio module; ImportError with the name of the extra if it is not installed."""
    try:
        import gradio
    except ImportError as error:
        raise ImportError("the demo needs gradio: pip install 'drmm-hf[demo]'") from error
    return gradio


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
    gr = import_gradio()
    start, with_bands = Options(), "scales" in predicted(model)
    bands = [("off", None), *((f"{level:.0%}", level) for level in LEVELS)]

    def detect_picture(image: Image.Image | None) -> Any:
        return None if image is None else (image, detect(model, processor, image))

    def redraw(found: Any, threshold: float, level: float | None, nms: bool) -> tuple[Any, ...]:
        said = threshold_text(threshold, measured)
        if found is None:
            return None, _NO_PICTURE, said, gr.Dataframe(value=None)
        image, detections = found
        view = show(image, detections, model.config, Options(threshold, level, nms), measured)
        return view.picture, view.text, said, gr.Dataframe(value=view.rows, headers=view.columns)

    with gr.Blocks(
        title="D-RMM object detection", analytics_enabled=False, fill_width=True, delete_cache=KEEP_FILES
    ) as app:
        gr.Markdown(_INTRODUCTION)
        found = gr.State()
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                image = _picture_input(gr)
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
                threshold = gr.Slider(
                    0.0, 1.0, start.threshold, step=0.01, label="Show scores above", elem_id="threshold"
                )
                expected = gr.Markdown(threshold_text(start.threshold, measured), elem_id="expected")
                level = gr.Radio(
                    bands, value=start.level if with_bands else None, visible=with_bands, elem_id="level",
                    label="Uncertainty of the edges: bands of probability",
                )  # fmt: skip
                nms = gr.Checkbox(start.nms, label=f"Show what NMS would remove (IoU {NMS_IOU:g})", elem_id="nms")
        table = gr.Dataframe(
            label="Detections, pixels of the picture", headers=["class", "score"], interactive=False, type="array",
            elem_id="table",
        )  # fmt: skip
        controls = [threshold, level, nms]
        shown = {"fn": redraw, "inputs": [found, *controls], "outputs": [picture, text, expected, table]}
        image.change(detect_picture, image, found).then(**shown)
        for control in controls:
            # Dragging the slider asks more often than can be answered: the last position counts.
            control.change(**shown, trigger_mode="always_last", show_progress="hidden")
    return app


def _picture_input(gr: Any) -> Any:
    """Gradio's picture to upload, opened by this package: it refuses what may harm, and says what is wrong."""

    def preprocess(payload: Any) -> Image.Image | None:
        if payload is None:
            return None
        try:
            return open_upload(payload.path)
        except (OSError, ValueError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    component = gr.Image(type="pil", sources=["upload", "clipboard"], label="Picture", height=300, elem_id="input")
    # Not by a subclass: gradio writes an interface file beside the source of each.
    component.preprocess = preprocess
    return component


def open_upload(path: str) -> Image.Image:
    """An uploaded file as an RGB image, turned as the browser shows it.

    Raises:
        OSError, ValueError: as `open_image`; the message has the file's name without its folders, which are the
            server's own.
    """
    try:
        image = open_image(path)
        with Image.open(path) as stored:
            image.getexif()[ExifTags.Base.Orientation] = stored.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, ValueError) as error:
        raise type(error)(str(error).replace(str(path), Path(path).name).partition("; replace the file")[0]) from None
    return ImageOps.exif_transpose(image)


def launch_app(app: Any, port: int | None = None, share: bool = False) -> None:
    """Serve the page until it is interrupted.

    Args:
        app: from `build_app`.
        port: by default the environment's GRADIO_SERVER_PORT, or the first free one from 7860 on.
        share: also give it a public address through gradio's servers.

    Raises:
        OSError: the port is taken.
    """
    gr = import_gradio()
    # Fonts of the browser, so that the page loads nothing from elsewhere.
    theme = gr.themes.Default(
        font=[gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")],
        font_mono=[gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")],
    )
    app.launch(
        server_port=port, share=share, theme=theme, css=_STYLE, max_file_size=MAX_UPLOAD, footer_links=[],
        ssr_mode=False,
    )  # fmt: skip
