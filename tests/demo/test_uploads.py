"""What the server does with the files that it is sent."""

import io
from pathlib import Path

import pytest
from PIL import Image

from drmm_hf.demo.app import KEEP_FILES, MAX_UPLOAD, build_app
from drmm_hf.evaluation.loading import load_detector

pytestmark = pytest.mark.slow


def test_an_upload_is_gone_when_the_server_stops(checkpoint: Path) -> None:
    pytest.importorskip("gradio", reason="needs the extra `demo`")
    httpx = pytest.importorskip("httpx")
    picture = io.BytesIO()
    Image.new("RGB", (40, 20)).save(picture, "PNG")
    app = build_app(*load_detector(str(checkpoint), "cpu"))
    assert app.delete_cache == KEEP_FILES
    _, url, _ = app.launch(prevent_thread_lock=True, quiet=True, max_file_size=MAX_UPLOAD, ssr_mode=False)
    try:
        upload = f"{url}gradio_api/upload"
        answer = httpx.post(upload, files={"files": ("a.png", picture.getvalue())})
        kept = Path(answer.json()[0])
        assert kept.read_bytes() == picture.getvalue()
        too_large = httpx.post(upload, files={"files": ("b.png", bytes(21 * 2**20))}, timeout=60)
        assert too_large.status_code == 413
    finally:
        app.close()
    assert not kept.exists()
